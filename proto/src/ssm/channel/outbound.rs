//! What goes out: commands become messages, messages wait for their turn.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::handshake::{AgentHandshake, Key};
use super::{
    CloseReason, CommandError, DataChannel, Event, Handshake, LEAST_PAYLOAD, Opened,
    PADDED_RESENDS, Plan, Session, State, Transmit,
};
use crate::ssm::Role;

use crate::ssm::crypt::SessionKey;
use crate::ssm::message::{Message, MessageKind};
use crate::ssm::payload::{
    Acknowledge, AgentSessionState, Flag, PayloadKind, TerminalSize, exit_code_payload,
};

impl DataChannel {
    /// Sends bytes of the stream: input of a client, standard output of an SSM Agent. Answers how
    /// many were taken; less than all means that [`Self::room`] is used up.
    pub fn write(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, CommandError> {
        self.write_as(now, PayloadKind::Output, bytes)
    }

    /// SSM Agent: sends standard error apart, like [`Self::write`].
    pub fn write_stderr(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, CommandError> {
        self.must_be(Role::Agent)?;
        self.write_as(now, PayloadKind::Stderr, bytes)
    }

    /// SSM Agent: sends the exit code of a command.
    pub fn exit(&mut self, now: Instant, code: i32) -> Result<(), CommandError> {
        self.must_be(Role::Agent)?;
        self.must_be_open()?;
        self.seal_and_push(now, PayloadKind::ExitCode, &exit_code_payload(code));
        Ok(())
    }

    /// Client: tells the size of its terminal. Of several that wait for room the last goes out.
    pub fn resize(&mut self, size: TerminalSize) -> Result<(), CommandError> {
        self.must_be(Role::Client)?;
        self.must_be_open()?;
        self.size = Some(size);
        Ok(())
    }

    /// Sends a flag of a port session.
    pub fn flag(&mut self, now: Instant, flag: Flag) -> Result<(), CommandError> {
        self.must_be_open()?;
        self.push(now, PayloadKind::Flag, flag.payload());
        Ok(())
    }

    /// Client: asks the SSM Agent to end the session. Says whether that SSM Agent understands;
    /// the API call TerminateSession is due in any case.
    pub fn terminate(&mut self, now: Instant) -> bool {
        self.features.understands_terminate() && self.flag(now, Flag::TerminateSession).is_ok()
    }

    /// SSM Agent: starts the handshake. Once.
    pub fn begin(&mut self, now: Instant, plan: Plan) -> Result<(), CommandError> {
        let Handshake::Agent(agent) = &mut self.handshake else {
            return Err(CommandError::WrongRole);
        };
        self.started = now;
        let steps = agent.begin(&self.config.version, plan);
        self.apply(now, steps);
        Ok(())
    }

    /// SSM Agent: opens a session that has no handshake.
    pub fn begin_unnamed(&mut self) -> Result<(), CommandError> {
        let Handshake::Agent(agent) = &mut self.handshake else {
            return Err(CommandError::WrongRole);
        };
        if matches!(agent, AgentHandshake::Start) && self.state == State::Opening {
            *agent = AgentHandshake::Done;
            self.state = State::Open;
            self.handshake_due = None;
            let opened = Opened {
                session: Session::Unnamed,
                port: None,
                peer_version: None,
                notice: String::new(),
                is_encrypted: false,
            };
            self.tell(Event::Opened(opened), None);
        }
        Ok(())
    }

    /// SSM Agent: tells the service `Connected` or `Terminating`.
    pub fn tell_state(
        &mut self,
        now: Instant,
        session_id: &str,
        state: &str,
    ) -> Result<(), CommandError> {
        self.must_be(Role::Agent)?;
        let body = AgentSessionState {
            schema_version: 1,
            session_state: state.into(),
            session_id: session_id.into(),
        };
        let message = self.unnumbered(now, MessageKind::AgentSessionState, body.payload());
        self.plain.push_back(message);
        Ok(())
    }

    /// Answers [`Event::KeyNeeded`] or [`Event::KeyOffered`] with the data key. `ciphertext` is
    /// the client's, from GenerateDataKey; an SSM Agent has none to give.
    pub fn provide_key(&mut self, now: Instant, key: &SessionKey, ciphertext: &[u8]) {
        let first_nonce = self.ids.random().first_chunk().copied().unwrap_or_default();
        let mut challenge = [0; 64];
        for half in challenge.chunks_mut(32) {
            half.copy_from_slice(&self.ids.random());
        }
        let steps = match &mut self.handshake {
            Handshake::Client(client) => {
                let key = Key::Provided {
                    key,
                    ciphertext,
                    first_nonce,
                };
                client.handle_key(&self.config.version, key)
            }
            Handshake::Agent(agent) => agent.handle_key(key, first_nonce, challenge),
        };
        self.apply_key(now, steps);
    }

    /// Client: there is no key. The SSM Agent is told the reason and ends the session; an SSM
    /// Agent ends it itself.
    pub fn refuse_key(&mut self, now: Instant, reason: &str) {
        match &mut self.handshake {
            Handshake::Client(client) => {
                let steps = client.handle_key(&self.config.version, Key::Refused(reason.into()));
                self.apply_key(now, steps);
            }
            Handshake::Agent(_) => self.close(CloseReason::Encryption),
        }
    }

    /// The next frame to send now. `None` while not connected.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if !self.connected {
            return None;
        }
        if let Some(text) = self.text.take() {
            return Some(Transmit::Text(text));
        }
        if let Some((id, number)) = self.acks.pop_front() {
            let kind = match self.role {
                Role::Client => MessageKind::OutputStreamData,
                Role::Agent => MessageKind::InputStreamData,
            };
            let payload = Acknowledge::payload(kind, id, number);
            let message = self.unnumbered(now, MessageKind::Acknowledge, payload);
            return Some(Transmit::Binary(message));
        }
        if let Some(message) = self.plain.pop_front() {
            return Some(Transmit::Binary(message));
        }
        if self.is_closed() {
            return None;
        }
        if self.send.room() > 0
            && let Some(size) = self.size.take()
        {
            self.push(now, PayloadKind::Size, size.payload());
        }
        if self.send.probes() >= PADDED_RESENDS {
            self.unpad();
        }
        self.send.poll_transmit(now).map(Transmit::Binary)
    }

