//! What arrives: connections come and go, messages are put in order and understood.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    ChannelError, CloseReason, DataChannel, Event, GROW_AFTER, Handshake, LEAST_PAYLOAD, Opened,
    Session, State, Step,
};
use crate::ssm::Role;
use crate::ssm::channel::handshake::ClientHandshake;
use crate::ssm::message::{Message, MessageKind};
use crate::ssm::payload::{
    Acknowledge, ChannelClosed, Flag, OpenDataChannel, PayloadKind, SecretText, TerminalSize,
    exit_code,
};
use crate::ssm::reliable::Arrival;

impl DataChannel {
    /// A WebSocket is up. `token` is that of StartSession, later of ResumeSession; `unix` is the
    /// time since 1970 at `now`. Everything unacknowledged goes out again behind the opening
    /// text.
    pub fn handle_connected(&mut self, now: Instant, unix: Duration, token: SecretText) {
        self.ids.set_clock(now, unix);
        let request_id = self.ids.message_id().to_string();
        let (client_instance_id, client_id, client_version) = match self.role {
            Role::Client => (
                None,
                self.config.id.clone(),
                Some(self.config.version.clone()),
            ),
            Role::Agent => (Some(self.config.id.clone()), String::new(), None),
        };
        let open = OpenDataChannel {
            message_schema_version: "1.0".into(),
            request_id,
            token_value: token,
            client_instance_id,
            client_id,
            client_version,
        };
        self.text = Some(open.to_text());
        self.connected = true;
        self.heard = now;
        self.set_peer_away(false);
        self.send.resend_all();
        if self.state == State::Opening {
            self.handshake_due = Some(now + self.config.handshake_time);
        }
    }

    /// The WebSocket is gone, however. Nothing is given out until the next
    /// [`Self::handle_connected`], no deadline runs, no data is lost; writes go on to the window.
    pub fn handle_disconnected(&mut self) {
        if !self.connected {
            return;
        }
        self.connected = false;
        self.text = None;
        self.unpad();
        if !self.send.is_empty() {
            // What was in flight may be why: ask less of the path for a while.
            self.payload = (self.payload / 2).max(LEAST_PAYLOAD);
            self.settled = 0;
        }
        self.send.handle_disconnected();
    }

    /// A frame arrived. An error says why it was dropped; the channel goes on.
    pub fn handle_message(&mut self, now: Instant, frame: &Bytes) -> Result<(), ChannelError> {
        if self.is_closed() {
            return Ok(());
        }
        let message = Message::decode(frame)?;
        let (incoming, outgoing) = match self.role {
            Role::Client => (MessageKind::OutputStreamData, MessageKind::InputStreamData),
            Role::Agent => (MessageKind::InputStreamData, MessageKind::OutputStreamData),
        };
        match message.kind {
            MessageKind::Acknowledge => self.handle_acknowledge(now, &message.payload),
            MessageKind::ChannelClosed => {
                // A malformed one is the end all the same.
                let closed = ChannelClosed::from_payload(&message.payload).unwrap_or_default();
                self.close(CloseReason::Service(closed.output.unwrap_or_default()));
                Ok(())
            }
            MessageKind::PausePublication => {
                self.set_peer_away(true);
                Ok(())
            }
            MessageKind::StartPublication => {
                if self.peer_away {
                    self.send.resend(now);
                }
                self.set_peer_away(false);
                Ok(())
            }
            kind if kind == incoming => self.handle_numbered(now, message),
            kind if kind == outgoing => Err(ChannelError::WrongSide(kind)),
            _ => Ok(()),
        }
    }

    fn handle_acknowledge(&mut self, now: Instant, payload: &[u8]) -> Result<(), ChannelError> {
        let number = Acknowledge::from_payload(payload)?.sequence;
        let settled = self.send.acknowledge(number, now)?;
        self.heard = now;
        self.set_peer_away(false);
        if settled > 0
            && self
                .padded
                .as_ref()
                .is_some_and(|(padded, _)| *padded == number)
        {
            // The path lets long messages through.
            self.padded = None;
            self.payload_limit = self.config.payload;
            self.payload = self.payload_limit;
        }
        self.settled += settled;
        if self.settled >= GROW_AFTER {
            self.settled = 0;
            self.payload = (self.payload * 2).min(self.payload_limit);
        }
        Ok(())
    }

