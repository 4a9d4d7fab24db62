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
use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::SshEnd;
use super::link::Link;
use super::message;
use super::transport::{Transport, TransportError};
use super::upstream::goodbye;
use crate::evidence::{Entry, EvidenceError, Recording};
use crate::session::{ChannelRefused, Ending, Session};

use channels::{Channels, Content, Key, Way};

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

/// For last words, and for evidence to be complete.
const FAREWELL: Duration = Duration::from_secs(5);
const COMPLETION: Duration = Duration::from_secs(10);

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

/// Why the relay stops.
#[derive(Debug)]
struct End {
    reason: CloseReason,
    message: Option<String>,
}

impl End {
    fn new(reason: CloseReason, message: impl Into<Option<String>>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl From<EvidenceError> for End {
    fn from(error: EvidenceError) -> Self {
        let reason = match error {
            EvidenceError::Quota(_) => CloseReason::Quota,
            EvidenceError::Failed(_) | EvidenceError::Space { .. } => CloseReason::Evidence,
        };
        Self::new(reason, error.to_string())
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
    Start { readable: bool },
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
    Closed(Result<(), EvidenceError>),
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
                    Some(closed) = closing.next() => Event::Closed(closed),
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
            .say_farewell(end, &mut user_write, &mut target_write)
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
            Event::Closed(closed) => Ok(closed?),
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

    /// The end that messages going `way` come from is gone.
    fn gone(&self, way: Way) -> End {
        match way {
            Way::Up if self.channels.len() == 0 && self.channels.any_opened() => {
                End::new(CloseReason::Done, None)
            }
            Way::Up => End::new(CloseReason::Client, None),
            Way::Down => End::new(
                CloseReason::Target,
                match &self.down.failure {
                    Some(error) => format!("the connection to {} broke: {error}", self.target_name),
                    None => format!("{} closed the connection", self.target_name),
                },
            ),
        }
    }

    /// A peer's messages cannot be followed.
    fn broken(&self, way: Way, error: &TransportError) -> End {
        match (way, error) {
            (way, TransportError::Disconnected { .. }) => {
                let mut end = self.gone(way);
                if way == Way::Down {
                    end.message = Some(goodbye(&self.target_name, error));
                }
                end
            }
            (Way::Up, error) => End::new(
                CloseReason::Protocol,
                format!("the SSH client broke the protocol: {error}"),
            ),
            (Way::Down, error) => End::new(CloseReason::Target, goodbye(&self.target_name, error)),
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

    /// Finishes what is under way, tells both ends, and sends what is left to send.
    async fn say_farewell<U, T>(
        &mut self,
        mut end: End,
        user_write: &mut U,
        target_write: &mut T,
    ) -> End
    where
        U: AsyncWrite + Unpin,
        T: AsyncWrite + Unpin,
    {
        let deadline = Instant::now() + FAREWELL;
        // A write to a recording that was begun is finished, and what it covers passes.
        for way in [Way::Down, Way::Up] {
            let flight = match way {
                Way::Up => land(&mut self.up.flight),
                Way::Down => land(&mut self.down.flight),
            };
            let waiting = match way {
                Way::Up => self.up.launched > self.up.landed,
                Way::Down => self.down.launched > self.down.landed,
            };
            if !waiting {
                continue;
            }
            match tokio::time::timeout_at(deadline, flight).await {
                Ok(Flight::Recorded(recorded)) => {
                    let landed = self.on_landed(way, Flight::Recorded(recorded));
                    if let Err(worse) = landed {
                        end = worse;
                    }
                }
                // What was only asked for is not begun any more.
                Ok(Flight::Decided(_, decided)) => self.drop_decided(decided),
                Err(_) => {
                    end = End::new(
                        CloseReason::Evidence,
                        "a recording could not be written in time".to_owned(),
                    );
                }
            }
        }
        self.tell(&end);
        let flush = async {
            tokio::join!(
                flush(user_write, &mut self.user.transport),
                flush(target_write, &mut self.target.transport),
            );
        };
        // Whoever does not read any more does not hear it.
        let _ = tokio::time::timeout_at(deadline, flush).await;
        end
    }

    /// Last words to both ends.
    fn tell(&mut self, end: &End) {
        let (code, words) = match end.reason {
            CloseReason::Done | CloseReason::Client => (message::BY_APPLICATION, String::new()),
            CloseReason::Protocol => (
                message::PROTOCOL_ERROR,
                end.message.clone().unwrap_or_default(),
            ),
            CloseReason::Target => (
                message::CONNECTION_LOST,
                end.message.clone().unwrap_or_default(),
            ),
            _ => {
                let words = end
                    .message
                    .clone()
                    .unwrap_or_else(|| "the session was ended by the agent".to_owned());
                self.tell_people(&words);
                (message::BY_APPLICATION, words)
            }
        };
        // Nothing can be done about a goodbye that cannot be sent.
        let _ = self.user.transport.disconnect(code, &words);
        let _ = self
            .target
            .transport
            .disconnect(message::BY_APPLICATION, "the session ended");
    }

    /// Writes `words` to the standard error of every shell and command that can take them.
    fn tell_people(&mut self, words: &str) {
        let line = format!("\r\npostern: {words}\r\n");
        for key in self.channels.keys() {
            let Some(channel) = self.channels.get(key) else {
                continue;
            };
            let Content::Session(program) = &channel.content else {
                continue;
            };
            if program.started
                && program.readable
                && !channel.closed_down
                && channel.window >= line.len() as u64
                && let Some(id) = channel.user
            {
                // The goodbye that follows says it too.
                let _ = self.user.transport.send(&message::stderr(id, &line));
            }
        }
    }

    /// A recording that was begun for what does not come any more is closed with the others.
    fn drop_decided(&mut self, decided: Result<Option<Recording>, ChannelRefused>) {
        if let Ok(Some(recording)) = decided {
            self.retiring.push(Retiring {
                recording,
                last: vec![],
                after_up: 0,
                after_down: 0,
            });
        }
    }

    /// Closes every recording and sums up.
    async fn complete(mut self, mut end: End) -> SshEnd {
        for key in self.channels.keys() {
            self.retire(key);
        }
        let session = self.session.clone();
        let close = async {
            // Decisions that nobody needs any more may have begun recordings.
            while let Some(decided) = self.decisions.next().await {
                self.drop_decided(decided.result);
            }
            for retiring in std::mem::take(&mut self.retiring) {
                close(&session, retiring).await?;
            }
            while let Some(closed) = self.closing.next().await {
                closed?;
            }
            Ok::<_, EvidenceError>(())
        };
        match timeout(COMPLETION, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => end = error.into(),
            Err(_) => {
                end = End::new(
                    CloseReason::Evidence,
                    "a recording could not be closed in time".to_owned(),
                );
            }
        }
        SshEnd {
            exit_status: self.exit_status,
            up: self.bytes_up,
            down: self.bytes_down,
            reason: end.reason,
            message: end.message,
        }
    }
}

/// Writes what is left and closes.
async fn close(session: &Session, retiring: Retiring) -> Result<(), EvidenceError> {
    for entry in retiring.last {
        retiring.recording.write(entry).await?;
    }
    session.close_recording(&retiring.recording).await
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

/// Sends all that waits and closes the stream, as far as the peer lets us.
async fn flush<W: AsyncWrite + Unpin>(stream: &mut W, transport: &mut Transport) {
    let (_, output) = transport.buffers();
    while !output.is_empty() {
        match stream.write_buf(output).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
    }
    // A peer that is gone is no failure of ours.
    let _ = stream.flush().await;
    let _ = stream.shutdown().await;
}