    fn write_as(
        &mut self,
        now: Instant,
        kind: PayloadKind,
        bytes: &[u8],
    ) -> Result<usize, CommandError> {
        self.must_be_open()?;
        let mut left = bytes.get(..bytes.len().min(self.room())).unwrap_or(bytes);
        let taken = left.len();
        while let Some((chunk, rest)) = left.split_at_checked(left.len().min(self.payload)) {
            if chunk.is_empty() {
                break;
            }
            self.seal_and_push(now, kind, chunk);
            left = rest;
        }
        Ok(taken)
    }

    fn seal_and_push(&mut self, now: Instant, kind: PayloadKind, plain: &[u8]) {
        let payload = match &mut self.cipher {
            None => Bytes::copy_from_slice(plain),
            Some(cipher) => match cipher.seal(plain) {
                Ok(sealed) => sealed,
                Err(_) => return self.close(CloseReason::Encryption),
            },
        };
        self.push(now, kind, payload);
    }

    pub(super) fn push(&mut self, now: Instant, kind: PayloadKind, payload: Bytes) {
        if self.send.is_empty() {
            self.heard = self.heard.max(now);
        }
        let number = self.send.next_number();
        let frame = self.numbered(now, number, kind, payload.clone());
        let pads = kind == PayloadKind::HandshakeResponse && self.config.payload > LEAST_PAYLOAD;
        if pads && payload.len() < self.config.payload {
            let mut long = BytesMut::from(&*payload);
            long.resize(self.config.payload, b' ');
            let long = self.numbered(now, number, kind, long.freeze());
            self.padded = Some((number, frame));
            return self.send.push(long);
        }
        self.send.push(frame);
    }

    /// Sends the handshake response without padding from now on: maybe the path does not let it
    /// through. What it says is the same, so it does not matter which of them arrives.
    pub(super) fn unpad(&mut self) {
        if let Some((number, bare)) = self.padded.take() {
            self.send.replace(number, bare);
        }
    }

    fn numbered(&mut self, now: Instant, number: u64, kind: PayloadKind, payload: Bytes) -> Bytes {
        let side = match self.role {
            Role::Client => MessageKind::InputStreamData,
            Role::Agent => MessageKind::OutputStreamData,
        };
        let (id, created) = (self.ids.message_id(), self.ids.created(now));
        Message::numbered(side, number, id, created, kind, payload).encode()
    }

    fn unnumbered(&mut self, now: Instant, kind: MessageKind, payload: Bytes) -> Bytes {
        let (id, created) = (self.ids.message_id(), self.ids.created(now));
        Message::unnumbered(kind, id, created, payload).encode()
    }

    fn must_be(&self, role: Role) -> Result<(), CommandError> {
        if self.role != role {
            return Err(CommandError::WrongRole);
        }
        Ok(())
    }

    fn must_be_open(&self) -> Result<(), CommandError> {
        match self.state {
            State::Open => Ok(()),
            State::Opening => Err(CommandError::NotOpen),
            State::Closed => Err(CommandError::Closed),
        }
    }
}
