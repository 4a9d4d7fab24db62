//! Tunnels over SSM: listeners on this computer, their connections spread over a pool of SSM
//! sessions.
//!
//! ```text
//! accept ─▶ Pool ─▶ relay ─▶ reset, or an ordinary end
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_proto::gateway::message::CloseReason;
use postern_proto::names::SessionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pool::{Opener, Pool};
use super::relay::{Ending, Meter, Moved, Witness, relay};
use super::target::{Feature, Node};
use super::{Session, Ssm, Start, claim, document, notice};
use crate::context::Context;
use crate::error::Error;
use crate::evidence::{Carries, End, Record};
use crate::forward::spec::Forward;
use crate::forward::{Totals, reset};
use crate::output::Printer;

/// Connections at the same time of one forward; more wait to be accepted.
const AT_ONCE: usize = 1000;
/// How long a listener rests after an error such as too many open files.
const REST: Duration = Duration::from_millis(100);
/// How long the target may be silent after a local program ended its sending side, before the
/// connection ends: a program that is gone altogether looks the same.
const HALF_CLOSED: Duration = Duration::from_secs(15);
/// The same while there are so many connections that places run out.
const CROWDED: Duration = Duration::from_millis(500);
/// For a local program to take the end of what it was sent.
const LINGER: Duration = Duration::from_secs(2);
/// For the last bytes of all connections when all is to end.
const FAREWELL: Duration = Duration::from_secs(8);

/// Opens further sessions of a forward, each in its evidence before it carries anything.
struct Sessions {
    ssm: Arc<Ssm>,
    start: Start,
    record: Record,
}

impl Opener for Sessions {
    async fn open(&self) -> Result<Session, Error> {
        let session = Session::start(&self.ssm, self.start.clone()).await?;
        let facts = claim::ssm_session(&self.ssm, &session, &self.start);
        self.record.ssm_session(facts).await?;
        Ok(session)
    }
}

/// One forward that listens and has its first session.
pub struct Tunnel {
    pool: Pool<Sessions>,
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    printer: Printer,
    /// For people.
    destination: String,
    record: Record,
    connections: AtomicU64,
    moved: Moved,
}

