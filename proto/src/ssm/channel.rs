//! [`DataChannel`]: one session, for either role, over any number of connections.
//!
//! Methods are of four kinds: `handle_*` takes what happened, commands (`write`, `resize`, …) take
//! what the owner wants, `poll_*` gives out what follows, the rest looks. After any of the first
//! two call [`DataChannel::poll_transmit`] until it has nothing, then sleep until
//! [`DataChannel::poll_timeout`] at the latest and call [`DataChannel::handle_timeout`].
//!
//! Taking an event out of [`DataChannel::poll_event`] is what acknowledges its data: poll only
//! what can be handed on. While [`DataChannel::wants_message`] is false, stop reading the socket:
//! that is all the back-pressure that the peers understand.

mod config;
mod event;
mod handshake;
mod ids;
mod inbound;
mod outbound;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

pub use config::Config;
pub use event::{
    CloseReason, Closed, Event, KeyOffer, KeyRequest, Opened, Session, encryption_context,
};
pub use handshake::{Encryption, Plan};
pub use ids::Seed;

use handshake::{AgentHandshake, ClientHandshake, Step};
use ids::Ids;

use super::Role;
use super::crypt::Cipher;
use super::message::{MessageError, MessageId, MessageKind};
use super::payload::{PayloadError, SecretText, TerminalSize};
use super::reliable::{AckError, ReceiveQueue, SendQueue};
use super::version::AgentFeatures;

/// The payload that both programs send at most, and so what every path lets through (plugin and
/// SSM Agent: `StreamDataPayloadSize`).
pub const LEAST_PAYLOAD: usize = 1024;

/// The resend of the first data after a handshake: the SSM Agent's handler may not be ready, and
/// then it says nothing (SSM-PROTOCOL.md section 3).
const HURRY: Duration = Duration::from_millis(20);
/// Acknowledgements that wait to be sent. Above it none is made: the peer asks again.
const ACK_LIMIT: usize = 4096;
/// Resends of a padded message before it goes out bare.
const PADDED_RESENDS: u32 = 2;
/// Acknowledged bytes after which messages may be longer again.
const GROW_AFTER: usize = 1024 * 1024;

/// What goes over the WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// A text frame: the first of a connection. It holds the token.
    Text(SecretText),
    /// A binary frame.
    Binary(Bytes),
}

