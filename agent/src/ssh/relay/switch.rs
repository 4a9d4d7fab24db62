//! Moving messages: from one transport into a batch, through the recordings, to the other.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use postern_proto::gateway::message::CloseReason;
use postern_proto::wire::WireError;

use super::channels::{Channel, Key, Way};
use super::end::End;
use super::lane::{Batch, Flight, Lane, Side};
use super::message::{CHANNEL_DATA, CHANNEL_EXTENDED_DATA, CHANNEL_WINDOW_ADJUST};
use super::{BATCH, HARD_BACKLOG, Relay, SOFT_BACKLOG};
use crate::evidence::{Entry, Recording};
use crate::ssh::transport::TransportError;

/// Facts that wait for the log before nothing more passes.
const MAX_FACTS: usize = 256;

/// What becomes of a message.
pub(super) enum Step {
    /// It was dealt with.
    Done,
    /// It waits for a decision; nothing behind it is looked at.
    Wait(futures_util::future::BoxFuture<'static, Flight>),
    /// It must wait until the batch before it has passed.
    Park(Bytes),
}

impl Way {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

impl Relay {
    pub(super) fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// Where messages going `way` come from.
    pub(super) fn source(&mut self, way: Way) -> &mut Side {
        match way {
            Way::Up => &mut self.user,
            Way::Down => &mut self.target,
        }
    }

    fn destination(&mut self, way: Way) -> &mut Side {
        self.source(way.other())
    }

    /// Moves whatever can be moved in both ways.
    pub(super) fn advance(&mut self) -> Result<(), End> {
        for way in [Way::Up, Way::Down] {
            self.pump(way)?;
        }
        self.log_facts();
        if self.once && self.is_done() {
            return Err(End::new(CloseReason::Done, None));
        }
        Ok(())
    }

    /// Whether the target has closed every channel, and the user was sent all of them.
    fn is_done(&self) -> bool {
        self.channels.any_opened()
            && self.channels.all_ended()
            && self.down.is_idle()
            && self.user.transport.backlog() == 0
            && !self.user.unflushed
    }

