//! The relay: one task that owns both connections of a session and moves messages between them.
//!
//! ```text
//!  read ─▶ user's transport ─▶ batch ─▶ record ─▶ target's transport ─▶ write      (up)
//! write ◀─ user's transport ◀─ record ◀─ batch ◀─ target's transport ◀─ read       (down)
//! ```
//!
//! Each way parses what has arrived into a batch, hands its contents to the recordings, and passes
//! the batch on when all of them have it. The two ways wait for nothing of each other, and for
//! decisions only where what follows depends on one. What one end may send on a channel is what
//! the other end granted it (SSH's windows pass through), so a stalled channel stops at its own
//! sender and holds up no other.

mod channels;
mod end;
mod opening;
mod requests;
mod switch;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use postern_proto::audit::event::Fact;
use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::SshEnd;
use super::link::Link;
use super::message;
use super::transport::Transport;
use crate::evidence::{Entry, EvidenceError, Recording};
use crate::session::{ChannelRefused, Ending, Session};

use channels::{Channels, Key, Way};
use end::End;

/// Bytes that wait for one end before we stop reading the other.
const SOFT_BACKLOG: usize = 128 * 1024;

/// The same while both ends wait for us: ends that do not read while they write would otherwise
/// stand still for ever. More than the windows that SSH peers usually grant (2 MiB).
const HARD_BACKLOG: usize = 8 * 1024 * 1024;

/// Bytes that are read ahead of what is being handled.
const READ_AHEAD: usize = 64 * 1024;

/// The first read of a quiet connection, and of a busy one.
const READ_QUIET: usize = 4 * 1024;
const READ_BUSY: usize = 64 * 1024;

/// Bytes of one batch, about.
const BATCH: usize = 128 * 1024;

/// Nothing to do for so long: buffers are given back.
const QUIET: Duration = Duration::from_secs(2);

/// A peer that does not finish an exchange of keys.
const EXCHANGE: Duration = Duration::from_secs(60);

/// Relays until the session is over.
pub(super) async fn run<S>(user: Link<S>, target: Link<TcpStream>, session: Arc<Session>) -> SshEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let relay = Relay {
        target_name: session
            .grant()
            .request()
            .target
            .as_ref()
            .map_or_else(|| "the target".to_owned(), |target| target.name.clone()),
        session,
        user: Side::new(user.transport),
        target: Side::new(target.transport),
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
        exit_status: None,
        bytes_up: 0,
        bytes_down: 0,
    };
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

/// One end of the relay.
struct Side {
    transport: Transport,
    /// Something was written and not flushed.
    unflushed: bool,
    /// Bytes to ask for next.
    read: usize,
    /// When the exchange of keys that is running must be over.
    exchange: Option<Instant>,
}

impl Side {
    fn new(transport: Transport) -> Self {
        Self {
            transport,
            unflushed: false,
            read: READ_QUIET,
            exchange: None,
        }
    }

    fn may_read(&self) -> bool {
        let received = self.transport.received();
        received < READ_AHEAD || received < self.transport.wanted()
    }
}

/// One way through the relay.
#[derive(Default)]
struct Lane {
    /// What this way waits for; nothing is parsed meanwhile.
    flight: Option<BoxFuture<'static, Flight>>,
    /// How many flights began, and how many are over.
    launched: u64,
    landed: u64,
    /// Messages that pass when the flight is over.
    recorded: Vec<Bytes>,
    /// What is being put together.
    batch: Batch,
    /// A message that must wait for the batch before it.
    parked: Option<Bytes>,
    /// No more will come from this end.
    ended: bool,
    /// Why, when the network says.
    failure: Option<String>,
    /// The session ends for this, once what came before it has passed.
    fault: Option<End>,
}

#[derive(Default)]
struct Batch {
    entries: Vec<(Recording, Entry)>,
    messages: Vec<Bytes>,
    bytes: usize,
}

/// What one way waited for.
enum Flight {
    /// The recordings have the batch.
    Recorded(Result<(), EvidenceError>),
    /// A decision about what the message asks for.
    Decided(Asked, Result<Option<Recording>, ChannelRefused>),
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
    exit_status: Option<u32>,
    bytes_up: u64,
    bytes_down: u64,
}

/// What the task woke up for.
enum Event {
    Read(Way, io::Result<usize>),
    Wrote(Way, io::Result<()>),
    Landed(Way, Flight),
    Decided(Decided),
    /// Evidence was written that nothing waits for.
    Stored(Result<(), EvidenceError>),
    Ordered(Ending),
    Quiet,
    Late,
}

