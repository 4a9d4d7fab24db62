//! Tunnels: listeners on this computer, a pipe for each connection that they accept.
//!
//! ```text
//! accept ─▶ spare or new connection ─▶ Join ─▶ relay ─▶ Close
//! ```
//!
//! Each forward opens its session up front, so that a denial is told at once. The pipe of that
//! first `Open` serves the first connection if one comes soon; it is not kept for long, since it
//! holds a connection to the target. Later connections join the session; when the agent has
//! forgotten it (nobody was connected for long), a new one is opened.

pub mod spec;

mod spare;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_proto::gateway::message::{CloseReason, DenyCode, Granted, OpenKind};
use postern_proto::names::TargetName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::gateway::{Gateway, GatewayError, Membership, Opened, Request};
use crate::http::Client;
use crate::output::Printer;
use crate::pipe::{self, Early};
use crate::route::Refusal;
use spare::Spares;
use spec::Forward;

/// How long the pipe of the first `Open` waits for its connection.
const FIRST: Duration = Duration::from_secs(10);
/// Connections at the same time of one forward; more wait to be accepted.
const AT_ONCE: usize = 1000;
/// How long a listener rests after an error such as too many open files.
const REST: Duration = Duration::from_millis(100);
/// For farewells when all is to end.
const FAREWELL: Duration = Duration::from_secs(3);

/// What moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Connections that were accepted and opened.
    pub connections: u64,
    /// Bytes to the target.
    pub up: u64,
    /// Bytes from the target.
    pub down: u64,
}

/// One forward that listens and has its session.
pub struct Tunnel {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    first: Option<Opened>,
}

struct Shared {
    gateway: Arc<Gateway>,
    request: Request,
    session: Mutex<Membership>,
    granted: Granted,
    spares: Spares,
    printer: Printer,
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    // Set when the agent ended the session for a reason that holds for all its pipes.
    ended: mpsc::Sender<Error>,
}

