//! Requests: which pass, which want a decision first, and which are refused.

use bytes::Bytes;
use futures_util::FutureExt;
use postern_proto::audit::event::Channel as Subject;
use postern_proto::wire::Reader;

use super::channels::{Channel, Key, Program, Purpose, Reply, Terminal, Way};
use super::end::End;
use super::lane::Flight;
use super::message::{
    self, CHANNEL_FAILURE, REQUEST_FAILURE, REQUEST_SUCCESS, Request, text, text_field,
};
use super::switch::{Fault, Step, too_many_requests};
use super::{Asked, GlobalReply, Relay, What};
use crate::evidence::{Entry, Recording, RecordingKind};
use crate::session::ChannelRefused;
use crate::ssh::transport::TransportError;

/// Replies that one channel, or the session, may owe.
const MAX_OWED: usize = 256;

/// Listeners of one session.
const MAX_LISTENERS: usize = 64;

/// Signals of RFC 4254 section 6.10 by their POSIX numbers, for the exit status of a shell.
const SIGNALS: [(&str, u32); 13] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("KILL", 9),
    ("PIPE", 13),
    ("QUIT", 3),
    ("SEGV", 11),
    ("TERM", 15),
    ("USR1", 10),
    ("USR2", 12),
];

impl Relay {
    /// `CHANNEL_REQUEST`.
    pub(super) fn on_request(&mut self, way: Way, payload: Bytes) -> Result<Step, Fault> {
        let (recipient, reader) = message::recipient(&payload)?;
        let request = Request::parse(reader)?;
        if self.channel(way, recipient).is_none() {
            return Ok(Step::Done);
        }
        match way {
            Way::Up => self.on_user_request(recipient, &request, &payload),
            Way::Down => self.on_target_request(recipient, &request, &payload),
        }
    }

    fn on_user_request(
        &mut self,
        recipient: u32,
        request: &Request<'_>,
        payload: &Bytes,
    ) -> Result<Step, Fault> {
        let parked = !self.up.batch.messages.is_empty();
        let Some((key, channel)) = self.channel(Way::Up, recipient) else {
            return Ok(Step::Done);
        };
        let owed = channel.replies.len();
        let Some(program) = channel.program() else {
            // Streams have no requests of their own but OpenSSH's two harmless ones.
            let harmless = matches!(request.name, b"eow@openssh.com" | b"keepalive@openssh.com");
            return if harmless {
                self.pass_request(key, request, payload)
            } else {
                self.refuse_request(key, request.want_reply)
            };
        };
        if owed >= MAX_OWED {
            return Err(too_many_requests());
        }
        let mut fields = request.fields.clone();
        match request.name {
            b"pty-req" => {
                let terminal = Terminal {
                    term: text(fields.vec32("terminal", 256)?),
                    columns: fields.u32("columns")?,
                    rows: fields.u32("rows")?,
                };
                if !program.started {
                    program.terminal = Some(terminal);
                }
                self.pass_request(key, request, payload)
            }
            b"window-change" => {
                let (columns, rows) = (fields.u32("columns")?, fields.u32("rows")?);
                let started = program.started;
                if let Some(terminal) = &mut program.terminal {
                    terminal.columns = columns;
                    terminal.rows = rows;
                    if started {
                        self.record(Way::Up, key, Entry::Resize { columns, rows });
                    }
                }
                self.pass_request(key, request, payload)
            }
            b"env" | b"signal" | b"break" | b"eow@openssh.com" | b"keepalive@openssh.com" => {
                self.pass_request(key, request, payload)
            }
            b"shell" | b"exec" | b"subsystem" | b"auth-agent-req@openssh.com" if parked => {
                Ok(Step::Park(payload.clone()))
            }
            b"shell" | b"exec" | b"subsystem" if !program.started => {
                let (subject, recording, readable) = describe(request.name, &mut fields, program)?;
                fields.finish()?;
                let sftp = matches!(&subject, Subject::Subsystem { name } if name == "sftp");
                let asked = Asked {
                    key: Some(key),
                    payload: payload.clone(),
                    want_reply: request.want_reply,
                    what: What::Start { readable, sftp },
                };
                Ok(self.ask(asked, subject, Some(recording)))
            }
            b"auth-agent-req@openssh.com" => {
                let asked = Asked {
                    key: Some(key),
                    payload: payload.clone(),
                    want_reply: request.want_reply,
                    what: What::Agent,
                };
                Ok(self.ask(asked, Subject::AgentForward, None))
            }
            // X11, a second program, and whatever we do not know.
            _ => self.refuse_request(key, request.want_reply),
        }
    }

