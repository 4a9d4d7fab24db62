//! The relay: one task that owns both connections of a session and moves messages between them.
//!
//! ```text
//!  read ─▶ user's transport ─▶ batch ─▶ record ─▶ target's transport ─▶ write      (up)
//! write ◀─ user's transport ◀─ record ◀─ batch ◀─ target's transport ◀─ read       (down)
//! ```
//!
//! Each way parses what has arrived into a batch, hands its contents to the recordings, and passes
//! the batch on when all of them have it; the next one is put together meanwhile. The two ways wait
//! for nothing of each other, and for decisions only where what follows depends on one. What one
//! end may send on a channel is what the other end granted it (SSH's windows pass through, less a
//! little of the user's for words of our own), so a stalled channel stops at its own sender and
//! holds up no other.

mod channels;
mod end;
mod lane;
mod opening;
mod requests;
mod switch;
mod task;
mod traffic;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use postern_proto::audit::event::Fact;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::SshEnd;
use super::link::Link;
use super::message;
use super::transport::Transport;
use crate::evidence::{Entry, EvidenceError, Recording};
use crate::session::{ChannelRefused, Ending, Session};

use channels::{Channels, Key, Way};
use lane::{Lane, Side};

/// Bytes that wait for one end before we stop reading the other.
const SOFT_BACKLOG: usize = 128 * 1024;

/// The same while both ends wait for us: ends that do not read while they write would otherwise
/// stand still for ever. More than the windows that SSH peers usually grant (2 MiB).
const HARD_BACKLOG: usize = 8 * 1024 * 1024;

/// Bytes of one batch, about.
const BATCH: usize = 128 * 1024;

/// Relays until the session is over; with `once`, that is when the target has closed the last
/// channel and the user has been sent all of it.
pub(super) async fn run<S, T>(
    user: Link<S>,
    target: Link<T>,
    session: Arc<Session>,
    once: bool,
) -> SshEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let relay = Relay::new(user.transport, target.transport, session, once);
    relay.run(user.stream, target.stream).await
}

/// Waits for the order to end.
pub(super) async fn ordered(ending: &mut watch::Receiver<Option<Ending>>) -> Ending {
    let order = ending
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|order| order.clone());
    match order {
        Some(order) => order,
        // Nobody is left to give one.
        None => std::future::pending().await,
    }
}

/// A request of the user that waits for a decision; nothing after it passes before.
struct Asked {
    /// The channel, but for a listener.
    key: Option<Key>,
    /// The whole message.
    payload: Bytes,
    want_reply: bool,
    what: What,
}

enum What {
    /// A shell, command or subsystem.
    Start { readable: bool, sftp: bool },
    /// Lending the SSH agent.
    Agent,
    /// A listener on the target.
    Listen { host: String, port: u32 },
}

/// A decision about a channel that wants to open.
struct Decided {
    key: Key,
    way: Way,
    payload: Bytes,
    result: Result<Option<Recording>, ChannelRefused>,
}

/// A global request that the user waits for.
enum GlobalReply {
    /// The target's answer: passes.
    Plain,
    /// The target's answer about a new listener.
    Listen { host: String, port: u32 },
    /// The target's answer about an old one.
    Unlisten { port: u32 },
    /// Our answer, when it is its turn.
    Ours(Bytes),
}

/// A recording of a channel that is gone, to be closed when nothing more is written to it.
struct Retiring {
    recording: Recording,
    last: Vec<Entry>,
    after_up: u64,
    after_down: u64,
}

struct Relay {
    session: Arc<Session>,
    once: bool,
    target_name: String,
    user: Side,
    target: Side,
    channels: Channels,
    up: Lane,
    down: Lane,
    decisions: FuturesUnordered<BoxFuture<'static, Decided>>,
    retiring: Vec<Retiring>,
    closing: FuturesUnordered<BoxFuture<'static, Result<(), EvidenceError>>>,
    replies: VecDeque<GlobalReply>,
    /// Facts for the log, and those that are being written.
    facts: VecDeque<Fact>,
    logging: FuturesUnordered<BoxFuture<'static, Result<(), EvidenceError>>>,
    /// Ports that the target listens on for the user, and the host that was asked for.
    listeners: BTreeMap<u32, String>,
    agent_lent: bool,
    /// When the target must have finished its exchange of keys.
    exchange: Option<Instant>,
    exit_status: Option<u32>,
    bytes_up: u64,
    bytes_down: u64,
}

impl Relay {
    fn new(user: Transport, target: Transport, session: Arc<Session>, once: bool) -> Self {
        Self {
            target_name: session
                .grant()
                .request()
                .target
                .as_ref()
                .map_or_else(|| "the target".to_owned(), |target| target.name.clone()),
            session,
            once,
            user: Side::new(user),
            target: Side::new(target),
            channels: Channels::default(),
            up: Lane::default(),
            down: Lane::default(),
            decisions: FuturesUnordered::new(),
            retiring: Vec::new(),
            closing: FuturesUnordered::new(),
            replies: VecDeque::new(),
            facts: VecDeque::new(),
            logging: FuturesUnordered::new(),
            listeners: BTreeMap::new(),
            agent_lent: false,
            exchange: None,
            exit_status: None,
            bytes_up: 0,
            bytes_down: 0,
        }
    }
}

#[cfg(test)]
mod tests;
