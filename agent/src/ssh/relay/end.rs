//! The end of a session: why, last words to both ends, and evidence that is complete.

use bytes::BytesMut;
use futures_util::stream::StreamExt;
use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::channels::{Channel, Content, Program, Way};
use super::lane::{Flight, land};
use super::{Relay, Retiring};
use crate::evidence::{Entry, EvidenceError, Recording};
use crate::session::{ChannelRefused, Session};
use crate::ssh::transport::{Transport, TransportError};
use crate::ssh::upstream::goodbye;
use crate::ssh::{SshEnd, message};

/// For what is under way and for last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// For a client to show what it was told and leave.
const SHOWN: Duration = Duration::from_secs(2);

/// For evidence to be complete.
const COMPLETION: Duration = Duration::from_secs(10);

/// Why the relay stops.
#[derive(Debug)]
pub(super) struct End {
    pub(super) reason: CloseReason,
    pub(super) message: Option<String>,
}

impl End {
    pub(super) fn new(reason: CloseReason, message: impl Into<Option<String>>) -> Self {
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

impl Relay {
    /// The end that messages going `way` come from is gone.
    pub(super) fn gone(&self, way: Way) -> End {
        match way {
            Way::Up if self.channels.any_opened() && self.channels.all_ended() => {
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
    pub(super) fn broken(&self, way: Way, error: &TransportError) -> End {
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

    /// Finishes what is under way, tells both ends, and sends what is left to send.
    pub(super) async fn say_farewell<R, U, T>(
        &mut self,
        mut end: End,
        user_read: &mut R,
        user_write: &mut U,
        target_write: &mut T,
    ) -> End
    where
        R: AsyncRead + Unpin,
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
            match timeout_at(deadline, flight).await {
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
        if self.tell_people(&end) {
            // A client that has nothing left leaves by itself, after it showed what it was told;
            // a goodbye at once would overtake that.
            let shown = async {
                let (_, output) = self.user.transport.buffers();
                write_out(user_write, output).await;
                let mut ignored = [0; 4096];
                while user_read
                    .read(&mut ignored)
                    .await
                    .is_ok_and(|length| length > 0)
                {}
            };
            // Whoever stays hears the goodbye.
            let _ = timeout(SHOWN, shown).await;
        }
        self.tell(&end);
        let flush = async {
            tokio::join!(
                flush(user_write, &mut self.user.transport),
                flush(target_write, &mut self.target.transport),
            );
        };
        // Whoever does not read any more does not hear it.
        let _ = timeout_at(deadline, flush).await;
        end
    }

    /// Tells people at a terminal something while the session goes on.
    pub(super) fn notify(&mut self, words: &str) {
        let line = format!("\r\npostern: {words}\r\n");
        for key in self.channels.keys() {
            if let Some(channel) = self.channels.get(key)
                && let Some(id) = hears(channel, |program| program.terminal.is_some())
                && channel.take_spare(&line)
            {
                self.record(Way::Down, key, Entry::Note(words.to_owned()));
                self.forward(Way::Down, message::stderr(id, &line).into());
            }
        }
    }

    /// A goodbye to both ends.
    fn tell(&mut self, end: &End) {
        let words = end.message.clone().unwrap_or_default();
        let (code, words) = match end.reason {
            CloseReason::Done | CloseReason::Client => (message::BY_APPLICATION, String::new()),
            CloseReason::Protocol => (message::PROTOCOL_ERROR, words),
            CloseReason::Target => (message::CONNECTION_LOST, words),
            _ if words.is_empty() => (
                message::BY_APPLICATION,
                "the session was ended by the agent".to_owned(),
            ),
            _ => (message::BY_APPLICATION, words),
        };
        // Nothing can be done about a goodbye that cannot be sent.
        let _ = self.user.transport.disconnect(code, &words);
        let _ = self
            .target
            .transport
            .disconnect(message::BY_APPLICATION, "the session ended");
    }

    /// When the end is ours, says why on the standard error of every shell and command that can
    /// take it, and closes those. Returns whether there was any.
    fn tell_people(&mut self, end: &End) -> bool {
        let Some(words) = &end.message else {
            return false;
        };
        if let CloseReason::Done
        | CloseReason::Client
        | CloseReason::Protocol
        | CloseReason::Target = end.reason
        {
            return false;
        }
        let line = format!("\r\npostern: {words}\r\n");
        let mut told = false;
        for key in self.channels.keys() {
            if let Some(channel) = self.channels.get(key)
                && let Some(id) = hears(channel, |program| program.readable)
                && channel.take_spare(&line)
            {
                let messages = [
                    message::stderr(id, &line),
                    message::plain(message::CHANNEL_EOF, id),
                    message::plain(message::CHANNEL_CLOSE, id),
                ];
                // The goodbye that follows says it too.
                told |= messages
                    .iter()
                    .all(|message| self.user.transport.send(message).is_ok());
            }
        }
        told
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
    pub(super) async fn complete(mut self, mut end: End) -> SshEnd {
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
            while !self.facts.is_empty() || !self.logging.is_empty() {
                self.log_facts();
                if let Some(logged) = self.logging.next().await {
                    logged?;
                }
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

/// The user's number of a channel whose program runs and is one that `may` hear us.
fn hears(channel: &Channel, may: impl Fn(&Program) -> bool) -> Option<u32> {
    let Content::Session(program) = &channel.content else {
        return None;
    };
    channel
        .user
        .filter(|_| program.started && may(program) && !channel.closed_down)
}

/// Writes what is left and closes.
pub(super) async fn close(session: &Session, retiring: Retiring) -> Result<(), EvidenceError> {
    for entry in retiring.last {
        retiring.recording.write(entry).await?;
    }
    session.close_recording(&retiring.recording).await
}

/// Sends all that waits and closes the stream, as far as the peer lets us.
async fn flush<W: AsyncWrite + Unpin>(stream: &mut W, transport: &mut Transport) {
    let (_, output) = transport.buffers();
    write_out(stream, output).await;
    // A peer that is gone is no failure of ours.
    let _ = stream.shutdown().await;
}

async fn write_out<W: AsyncWrite + Unpin>(stream: &mut W, output: &mut BytesMut) {
    while !output.is_empty() {
        match stream.write_buf(output).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
    }
    // As above.
    let _ = stream.flush().await;
}