    fn on_target_request(
        &mut self,
        recipient: u32,
        request: &Request<'_>,
        payload: &Bytes,
    ) -> Result<Step, Fault> {
        let Some((key, channel)) = self.channel(Way::Down, recipient) else {
            return Ok(Step::Done);
        };
        let target = channel.target.unwrap_or(0);
        let is_session = channel.program().is_some();
        let mut fields = request.fields.clone();
        match request.name {
            b"exit-status" if is_session => {
                let status = fields.u32("status")?;
                self.exit_status = Some(status);
                self.record(Way::Down, key, Entry::Exit(Ok(status)));
            }
            b"exit-signal" if is_session => {
                let name = text(fields.vec32("signal", 64)?);
                let number = SIGNALS.iter().find(|(known, _)| *known == name);
                self.exit_status = Some(128 + number.map_or(0, |(_, number)| *number));
                self.record(Way::Down, key, Entry::Exit(Err(name)));
            }
            b"xon-xoff" | b"eow@openssh.com" => {}
            // `keepalive@openssh.com` asks whether we are there, and any answer says so: a user
            // whose network is away must not lose the session to sshd's ClientAliveInterval.
            _ => {
                if request.want_reply {
                    self.answer(Way::Down, &message::plain(CHANNEL_FAILURE, target))?;
                }
                return Ok(Step::Done);
            }
        }
        if request.want_reply
            && let Some(channel) = self.channels.get(key)
        {
            channel.asked_by_target += 1;
        }
        self.forward(Way::Down, payload.clone());
        Ok(Step::Done)
    }

    /// Passes a request of the user on; the target's reply will pass back.
    fn pass_request(
        &mut self,
        key: Key,
        request: &Request<'_>,
        payload: &Bytes,
    ) -> Result<Step, Fault> {
        self.owe(key, request.want_reply, Purpose::Plain)?;
        self.forward(Way::Up, payload.clone());
        Ok(Step::Done)
    }

    fn owe(&mut self, key: Key, want_reply: bool, purpose: Purpose) -> Result<(), Fault> {
        let Some(channel) = self.channels.get(key).filter(|_| want_reply) else {
            return Ok(());
        };
        if channel.replies.len() >= MAX_OWED {
            return Err(too_many_requests());
        }
        channel.replies.push_back(Reply::Target(purpose));
        Ok(())
    }

    /// Answers a request of the user with a failure, after the replies that came before it.
    fn refuse_request(&mut self, key: Key, want_reply: bool) -> Result<Step, Fault> {
        // Nothing follows the target's close.
        let asked = |channel: &&mut Channel| want_reply && !channel.closed_down;
        let Some(channel) = self.channels.get(key).filter(asked) else {
            return Ok(Step::Done);
        };
        let refusal: Bytes = message::plain(CHANNEL_FAILURE, channel.user.unwrap_or(0)).into();
        match channel.replies.len() {
            0 => self.forward(Way::Down, refusal),
            owed if owed < MAX_OWED => channel.replies.push_back(Reply::Ours(refusal)),
            _ => return Err(too_many_requests()),
        }
        Ok(Step::Done)
    }

    /// Asks for a decision; the way up waits for it.
    fn ask(&self, asked: Asked, subject: Subject, recording: Option<RecordingKind>) -> Step {
        let session = self.session.clone();
        Step::Wait(
            async move {
                let decided = session.open_channel(subject, recording).await;
                Flight::Decided(asked, decided)
            }
            .boxed(),
        )
    }

    /// What the way up waited for is decided.
    pub(super) fn on_asked(
        &mut self,
        asked: Asked,
        result: Result<Option<Recording>, ChannelRefused>,
    ) -> Result<(), Fault> {
        let Asked {
            key,
            payload,
            want_reply,
            what,
        } = asked;
        let recording = match result {
            Ok(recording) => recording,
            Err(ChannelRefused::Evidence(error)) => {
                return Err(End::from(error).into());
            }
            Err(ChannelRefused::Denied(denial)) => {
                return match key {
                    Some(key) => {
                        if let What::Start { .. } = what {
                            self.explain(key, &denial.message, denial.hint.as_deref());
                        }
                        self.refuse_request(key, want_reply).map(drop)
                    }
                    None => self.refuse_global(want_reply),
                };
            }
        };
        match what {
            What::Start { readable, sftp } => {
                let key = key.unwrap_or_default();
                self.owe(key, want_reply, Purpose::Start)?;
                if let Some(channel) = self.channels.get(key) {
                    channel.recording = recording;
                    if let Some(program) = channel.program() {
                        program.started = true;
                        program.readable = readable;
                        program.sftp = sftp.then(Box::default);
                    }
                }
            }
            What::Agent => {
                self.owe(key.unwrap_or_default(), want_reply, Purpose::Plain)?;
                self.agent_lent = true;
            }
            What::Listen { host, port } => {
                if want_reply {
                    self.replies.push_back(GlobalReply::Listen { host, port });
                } else {
                    self.listeners.insert(port, host);
                }
            }
        }
        self.forward(Way::Up, payload);
        Ok(())
    }

    /// Says on a channel's standard error why nothing starts in it.
    fn explain(&mut self, key: Key, why: &str, hint: Option<&str>) {
        let hint = hint.map_or_else(String::new, |hint| format!("hint: {hint}\r\n"));
        let line = format!("postern: {why}\r\n{hint}");
        if let Some(channel) = self.channels.get(key)
            && !channel.closed_down
            && let Some(id) = channel.user
            && channel.take_spare(&line)
        {
            self.forward(Way::Down, message::stderr(id, &line).into());
        }
    }