impl Tunnel {
    /// Listens, then opens the session.
    pub async fn open(
        gateway: &Arc<Gateway>,
        target: &TargetName,
        forward: &Forward,
        printer: Printer,
        ended: mpsc::Sender<Error>,
    ) -> Result<Self, Refusal> {
        let listener = forward.listen().await?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::failed(error.to_string()))?;
        let request = Request {
            target: target.clone(),
            kind: OpenKind::Tunnel {
                host: forward.host.clone(),
                port: forward.port,
            },
            once: false,
        };
        let first = gateway.open(&request, &mut Early::none()).await?;
        let shared = Arc::new(Shared {
            gateway: Arc::clone(gateway),
            session: Mutex::new(first.membership()),
            granted: first.granted.clone(),
            request,
            spares: Spares::new(Arc::clone(gateway)),
            printer,
            connections: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            ended,
        });
        Ok(Self {
            shared,
            listener,
            address,
            first: Some(first),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The grant of its session.
    pub fn granted(&self) -> &Granted {
        &self.shared.granted
    }

    /// Serves until `stop`, then says goodbye on all pipes. Returns what moved.
    pub async fn serve(self, stop: CancellationToken) -> Totals {
        let Self {
            shared,
            listener,
            first,
            ..
        } = self;
        let mut first = first.map(|first| (first, Instant::now() + FIRST));
        let mut connections = JoinSet::new();
        loop {
            let waiting = first.as_ref().map(|(_, until)| *until);
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept(), if connections.len() < AT_ONCE => match accepted {
                    Ok((socket, peer)) => {
                        let opened = first.take().map(|(first, _)| first);
                        let serving = connection(Arc::clone(&shared), socket, peer, opened, stop.clone());
                        connections.spawn(serving);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(REST).await;
                    }
                },
                () = at(waiting) => if let Some((unused, _)) = first.take() {
                    connections.spawn(unused.wire.farewell(CloseReason::Client));
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        if let Some((unused, _)) = first {
            connections.spawn(unused.wire.farewell(CloseReason::Client));
        }
        // What is not said by then is not said: the tasks end with this process.
        let _late = tokio::time::timeout(FAREWELL, shared.leave(connections)).await;
        shared.totals()
    }
}

impl Shared {
    fn totals(&self) -> Totals {
        Totals {
            connections: self.connections.load(Ordering::Relaxed),
            up: self.up.load(Ordering::Relaxed),
            down: self.down.load(Ordering::Relaxed),
        }
    }

    /// Waits for the last words of all connections, and ends the session: it would wait for a
    /// further one otherwise.
    async fn leave(&self, mut connections: JoinSet<()>) {
        while connections.join_next().await.is_some() {}
        let path = format!("/v1/sessions/{}", self.session().id());
        let ended = async {
            Client::connect(Arc::clone(&self.gateway))
                .await?
                .delete(&path)
                .await
        };
        if let Err(error) = ended.await {
            // It is over already, or ends by itself, later.
            tracing::debug!(%error, "the session was not ended");
        }
    }

    fn session(&self) -> Membership {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A further pipe of the session; a new session when the agent has forgotten it. What the local
    /// program says meanwhile goes out with the request.
    async fn pipe(&self, local: &mut TcpStream) -> Result<Opened, GatewayError> {
        let mut early = Early::from_local(local);
        let joined = self
            .gateway
            .join(
                &self.request,
                &self.session(),
                &mut early,
                self.spares.take(),
            )
            .await;
        self.spares.refill();
        match joined {
            Err(GatewayError::Denied(denied)) if denied.code == DenyCode::Policy => {}
            Ok(opened) => {
                let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
                session.renew(&opened);
                return Ok(opened);
            }
            Err(error) => return Err(error),
        }
        let opened = self.gateway.open(&self.request, &mut early).await?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = opened.membership();
        Ok(opened)
    }
}

/// One accepted connection, from its pipe to its end.
async fn connection(
    shared: Arc<Shared>,
    mut socket: TcpStream,
    peer: SocketAddr,
    first: Option<Opened>,
    stop: CancellationToken,
) {
    let _delayed = socket.set_nodelay(true);
    let opened = match first {
        Some(first) => Ok(first),
        None => tokio::select! {
            opened = shared.pipe(&mut socket) => opened,
            () = stop.cancelled() => return,
        },
    };
    let Opened { mut wire, seen, .. } = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let error = Error::from(error);
            return shared.printer.warning(format!(
                "the connection from {peer} was not carried: {error}"
            ));
        }
    };
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let relayed = tokio::select! {
        relayed = pipe::relay(&mut wire, &mut socket) => Some(relayed),
        () = stop.cancelled() => None,
    };
    shared
        .up
        .fetch_add(wire.machine().sent(), Ordering::Relaxed);
    shared
        .down
        .fetch_add(wire.machine().received(), Ordering::Relaxed);
    let outcome = match relayed {
        None => return wire.farewell(CloseReason::Client).await,
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => {
            reset(&socket);
            return shared
                .printer
                .warning(format!("the connection from {peer} ended: {error}"));
        }
    };
    wire.farewell(CloseReason::Done).await;
    // From here the connection is over; how, the local program learns when `socket` is dropped.
    if let Err(error) = shared.gateway.check_close(&outcome.close, &seen) {
        // Nothing more goes through this agent.
        let _told = shared.ended.try_send(error.into());
        return;
    }
    let Some(reason) = pipe::ending(&outcome.close) else {
        return;
    };
    reset(&socket);
    if ends_all(outcome.close.reason) {
        let error = Error::denied(format!("the tunnel was ended: {reason}"));
        let _told = shared
            .ended
            .try_send(error.hint("`postern why TARGET tunnel` shows what policy says now"));
    } else {
        shared
            .printer
            .warning(format!("the connection from {peer} ended: {reason}"));
    }
}

/// Makes the end of a connection that broke look like one: a plain close would be an end of file.
pub(crate) fn reset(socket: &TcpStream) {
    let set = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    if let Err(error) = set {
        tracing::debug!(%error, "SO_LINGER");
    }
}

/// Whether the reason holds for every connection of the forward, also for those to come. An agent
/// that shuts down is soon there again, or another in its place: the next connection opens a new
/// session.
fn ends_all(reason: CloseReason) -> bool {
    use CloseReason as Reason;
    matches!(
        reason,
        Reason::Policy | Reason::Expired | Reason::Evidence | Reason::Quota | Reason::Killed
    )
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
