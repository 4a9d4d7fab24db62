//! `-L`, `-R` and `-D`: on a pipe of their own, so that a stalled one never stops the shell.
//!
//! Names are the target's to resolve: this is SSH again. russh refills a channel's window when
//! bytes arrive, not when they are taken; so each connection has a bounded spill, and only one
//! that is full holds up the others.

pub mod spec;

mod relay;
mod socks;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::ChannelOpenFailure;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::SshError;
use super::client::Inbound;
use super::link::Link;
use crate::output::Printer;
use spec::{Destination, Dynamic, Local, Remote};

/// Connections at the same time, over all forwards; more wait to be accepted.
const AT_ONCE: usize = 256;
/// For a `-R` destination to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a listener rests after an error such as too many open files.
const REST: Duration = Duration::from_millis(100);

/// What is to be forwarded.
#[derive(Debug, Clone, Default)]
pub struct Forwards {
    /// `-L`.
    pub local: Vec<Local>,
    /// `-R`.
    pub remote: Vec<Remote>,
    /// `-D`.
    pub dynamic: Vec<Dynamic>,
}

impl Forwards {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty() && self.remote.is_empty() && self.dynamic.is_empty()
    }

    /// Listens, opens a connection of their own and serves until the result is stopped. A forward
    /// that cannot be had is an error: the person asked for it.
    pub async fn start(
        self,
        open: impl Future<Output = Result<Link, SshError>>,
        printer: Printer,
    ) -> Result<Running, SshError> {
        let mut listeners = Vec::new();
        for Local { bind, destination } in self.local {
            listeners.push((listen(bind, printer).await?, Some(destination)));
        }
        for Dynamic { bind } in self.dynamic {
            listeners.push((listen(bind, printer).await?, None));
        }
        let mut link = open.await?;
        let mut remote = HashMap::new();
        for Remote {
            bind,
            port,
            destination,
        } in self.remote
        {
            let chosen = link.listen(&bind, port).await?;
            printer.note(format!(
                "the target listens on port {chosen} for {destination}"
            ));
            remote.insert(chosen, destination);
        }
        let inbound = link.inbound();
        let link = Arc::new(link);
        let serving = serve(Arc::clone(&link), listeners, inbound, remote, printer);
        Ok(Running {
            link,
            serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        })
    }
}

/// Forwards that are served.
pub struct Running {
    link: Arc<Link>,
    serving: AbortOnDropHandle<()>,
}

impl Running {
    /// Ends them, and tells the agent: a pipe that is only dropped would be kept for us.
    pub async fn stop(self) {
        self.serving.abort();
        self.link.leave().await;
    }
}

async fn listen(bind: SocketAddr, printer: Printer) -> Result<TcpListener, SshError> {
    let listener = TcpListener::bind(bind)
        .await
        .map_err(|error| SshError::Forward {
            spec: bind.to_string(),
            reason: format!("this computer cannot listen there: {error}"),
        })?;
    if let Ok(address) = listener.local_addr() {
        printer.detail(format!("listening on {address}"));
    }
    Ok(listener)
}

async fn serve(
    link: Arc<Link>,
    listeners: Vec<(TcpListener, Option<Destination>)>,
    inbound: Option<mpsc::Receiver<Inbound>>,
    remote: HashMap<u32, Destination>,
    printer: Printer,
) {
    let (accepted, mut arrivals) = mpsc::channel(1);
    let mut acceptors = JoinSet::new();
    for (listener, destination) in listeners {
        acceptors.spawn(accept(listener, destination, accepted.clone()));
    }
    drop(accepted);
    let mut inbound = inbound.unwrap_or_else(|| mpsc::channel(1).1);
    let mut connections = JoinSet::new();
    loop {
        let free = connections.len() < AT_ONCE;
        tokio::select! {
            Some((socket, peer, destination)) = arrivals.recv(), if free => {
                connections.spawn(outgoing(Arc::clone(&link), socket, peer, destination, printer));
            }
            Some(offer) = inbound.recv(), if free => {
                if let Inbound::Forwarded { port, channel, reply } = offer {
                    let destination = remote.get(&port).cloned();
                    connections.spawn(async move {
                        let Some(socket) = dial(destination).await else {
                            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
                        };
                        reply.accept().await;
                        relay::run(socket, channel).await;
                    });
                }
            }
            Some(_) = connections.join_next() => {}
            else => break,
        }
        if link.is_over() {
            printer.warning("the forwards ended: their connection is gone");
            break;
        }
    }
}

type Arrival = (TcpStream, SocketAddr, Option<Destination>);

async fn accept(
    listener: TcpListener,
    destination: Option<Destination>,
    accepted: mpsc::Sender<Arrival>,
) {
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                if accepted
                    .send((socket, peer, destination.clone()))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn outgoing(
    link: Arc<Link>,
    mut socket: TcpStream,
    peer: SocketAddr,
    destination: Option<Destination>,
    printer: Printer,
) {
    let (destination, is_socks) = match destination {
        Some(destination) => (destination, false),
        None => match socks::request(&mut socket).await {
            Ok(destination) => (destination, true),
            Err(error) => return printer.detail(format!("-D: {peer}: {error}")),
        },
    };
    let origin = (peer.ip().to_string(), peer.port());
    let opened = link
        .direct(&destination.host, destination.port, (&origin.0, origin.1))
        .await;
    if is_socks && socks::answer(&mut socket, opened.is_ok()).await.is_err() {
        return;
    }
    match opened {
        Ok(channel) => relay::run(socket, channel).await,
        Err(error) => printer.warning(error.to_string()),
    }
}

async fn dial(destination: Option<Destination>) -> Option<TcpStream> {
    let Destination { host, port } = destination?;
    let socket = tokio::time::timeout(CONNECT, TcpStream::connect((host.as_str(), port))).await;
    let socket = socket.ok()?.ok()?;
    socket.set_nodelay(true).ok()?;
    Some(socket)
}