    /// `GLOBAL_REQUEST`.
    pub(super) fn on_global_request(&mut self, way: Way, payload: Bytes) -> Result<Step, Fault> {
        let mut reader = Reader::new(&payload);
        reader.u8("message")?;
        let Request {
            name,
            want_reply,
            mut fields,
        } = Request::parse(reader)?;
        if way == Way::Down {
            // Host keys of the target are not ours to announce, and keepalives are answered here.
            if want_reply {
                self.answer(Way::Down, &[REQUEST_FAILURE])?;
            }
            return Ok(Step::Done);
        }
        if self.replies.len() >= MAX_OWED {
            return Err(too_many_requests());
        }
        match name {
            b"keepalive@openssh.com" | b"no-more-sessions@openssh.com" => {
                if want_reply {
                    self.replies.push_back(GlobalReply::Plain);
                }
                self.forward(Way::Up, payload);
            }
            b"tcpip-forward" if self.up.batch.messages.is_empty() => {
                let host = text_field(&mut fields)?;
                let port = fields.u32("port")?;
                fields.finish()?;
                let number = u16::try_from(port);
                // Without a reply nobody would know which port 0 became.
                let useless = port == 0 && !want_reply;
                let (Ok(number), false, true) =
                    (number, useless, self.listeners.len() < MAX_LISTENERS)
                else {
                    return self.refuse_global(want_reply).map(|()| Step::Done);
                };
                let subject = Subject::Reverse {
                    host: host.clone(),
                    port: number,
                };
                let asked = Asked {
                    key: None,
                    payload,
                    want_reply,
                    what: What::Listen { host, port },
                };
                return Ok(self.ask(asked, subject, None));
            }
            b"tcpip-forward" => return Ok(Step::Park(payload)),
            b"cancel-tcpip-forward" => {
                text_field(&mut fields)?;
                let port = fields.u32("port")?;
                if want_reply {
                    self.replies.push_back(GlobalReply::Unlisten { port });
                } else {
                    self.listeners.remove(&port);
                }
                self.forward(Way::Up, payload);
            }
            // Unix sockets, proofs of the target's host keys, and whatever we do not know.
            _ => self.refuse_global(want_reply)?,
        }
        Ok(Step::Done)
    }

    fn refuse_global(&mut self, want_reply: bool) -> Result<(), Fault> {
        if want_reply {
            let refusal = Bytes::from_static(&[REQUEST_FAILURE]);
            if self.replies.is_empty() {
                self.forward(Way::Down, refusal);
            } else {
                self.replies.push_back(GlobalReply::Ours(refusal));
            }
        }
        Ok(())
    }

    /// An answer to a global request.
    pub(super) fn on_global_reply(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        // The target's global requests never reach the user, so there is nothing to answer.
        if way == Way::Up {
            return Ok(());
        }
        let granted = payload.first() == Some(&REQUEST_SUCCESS);
        match self.replies.pop_front() {
            Some(GlobalReply::Plain) => {}
            Some(GlobalReply::Listen { host, port }) if granted => {
                let mut reader = Reader::new(&payload);
                reader.u8("message")?;
                // RFC 4254 section 7.1: the port is named only when the target chose it.
                let port = if port == 0 { reader.u32("port")? } else { port };
                self.listeners.insert(port, host);
            }
            Some(GlobalReply::Unlisten { port }) if granted => {
                self.listeners.remove(&port);
            }
            Some(GlobalReply::Listen { .. } | GlobalReply::Unlisten { .. }) => {}
            Some(GlobalReply::Ours(_)) | None => {
                return Err(TransportError::Framing("reply").into());
            }
        }
        self.forward(Way::Down, payload);
        while let Some(GlobalReply::Ours(_)) = self.replies.front() {
            if let Some(GlobalReply::Ours(ours)) = self.replies.pop_front() {
                self.forward(Way::Down, ours);
            }
        }
        Ok(())
    }
}

/// What a program request asks for: the subject of the decision, its recording, and whether a
/// person may read its standard error.
fn describe(
    name: &[u8],
    fields: &mut Reader<'_>,
    program: &Program,
) -> Result<(Subject, RecordingKind, bool), Fault> {
    let on_terminal = program.terminal.is_some();
    if name == b"subsystem" {
        let name = text_field(fields)?;
        let recording = RecordingKind::Streams {
            command: name.clone(),
        };
        return Ok((Subject::Subsystem { name }, recording, false));
    }
    let command = match name {
        b"exec" => Some(text_field(fields)?),
        _ => None,
    };
    let subject = match &command {
        Some(line) => Subject::Command {
            line: line.clone(),
            terminal: on_terminal,
        },
        None => Subject::Shell {
            terminal: on_terminal,
        },
    };
    let recording = match &program.terminal {
        Some(terminal) => RecordingKind::Terminal {
            columns: terminal.columns,
            rows: terminal.rows,
            term: terminal.term.clone(),
            command,
        },
        None => RecordingKind::Streams {
            command: command.unwrap_or_else(|| "shell".to_owned()),
        },
    };
    Ok((subject, recording, true))
}
