//! Channels opening and going: decisions before, recordings complete after.

use bytes::Bytes;
use futures_util::FutureExt;
use postern_proto::audit::event::{Channel as Subject, Fact};

use super::channels::{Channel, Content, Key, Program, Way};
use super::end::{End, close};
use super::lane::Lane;
use super::switch::Fault;
use super::{Decided, Relay, Retiring};
use crate::evidence::{Entry, Recording, RecordingKind};
use crate::session::ChannelRefused;
use crate::ssh::message::{self, Confirmation, Open};
use crate::ssh::transport::TransportError;

/// Channels of one session that are open at once.
const MAX_CHANNELS: usize = 512;

impl Relay {
    pub(super) fn on_open(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let mut open = Open::parse(&payload)?;
        let sender = open.sender;
        let refuse = |reason, why: &str| message::open_failure(sender, reason, why);
        if self.channels.len() >= MAX_CHANNELS {
            let answer = refuse(message::SHORTAGE, "too many channels in this session");
            return self.answer(way, &answer);
        }
        let (subject, destination) = match (way, open.kind.as_str(), &open.destination) {
            (Way::Up, "session", _) => (None, String::new()),
            (Way::Up, "direct-tcpip", Some((host, port))) => match u16::try_from(*port) {
                Ok(port) => (
                    Some(Subject::Direct {
                        host: host.clone(),
                        port,
                    }),
                    format!("{host}:{port}"),
                ),
                Err(_) => {
                    let answer = refuse(message::PROHIBITED, "no such port");
                    return self.answer(way, &answer);
                }
            },
            (Way::Down, "forwarded-tcpip", Some((host, port)))
                if self.listeners.contains_key(port) =>
            {
                (
                    Some(Subject::Reverse {
                        host: host.clone(),
                        port: u16::try_from(*port).unwrap_or(0),
                    }),
                    format!("{host}:{port}"),
                )
            }
            (Way::Down, "auth-agent@openssh.com", _) if self.agent_lent => {
                (Some(Subject::AgentForward), "ssh-agent".to_owned())
            }
            (Way::Up, "direct-streamlocal@openssh.com", _) => {
                let answer = refuse(message::PROHIBITED, "postern does not forward Unix sockets");
                return self.answer(way, &answer);
            }
            (Way::Down, "forwarded-tcpip" | "auth-agent@openssh.com" | "x11", _) => {
                let answer = refuse(message::PROHIBITED, "this was not granted");
                return self.answer(way, &answer);
            }
            _ => {
                let answer = refuse(message::UNKNOWN_TYPE, "this channel type is not offered");
                return self.answer(way, &answer);
            }
        };
        let content = match subject {
            None => Content::Session(Program::default()),
            Some(_) => Content::stream(),
        };
        let (user, target) = match way {
            Way::Up => (Some(open.sender), None),
            Way::Down => (None, Some(open.sender)),
        };
        let mut channel = Channel::new(user, target, content);
        if subject.is_none() {
            channel.kept = open.keep_spare();
            channel.spare = channel.kept;
        }
        let Some(key) = self.channels.insert(channel) else {
            return Err(TransportError::Framing("channel number").into());
        };
        match subject {
            // The channel alone does nothing: the decision is due when a program is asked for.
            None => {
                if let Some(channel) = self.channels.get(key) {
                    channel.passed = true;
                }
                self.forward(way, open.passed);
            }
            Some(subject) => {
                let session = self.session.clone();
                let recording = RecordingKind::Flow { destination };
                self.decisions.push(
                    async move {
                        Decided {
                            key,
                            way,
                            payload: open.passed,
                            result: session.open_channel(subject, Some(recording)).await,
                        }
                    }
                    .boxed(),
                );
            }
        }
        Ok(())
    }

    /// A channel that wanted to open may, or may not.
    pub(super) fn on_decided(&mut self, decided: Decided) -> Result<(), End> {
        let Decided {
            key,
            way,
            payload,
            result,
        } = decided;
        let refused = match result {
            Ok(recording) => {
                if let Some(channel) = self.channels.get(key) {
                    channel.recording = recording;
                    channel.passed = true;
                }
                return self.pass(way, vec![payload]);
            }
            Err(ChannelRefused::Evidence(error)) => return Err(error.into()),
            Err(ChannelRefused::Denied(denial)) => denial.message,
        };
        let Some(channel) = self.channels.remove(key) else {
            return Ok(());
        };
        let id = match way {
            Way::Up => channel.user,
            Way::Down => channel.target,
        };
        let answer = message::open_failure(id.unwrap_or(0), message::PROHIBITED, &refused);
        self.answer(way, &answer)
            .map_err(|fault| self.end(way, fault))
    }

    pub(super) fn on_confirmation(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let confirmation = Confirmation::parse(&payload)?;
        let Some(key) = self.channels.find(way, confirmation.recipient) else {
            return Err(TransportError::Framing("channel number").into());
        };
        if !self.channels.confirm(key, way, confirmation.sender) {
            return Err(TransportError::Framing("channel number").into());
        }
        self.forward(way, confirmation.passed);
        Ok(())
    }

    pub(super) fn on_open_failure(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, _) = message::recipient(&payload)?;
        let key = self.channels.find(way, recipient);
        let waiting = key
            .and_then(|key| self.channels.get(key))
            .is_some_and(|channel| channel.passed && !channel.open());
        let (Some(key), true) = (key, waiting) else {
            return Err(TransportError::Framing("channel number").into());
        };
        self.forward(way, payload);
        self.retire(key);
        Ok(())
    }

    /// Forgets a channel; its recording is closed once all that was handed to it is written.
    pub(super) fn retire(&mut self, key: Key) {
        let Some(channel) = self.channels.remove(key) else {
            return;
        };
        let last: Vec<Entry> = match channel.content {
            Content::Stream(mut flow) => flow.note().into_iter().collect(),
            Content::Session(Program {
                sftp: Some(sftp), ..
            }) => {
                let done = sftp.finish();
                self.facts
                    .extend(done.iter().cloned().map(Fact::FileOperation));
                done.into_iter().map(Entry::File).collect()
            }
            Content::Session(_) => vec![],
        };
        if let Some(recording) = channel.recording {
            self.retire_recording(recording, last);
        }
    }

    pub(super) fn retire_recording(&mut self, recording: Recording, last: Vec<Entry>) {
        let after = |lane: &Lane| lane.launched + u64::from(!lane.batch.entries.is_empty());
        self.retiring.push(Retiring {
            recording,
            last,
            after_up: after(&self.up),
            after_down: after(&self.down),
        });
        self.close_retired();
    }

    pub(super) fn close_retired(&mut self) {
        let (up, down) = (self.up.landed, self.down.landed);
        let ready = self
            .retiring
            .extract_if(.., |r| r.after_up <= up && r.after_down <= down);
        for retiring in ready {
            let session = self.session.clone();
            self.closing
                .push(async move { close(&session, retiring).await }.boxed());
        }
    }
}