impl Tunnel {
    /// Listens, opens the first session and its evidence. `limit`: SSM sessions at once.
    pub async fn open(
        context: &Context,
        ssm: &Arc<Ssm>,
        node: &Node,
        forward: &Forward,
        limit: usize,
    ) -> Result<Self, Error> {
        node.demand(match forward.host {
            None => Feature::Port,
            Some(_) => Feature::RemoteHost,
        })?;
        let listener = forward.listen().await?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::failed(error.to_string()))?;
        let start = start(&node.id, forward);
        let first = Session::start(ssm, start.clone()).await?;
        let carries = Carries::Tunnel {
            host: forward.host.as_ref().map(ToString::to_string),
            port: forward.port,
        };
        let record = claim::open(context, ssm, node, &first, &start, carries).await?;
        let opener = Sessions {
            ssm: Arc::clone(ssm),
            start,
            record: record.clone(),
        };
        let destination = forward.destination(&node.name);
        let printer = context.printer;
        Ok(Self {
            pool: Pool::new(first, opener, limit, destination.clone(), printer),
            listener,
            address,
            shared: Arc::new(Shared {
                printer,
                destination,
                record,
                connections: AtomicU64::new(0),
                moved: Moved::default(),
            }),
        })
    }

    /// The session's id, one for all SSM sessions below it.
    pub fn session(&self) -> SessionId {
        self.shared.record.id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then ends its sessions and its evidence. Returns what moved. `ended` is
    /// told when the evidence fails: nothing is carried from then on.
    pub async fn serve(self, stop: CancellationToken, ended: mpsc::Sender<Error>) -> Totals {
        let Self {
            pool,
            listener,
            shared,
            ..
        } = self;
        let pool = Arc::new(pool);
        let mut connections = JoinSet::new();
        let mut reason = CloseReason::Client;
        let stop = stop.child_token();
        let failed = shared.record.failed();
        tokio::pin!(failed);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                error = &mut failed => {
                    reason = CloseReason::Evidence;
                    stop.cancel();
                    let _told = ended.try_send(error.into());
                    break;
                }
                accepted = listener.accept(), if connections.len() < AT_ONCE => match accepted {
                    Ok((socket, peer)) => {
                        let serving = connection(Arc::clone(&pool), Arc::clone(&shared), socket, peer, stop.clone());
                        connections.spawn(serving);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(REST).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        let leave = async {
            while connections.join_next().await.is_some() {}
            // No connection holds it any more.
            if let Some(pool) = Arc::into_inner(pool) {
                pool.close().await;
            }
        };
        // What is not said by then is not said; the sessions end all the same.
        let _late = tokio::time::timeout(FAREWELL, leave).await;
        let end = End {
            reason,
            message: None,
            exit_status: None,
        };
        if let Err(error) = shared.record.close(end).await {
            let _told = ended.try_send(error.into());
        }
        shared.totals()
    }
}

impl Shared {
    fn totals(&self) -> Totals {
        Totals {
            connections: self.connections.load(Ordering::Relaxed),
            up: self.moved.up.load(Ordering::Relaxed),
            down: self.moved.down.load(Ordering::Relaxed),
        }
    }
}

/// One accepted connection, from its place in the pool to its end.
async fn connection<O: Opener>(
    pool: Arc<Pool<O>>,
    shared: Arc<Shared>,
    mut socket: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    let _delayed = socket.set_nodelay(true);
    let leased = tokio::select! {
        leased = pool.connect(peer) => leased,
        () = stop.cancelled() => return,
    };
    let uncarried = |error: Error| {
        reset(&socket);
        shared.printer.warning(notice::not_carried(&peer, &error));
    };
    let mut lease = match leased {
        Ok(lease) => lease,
        Err(error) => return uncarried(error),
    };
    let flow = match shared.record.flow_opened(&peer.to_string()).await {
        Ok(flow) => flow,
        Err(error) => return uncarried(error.into()),
    };
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let silence = || match pool.load() {
        crowd if crowd > AT_ONCE / 2 => CROWDED,
        _ => HALF_CLOSED,
    };
    let ending = {
        let meter = Meter::new(&shared.moved, Witness::Flow(&flow));
        let (from, to) = socket.split();
        tokio::select! {
            ending = relay(lease.far(), from, to, &meter, silence) => Some(ending),
            () = stop.cancelled() => None,
        }
    };
    let is_refused = lease.far().is_refused();
    let is_closed = matches!(ending, Some(Ending::Closed)) && !is_refused;
    if is_closed {
        let _gone = socket.shutdown().await;
    }
    let why = match ending {
        Some(Ending::Closed) if is_refused => {
            reset(&socket);
            let why = notice::nothing_answers(&shared.destination);
            shared.printer.warning(notice::not_carried(&peer, &why));
            Some(why)
        }
        Some(Ending::Closed | Ending::Left) | None => None,
        Some(Ending::Local(error)) => {
            tracing::debug!(%error, %peer, "a local program went away");
            reset(&socket);
            None
        }
        Some(Ending::Over(error)) => {
            reset(&socket);
            let line = notice::connection_ended(&peer, &error);
            // Where several share a session, it was told once for all.
            if lease.is_alone() {
                shared.printer.warning(line);
            } else {
                shared.printer.detail(line);
            }
            Some(error.to_string())
        }
    };
    lease.end().await;
    if is_closed {
        linger(&mut socket).await;
    }
    if let Err(error) = flow.close(why.as_deref()).await {
        // The forward ends for it.
        tracing::debug!(%error, "the end of a connection is not in the evidence");
    }
}

/// Lets the local program take what it was sent: closing a socket that holds unread bytes would
/// throw that away.
async fn linger(socket: &mut TcpStream) {
    let mut unwanted = vec![0; 16 * 1024];
    let gone = async { while matches!(socket.read(&mut unwanted).await, Ok(1..)) {} };
    let _late = tokio::time::timeout(LINGER, gone).await;
}

/// The session that carries a forward.
fn start(node: &str, forward: &Forward) -> Start {
    let port = forward.port.to_string();
    // Which port we listen on is nobody else's business.
    let local = "0".to_owned();
    let (document, parameters) = match &forward.host {
        None => (
            document::PORT,
            document::parameters([("portNumber", port), ("localPortNumber", local)]),
        ),
        Some(host) => (
            document::REMOTE_HOST,
            document::parameters([
                ("host", host.to_string()),
                ("portNumber", port),
                ("localPortNumber", local),
            ]),
        ),
    };
    Start {
        target: node.to_owned(),
        document: document.to_owned(),
        parameters,
        reason: claim::reason(),
    }
}