    fn handle_numbered(&mut self, now: Instant, message: Message) -> Result<(), ChannelError> {
        self.heard = now;
        self.set_peer_away(false);
        let (id, number) = (message.id, message.sequence);
        let has_room = self.has_room_for(&message);
        match self.receive.handle(message, has_room) {
            Arrival::Next(message) => {
                self.process(now, message, Some((id, number)));
                while !self.is_closed() {
                    let Some(message) = self.receive.take_next() else {
                        break;
                    };
                    self.process(now, message, None);
                }
                Ok(())
            }
            Arrival::Kept => {
                self.acknowledge(id, number);
                Ok(())
            }
            Arrival::Repeated => {
                // What waits for its owner is acknowledged when the owner takes it.
                let waits = |waiting: &super::Waiting| {
                    waiting
                        .acknowledges
                        .is_some_and(|(_, waits)| waits == number)
                };
                if !self.events.iter().any(waits) {
                    self.acknowledge(id, number);
                }
                Ok(())
            }
            Arrival::Refused => Err(ChannelError::NoRoom(number)),
        }
    }

    /// An SSM Agent takes nothing but the handshake before the session is open, and says nothing
    /// about it: its client sends it again.
    fn has_room_for(&self, message: &Message) -> bool {
        let is_early = self.role == Role::Agent
            && self.state == State::Opening
            && !matches!(
                message.payload_kind,
                PayloadKind::HandshakeResponse | PayloadKind::ChallengeResponse
            );
        !is_early && self.event_bytes < 2 * self.config.event_bytes
    }

    fn process(
        &mut self,
        now: Instant,
        message: Message,
        acknowledges: Option<(crate::ssm::message::MessageId, u64)>,
    ) {
        let payload = message.payload;
        let event = match message.payload_kind {
            kind @ (PayloadKind::HandshakeRequest
            | PayloadKind::HandshakeResponse
            | PayloadKind::HandshakeComplete
            | PayloadKind::ChallengeRequest
            | PayloadKind::ChallengeResponse) => {
                self.process_handshake(now, kind, &payload);
                None
            }
            kind @ (PayloadKind::Output | PayloadKind::Stderr | PayloadKind::ExitCode) => {
                self.process_data(kind, payload)
            }
            PayloadKind::Error => Some(Event::Error(payload)),
            PayloadKind::Size => TerminalSize::from_payload(&payload)
                .ok()
                .map(Event::Resized),
            PayloadKind::Flag => Flag::from_payload(&payload).ok().map(Event::Flag),
            PayloadKind::None | PayloadKind::Parameter | PayloadKind::Unknown(_) => None,
        };
        match event {
            Some(event) if !self.is_closed() => self.tell(event, acknowledges),
            _ => {
                if let Some((id, number)) = acknowledges {
                    self.acknowledge(id, number);
                }
            }
        }
    }

    fn process_handshake(&mut self, now: Instant, kind: PayloadKind, payload: &[u8]) {
        if self.state != State::Opening {
            // The session runs: a second handshake would change what it is.
            return self.close(CloseReason::Violation("a handshake in a running session"));
        }
        self.handshake_due = Some(now + self.config.handshake_time);
        let elapsed = now.saturating_duration_since(self.started);
        let steps = match &mut self.handshake {
            Handshake::Client(client) => client.handle(&self.config.version, kind, payload),
            Handshake::Agent(agent) => agent.handle(kind, payload, elapsed),
        };
        self.apply(now, steps);
    }

    fn process_data(&mut self, kind: PayloadKind, payload: Bytes) -> Option<Event> {
        if self.state == State::Opening {
            self.open_without_handshake();
        }
        if self.is_closed() {
            return None;
        }
        let payload = match &self.cipher {
            None => payload,
            Some(cipher) => match cipher.open(&payload) {
                Ok(payload) => payload,
                Err(_) => {
                    self.close(CloseReason::Encryption);
                    return None;
                }
            },
        };
        match kind {
            PayloadKind::ExitCode => exit_code(&payload).ok().map(Event::Exit),
            _ if payload.is_empty() => None,
            PayloadKind::Stderr => Some(Event::Stderr(payload)),
            _ => Some(Event::Data(payload)),
        }
    }

    /// Data as the very first message: a shell or a command with a terminal.
    pub(super) fn open_without_handshake(&mut self) {
        match &mut self.handshake {
            Handshake::Client(client @ ClientHandshake::Start) => {
                *client = ClientHandshake::Done;
                let opened = Opened {
                    session: Session::Unnamed,
                    port: None,
                    peer_version: None,
                    notice: String::new(),
                    is_encrypted: false,
                };
                self.handshake_due = None;
                self.state = State::Open;
                self.tell(Event::Opened(opened), None);
            }
            _ => self.close(CloseReason::Violation(
                "data before the end of the handshake",
            )),
        }
    }

    fn set_peer_away(&mut self, away: bool) {
        self.peer_away = away;
        self.send.set_paused(away);
    }

    pub(super) fn apply_key(&mut self, now: Instant, steps: Vec<Step>) {
        if !steps.is_empty() {
            self.handshake_due = Some(now + self.config.handshake_time);
            self.apply(now, steps);
        }
    }
}