    fn pump(&mut self, way: Way) -> Result<(), End> {
        while self.lane(way).may_parse() && self.room(way) {
            let ahead = self.lane(way).flight.is_some();
            let payload = match self.lane(way).parked.take() {
                Some(payload) => Ok(Some(payload)),
                None => self.source(way).transport.next(),
            };
            let step = match payload {
                // What may change something waits until all before it has passed.
                Ok(Some(payload)) if ahead && !is_content(&payload) => {
                    self.lane(way).parked = Some(payload);
                    break;
                }
                Ok(Some(payload)) => {
                    self.lane(way).batch.bytes += payload.len();
                    self.handle(way, payload)
                }
                // Only once all of it has passed.
                Ok(None) if self.lane(way).ended && !ahead => Err(Fault::End(self.gone(way))),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            match step {
                Ok(Step::Done) if self.lane(way).batch.bytes <= BATCH => {}
                Ok(Step::Done) if ahead => break,
                Ok(Step::Done) => self.launch(way)?,
                Ok(Step::Wait(flight)) => {
                    let lane = self.lane(way);
                    lane.launched += 1;
                    lane.decides = true;
                    lane.flight = Some(flight);
                }
                Ok(Step::Park(payload)) => {
                    self.lane(way).parked = Some(payload);
                    self.launch(way)?;
                }
                Err(fault) => {
                    self.lane(way).fault = Some(self.end(way, fault));
                    break;
                }
            }
        }
        if self.lane(way).flight.is_none() {
            self.launch(way)?;
        }
        // What came before it passes first.
        let lane = self.lane(way);
        match lane.fault.take_if(|_| lane.flight.is_none()) {
            Some(end) => Err(end),
            None => Ok(()),
        }
    }

    /// Whether the receiving end takes more.
    fn room(&mut self, way: Way) -> bool {
        if self.facts.len() >= MAX_FACTS {
            return false;
        }
        // Answers of ours wait there too: somebody who asks and does not read is not served.
        let sender = &self.source(way).transport;
        if sender.backlog() >= HARD_BACKLOG {
            return false;
        }
        // Ends that do not read while they write would wait for each other through us. And an
        // exchange of keys is over only when the sender's part of it is read, which stands behind
        // what it sent before: with both ends at it, nothing else would move.
        let stuck = sender.backlog() >= SOFT_BACKLOG || sender.exchanging();
        let limit = if stuck { HARD_BACKLOG } else { SOFT_BACKLOG };
        self.destination(way).transport.backlog() < limit
    }

    /// Hands the batch to the recordings, or passes it at once when there is nothing to record.
    fn launch(&mut self, way: Way) -> Result<(), End> {
        let lane = self.lane(way);
        if lane.batch.entries.is_empty() {
            let messages = std::mem::take(&mut lane.batch.messages);
            lane.batch.bytes = 0;
            return self.pass(way, messages);
        }
        let Batch {
            entries, messages, ..
        } = std::mem::take(&mut lane.batch);
        lane.recorded = messages;
        lane.launched += 1;
        lane.decides = false;
        lane.flight = Some(
            async move {
                for (recording, entry) in coalesce(entries) {
                    if let Err(error) = recording.write(entry).await {
                        return Flight::Recorded(Err(error));
                    }
                }
                Flight::Recorded(Ok(()))
            }
            .boxed(),
        );
        Ok(())
    }

    pub(super) fn pass(&mut self, way: Way, messages: Vec<Bytes>) -> Result<(), End> {
        for message in messages {
            if let Err(error) = self.destination(way).transport.send(&message) {
                return Err(self.broken(way.other(), &error));
            }
        }
        Ok(())
    }

    /// Sends a message of our own to the end that messages going `way` come from.
    pub(super) fn answer(&mut self, way: Way, message: &[u8]) -> Result<(), Fault> {
        Ok(self.source(way).transport.send(message)?)
    }

    /// What this way waited for is over.
    pub(super) fn on_landed(&mut self, way: Way, flight: Flight) -> Result<(), End> {
        let lane = self.lane(way);
        lane.landed += 1;
        let messages = std::mem::take(&mut lane.recorded);
        match flight {
            Flight::Recorded(Ok(())) => {
                // What was put together meanwhile is recorded while this passes.
                if !self.lane(way).batch.entries.is_empty() {
                    self.launch(way)?;
                }
                self.pass(way, messages)?;
            }
            Flight::Recorded(Err(error)) => return Err(error.into()),
            Flight::Decided(asked, result) => match self.on_asked(asked, result) {
                Ok(()) => {}
                Err(fault) => return Err(self.end(way, fault)),
            },
        }
        self.close_retired();
        Ok(())
    }

    pub(super) fn end(&self, way: Way, fault: Fault) -> End {
        match fault {
            Fault::Wire(error) => self.broken(way, &TransportError::Wire(error)),
            Fault::Transport(error) => self.broken(way, &error),
            Fault::End(end) => end,
        }
    }

    /// Puts a message into the batch.
    pub(super) fn forward(&mut self, way: Way, payload: Bytes) {
        self.lane(way).batch.messages.push(payload);
    }

    /// Puts an entry into the batch: it is written before anything of the batch passes.
    pub(super) fn record(&mut self, way: Way, key: Key, entry: Entry) {
        if let Some(recording) = self.channels.get(key).and_then(|c| c.recording.clone()) {
            self.lane(way).batch.entries.push((recording, entry));
        }
    }

    /// The open channel that a message names, unless its sender closed it.
    pub(super) fn channel(&mut self, way: Way, recipient: u32) -> Option<(Key, &mut Channel)> {
        let key = self.channels.find(way, recipient)?;
        let channel = self.channels.get(key)?;
        let closed = match way {
            Way::Up => channel.closed_up,
            Way::Down => channel.closed_down,
        };
        (channel.open() && !closed).then_some((key, channel))
    }
}

/// What moves on channels that are open, and changes nothing else.
fn is_content(payload: &[u8]) -> bool {
    matches!(
        payload.first(),
        Some(&(CHANNEL_DATA | CHANNEL_EXTENDED_DATA | CHANNEL_WINDOW_ADJUST))
    )
}

/// Joins what follows each other in one stream: one write instead of many.
fn coalesce(entries: Vec<(Recording, Entry)>) -> Vec<(Recording, Entry)> {
    let mut joined: Vec<(Recording, Entry)> = Vec::with_capacity(entries.len().min(16));
    let mut left: usize = entries.iter().map(|(_, entry)| entry.weight()).sum();
    for (recording, entry) in entries {
        left -= entry.weight();
        match (joined.last_mut(), &entry) {
            (Some((last, Entry::Output(held))), Entry::Output(more))
            | (Some((last, Entry::Error(held))), Entry::Error(more))
            | (Some((last, Entry::Input(held))), Entry::Input(more))
                if last.name() == recording.name() =>
            {
                append(held, more, left);
            }
            _ => joined.push((recording, entry)),
        }
    }
    joined
}

/// Appends in place once `held` is a buffer of our own, made for all that may follow: one that
/// grows leaves its smaller ones behind.
fn append(held: &mut Bytes, more: &[u8], left: usize) {
    let own = std::mem::take(held).try_into_mut();
    let mut own = own.unwrap_or_else(|shared| {
        let mut own = BytesMut::with_capacity(shared.len() + more.len() + left);
        own.extend_from_slice(&shared);
        own
    });
    own.extend_from_slice(more);
    *held = own.freeze();
}

/// Why a message could not be handled.
pub(super) enum Fault {
    Wire(WireError),
    Transport(TransportError),
    End(End),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<End> for Fault {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// More replies are owed than a client that waits for any would ask for.
pub(super) fn too_many_requests() -> Fault {
    Fault::End(End::new(
        CloseReason::Protocol,
        "the SSH client asks without waiting for answers".to_owned(),
    ))
}