impl Relay {
    async fn run<S, T>(mut self, user: S, target: T) -> SshEnd
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut user_read, mut user_write) = tokio::io::split(user);
        let (mut target_read, mut target_write) = tokio::io::split(target);
        let mut ending = self.session.ending();
        let mut quiet = pin!(tokio::time::sleep(QUIET));
        let mut quiet_armed = true;
        let mut active = Instant::now();
        let end = loop {
            if let Err(end) = self.advance() {
                break end;
            }
            let late = self.exchange_deadline();
            let event = {
                let Self {
                    user,
                    target,
                    up,
                    down,
                    decisions,
                    closing,
                    logging,
                    ..
                } = &mut self;
                let may_read_user = !up.ended && user.may_read();
                let may_read_target = !down.ended && target.may_read();
                let (user_size, target_size) = (user.read, target.read);
                let (user_in, user_out) = user.transport.buffers();
                let (target_in, target_out) = target.transport.buffers();
                let may_write_user = !user_out.is_empty() || user.unflushed;
                let may_write_target = !target_out.is_empty() || target.unflushed;
                tokio::select! {
                    order = ordered(&mut ending) => Event::Ordered(order),
                    flight = land(&mut up.flight) => Event::Landed(Way::Up, flight),
                    flight = land(&mut down.flight) => Event::Landed(Way::Down, flight),
                    Some(decided) = decisions.next() => Event::Decided(decided),
                    Some(closed) = closing.next() => Event::Stored(closed),
                    Some(logged) = logging.next() => Event::Stored(logged),
                    done = write(&mut user_write, user_out, &mut user.unflushed),
                        if may_write_user => Event::Wrote(Way::Down, done),
                    done = write(&mut target_write, target_out, &mut target.unflushed),
                        if may_write_target => Event::Wrote(Way::Up, done),
                    done = read(&mut user_read, user_in, user_size),
                        if may_read_user => Event::Read(Way::Up, done),
                    done = read(&mut target_read, target_in, target_size),
                        if may_read_target => Event::Read(Way::Down, done),
                    () = quiet.as_mut(), if quiet_armed => Event::Quiet,
                    () = until(late) => Event::Late,
                }
            };
            if let Event::Quiet = event {
                // The timer is moved when it fires, not at every event.
                match active + QUIET {
                    due if due > Instant::now() => quiet.as_mut().reset(due),
                    _ => {
                        quiet_armed = false;
                        self.give_back();
                    }
                }
                continue;
            }
            active = Instant::now();
            if !quiet_armed {
                quiet_armed = true;
                quiet.as_mut().reset(active + QUIET);
            }
            if let Err(end) = self.on_event(event) {
                break end;
            }
        };
        let end = self
            .say_farewell(end, &mut user_read, &mut user_write, &mut target_write)
            .await;
        self.complete(end).await
    }

    fn on_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Read(way, done) => {
                self.on_read(way, done);
                Ok(())
            }
            Event::Wrote(way, done) => done.map_err(|error| {
                self.lane(way.other()).failure = Some(error.to_string());
                self.gone(way.other())
            }),
            Event::Landed(way, flight) => self.on_landed(way, flight),
            Event::Decided(decided) => self.on_decided(decided),
            Event::Stored(stored) => Ok(stored?),
            Event::Ordered(order) => Err(End::new(order.reason, order.message)),
            Event::Late => Err(End::new(
                CloseReason::Protocol,
                "an exchange of keys took too long".to_owned(),
            )),
            Event::Quiet => Ok(()),
        }
    }

    fn on_read(&mut self, way: Way, done: io::Result<usize>) {
        let side = match way {
            Way::Up => &mut self.user,
            Way::Down => &mut self.target,
        };
        match done {
            Ok(length) if length > 0 => {
                if length >= side.read {
                    side.read = READ_BUSY;
                }
            }
            // What arrived before is still handled.
            ended => {
                let lane = self.lane(way);
                lane.ended = true;
                lane.failure = ended.err().map(|error| error.to_string());
            }
        }
    }

    fn exchange_deadline(&mut self) -> Option<Instant> {
        for side in [&mut self.user, &mut self.target] {
            if !side.transport.exchanging() {
                side.exchange = None;
            } else if side.exchange.is_none() {
                side.exchange = Some(Instant::now() + EXCHANGE);
            }
        }
        [self.user.exchange, self.target.exchange]
            .into_iter()
            .flatten()
            .min()
    }

    fn give_back(&mut self) {
        for side in [&mut self.user, &mut self.target] {
            side.transport.shrink();
            side.read = READ_QUIET;
        }
        for lane in [&mut self.up, &mut self.down] {
            if lane.flight.is_none() {
                lane.recorded = Vec::new();
                lane.batch = Batch::default();
            }
        }
    }
}

/// The flight, when there is one; it is over then.
async fn land(flight: &mut Option<BoxFuture<'static, Flight>>) -> Flight {
    match flight {
        Some(future) => {
            let landed = future.as_mut().await;
            *flight = None;
            landed
        }
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn read<R: AsyncRead + Unpin>(
    stream: &mut R,
    input: &mut BytesMut,
    size: usize,
) -> io::Result<usize> {
    input.reserve(size);
    stream.read_buf(input).await
}

/// Writes some of `output`; flushes the stream once all of it is written.
async fn write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    output: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if output.is_empty() {
        stream.flush().await?;
        *unflushed = false;
    } else {
        if stream.write_buf(output).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *unflushed = true;
    }
    Ok(())
}