/// A message that was dropped. The channel goes on: what matters comes again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// It cannot be read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Its payload cannot be read.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// It acknowledges what was never sent.
    #[error(transparent)]
    Acknowledgement(#[from] AckError),
    /// Numbered data of our own direction.
    #[error("{0:?} from the wrong side")]
    WrongSide(MessageKind),
    /// No room: the owner did not wait for [`DataChannel::wants_message`], or the message came
    /// before the session was open.
    #[error("message {0} came when there was no room for it")]
    NoRoom(u64),
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandError {
    /// No [`Event::Opened`] yet: data sent now may be acknowledged and thrown away.
    #[error("the session is not open yet")]
    NotOpen,
    /// It is over.
    #[error("the session is over")]
    Closed,
    /// The other role's command.
    #[error("not this role's command")]
    WrongRole,
}

#[derive(Debug)]
enum Handshake {
    Client(ClientHandshake),
    Agent(AgentHandshake),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Closed,
}

/// An event that waits for its owner, with the acknowledgement that its taking causes.
#[derive(Debug)]
struct Waiting {
    event: Event,
    acknowledges: Option<(MessageId, u64)>,
}

/// One session. See the module's page.
#[derive(Debug)]
pub struct DataChannel {
    role: Role,
    config: Config,
    ids: Ids,
    state: State,
    handshake: Handshake,
    cipher: Option<Cipher>,
    features: AgentFeatures,
    started: Instant,

    // The connection. `text` is its first message, until sent.
    connected: bool,
    text: Option<SecretText>,
    // Unnumbered messages of the SSM Agent; made by its owner only, a few in a session.
    plain: VecDeque<Bytes>,
    acks: VecDeque<(MessageId, u64)>,
    peer_away: bool,

    send: SendQueue,
    receive: ReceiveQueue,
    events: VecDeque<Waiting>,
    event_bytes: usize,

    // Length of messages: at present, at most, and what was acknowledged since it changed.
    payload: usize,
    payload_limit: usize,
    settled: usize,
    // The terminal's size, until there is room for it.
    size: Option<TerminalSize>,
    // The handshake response while it is padded: its number and its bare form.
    padded: Option<(u64, Bytes)>,

    // Deadlines. `handshake_due` is unset while the owner asks KMS and once open; `heard` is when
    // the other side last said anything, or had first to answer.
    handshake_due: Option<Instant>,
    heard: Instant,
}

impl DataChannel {
    /// A client's channel, not yet connected. `unix` is the time since 1970 at `now`.
    pub fn client(config: Config, now: Instant, unix: Duration) -> Self {
        Self::new(Role::Client, config, now, unix)
    }

    /// An SSM Agent's channel, not yet connected. Goes on with [`Self::begin`] or
    /// [`Self::begin_unnamed`].
    pub fn agent(config: Config, now: Instant, unix: Duration) -> Self {
        Self::new(Role::Agent, config, now, unix)
    }

    fn new(role: Role, config: Config, now: Instant, unix: Duration) -> Self {
        let greatest = config
            .payload
            .clamp(LEAST_PAYLOAD, super::message::PAYLOAD_LIMIT / 2);
        let payload = match role {
            Role::Client => LEAST_PAYLOAD,
            Role::Agent => greatest,
        };
        Self {
            role,
            ids: Ids::new(config.seed.clone(), now, unix),
            state: State::Opening,
            handshake: match role {
                Role::Client => Handshake::Client(ClientHandshake::Start),
                Role::Agent => Handshake::Agent(AgentHandshake::Start),
            },
            cipher: None,
            features: AgentFeatures::new(None),
            started: now,
            connected: false,
            text: None,
            plain: VecDeque::new(),
            acks: VecDeque::new(),
            peer_away: false,
            send: SendQueue::new(config.limits),
            receive: ReceiveQueue::new(config.limits),
            events: VecDeque::new(),
            event_bytes: 0,
            payload,
            payload_limit: payload,
            settled: 0,
            size: None,
            padded: None,
            handshake_due: None,
            heard: now,
            config: Config {
                payload: greatest,
                ..config
            },
        }
    }

    /// Whether the session is open: between [`Event::Opened`] and the end. True from the moment
    /// that event waits.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether [`Event::Closed`] was given out or waits.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the other side has acknowledged everything. An SSM Agent waits for it, for up to
    /// two seconds, before it ends a shell.
    pub fn is_settled(&self) -> bool {
        self.send.is_empty()
    }

    /// Whether the service said that the other side is away, and it was not heard since. Nothing
    /// but one message at a time goes out then.
    pub fn is_peer_away(&self) -> bool {
        self.peer_away
    }

    /// Whether to read the socket on.
    pub fn wants_message(&self) -> bool {
        self.event_bytes < self.config.event_bytes && self.acks.len() < ACK_LIMIT
    }

    /// Bytes of data that [`Self::write`] would take now: whole messages, as long as something is
    /// in flight, so that the end of a window is not filled with tiny ones.
    pub fn room(&self) -> usize {
        if self.state != State::Open {
            return 0;
        }
        let overhead = super::message::OVERHEAD + self.overhead();
        let room = self.send.room();
        let message = self.payload + overhead;
        match room / message {
            0 if self.send.is_empty() => room.saturating_sub(overhead),
            whole => whole * self.payload,
        }
    }

    /// Bytes of data in one message at present.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// The next event. Taking data acknowledges it.
    pub fn poll_event(&mut self) -> Option<Event> {
        let Waiting {
            event,
            acknowledges,
        } = self.events.pop_front()?;
        self.event_bytes -= event.size();
        if let Some((id, number)) = acknowledges {
            self.acknowledge(id, number);
        }
        Some(event)
    }

    /// When to call [`Self::handle_timeout`] though nothing happened; `None` when idle or not
    /// connected.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.connected || self.is_closed() {
            return None;
        }
        [
            self.send.poll_timeout(),
            self.handshake_due,
            self.silence_due(),
            self.unnamed_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A deadline may have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.connected || self.is_closed() {
            return;
        }
        if self.unnamed_due().is_some_and(|due| due <= now) {
            self.open_without_handshake();
        } else if self.handshake_due.is_some_and(|due| due <= now) {
            self.close(CloseReason::HandshakeTimeout);
        } else if self.silence_due().is_some_and(|due| due <= now) {
            self.close(CloseReason::Silent);
        }
    }

    fn silence_due(&self) -> Option<Instant> {
        (!self.send.is_empty()).then(|| self.heard + self.config.silence)
    }

    /// When a session of which nothing was heard is taken for one that has no handshake. Not while
    /// the SSM Agent is said to be away, nor when something came already and is out of order.
    fn unnamed_due(&self) -> Option<Instant> {
        let waits = matches!(self.handshake, Handshake::Client(ClientHandshake::Start))
            && self.state == State::Opening
            && !self.peer_away
            && !self.receive.has_gap();
        self.config
            .unnamed_after
            .filter(|_| waits)
            .map(|after| self.heard + after)
    }

    fn overhead(&self) -> usize {
        self.cipher.as_ref().map_or(0, |_| super::crypt::OVERHEAD)
    }

    fn acknowledge(&mut self, id: MessageId, number: u64) {
        if self.acks.len() < ACK_LIMIT {
            self.acks.push_back((id, number));
        }
    }

    fn tell(&mut self, event: Event, acknowledges: Option<(MessageId, u64)>) {
        self.event_bytes += event.size();
        self.events.push_back(Waiting {
            event,
            acknowledges,
        });
    }

    fn close(&mut self, reason: CloseReason) {
        if self.is_closed() {
            return;
        }
        self.state = State::Closed;
        let is_incomplete = self.receive.has_gap();
        self.tell(
            Event::Closed(Closed {
                reason,
                is_incomplete,
            }),
            None,
        );
    }

    fn apply(&mut self, now: Instant, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(kind, payload) => self.push(now, kind, payload),
                Step::Tell(event) => {
                    // The owner asks KMS: that time is not the other side's.
                    self.handshake_due = None;
                    self.tell(event, None);
                }
                Step::Open(opened, cipher) => {
                    self.handshake_due = None;
                    self.cipher = cipher;
                    if self.role == Role::Client {
                        self.features = AgentFeatures::new(opened.peer_version.as_deref());
                        self.send.hurry(self.send.next_number(), HURRY);
                    }
                    self.state = State::Open;
                    self.tell(Event::Opened(opened), None);
                }
                Step::Fail(reason) => self.close(reason),
            }
        }
    }
}
