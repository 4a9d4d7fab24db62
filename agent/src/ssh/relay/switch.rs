//! Moving messages: from one transport into a batch, through the recordings, to the other.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use postern_proto::audit::event::{Fact, FileOperation};
use postern_proto::gateway::message::CloseReason;
use postern_proto::wire::WireError;
use tokio::time::{Duration, Instant};

use super::channels::{Channel, Content, Flow, Key, Program, Purpose, Reply, Way};
use super::end::End;
use super::message::{
    self, CHANNEL_CLOSE, CHANNEL_DATA, CHANNEL_EOF, CHANNEL_EXTENDED_DATA, CHANNEL_FAILURE,
    CHANNEL_OPEN, CHANNEL_OPEN_CONFIRMATION, CHANNEL_OPEN_FAILURE, CHANNEL_REQUEST,
    CHANNEL_SUCCESS, CHANNEL_WINDOW_ADJUST, GLOBAL_REQUEST, REQUEST_FAILURE, REQUEST_SUCCESS,
};
use super::{BATCH, Batch, Flight, HARD_BACKLOG, Lane, Relay, SOFT_BACKLOG, Side};
use crate::evidence::{Entry, Recording};
use crate::ssh::transport::TransportError;

/// Facts that wait for the log before nothing more passes, and those that are written at once.
const MAX_FACTS: usize = 256;
const MAX_LOGGING: usize = 64;

/// A flow is noted in its recording this often.
const FLOW_INTERVAL: Duration = Duration::from_secs(1);

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
    fn source(&mut self, way: Way) -> &mut Side {
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
        Ok(())
    }

    fn pump(&mut self, way: Way) -> Result<(), End> {
        while self.lane(way).flight.is_none() && self.lane(way).fault.is_none() && self.room(way) {
            let payload = match self.lane(way).parked.take() {
                Some(payload) => Ok(Some(payload)),
                None => self.source(way).transport.next(),
            };
            let step = match payload {
                Ok(Some(payload)) => {
                    self.lane(way).batch.bytes += payload.len();
                    self.handle(way, payload)
                }
                Ok(None) if self.lane(way).ended => Err(Fault::End(self.gone(way))),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            match step {
                Ok(Step::Done) if self.lane(way).batch.bytes <= BATCH => {}
                Ok(Step::Done) => self.launch(way)?,
                Ok(Step::Wait(flight)) => {
                    let lane = self.lane(way);
                    lane.launched += 1;
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
            Flight::Recorded(Ok(())) => self.pass(way, messages)?,
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

    fn handle(&mut self, way: Way, payload: Bytes) -> Result<Step, Fault> {
        let kind = payload.first().copied().unwrap_or(0);
        match kind {
            CHANNEL_DATA | CHANNEL_EXTENDED_DATA => self.on_data(way, payload)?,
            CHANNEL_WINDOW_ADJUST => self.on_window(way, payload)?,
            CHANNEL_EOF => self.on_eof(way, payload)?,
            CHANNEL_CLOSE => self.on_close(way, payload)?,
            CHANNEL_OPEN => self.on_open(way, payload)?,
            CHANNEL_OPEN_CONFIRMATION => self.on_confirmation(way, payload)?,
            CHANNEL_OPEN_FAILURE => self.on_open_failure(way, payload)?,
            CHANNEL_REQUEST => return self.on_request(way, payload),
            CHANNEL_SUCCESS | CHANNEL_FAILURE => self.on_reply(way, payload)?,
            GLOBAL_REQUEST => return self.on_global_request(way, payload),
            REQUEST_SUCCESS | REQUEST_FAILURE => self.on_global_reply(way, payload)?,
            _ => self.source(way).transport.refuse_message()?,
        }
        Ok(Step::Done)
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

    fn on_data(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, mut reader) = message::recipient(&payload)?;
        let stderr = payload.first() == Some(&CHANNEL_EXTENDED_DATA);
        if stderr {
            reader.u32("type")?;
        }
        let data = message::data(&payload, reader)?;
        let length = data.len() as u64;
        // Data for a channel that is closed meanwhile is dropped, as its receiver would do.
        let Some((key, channel)) = self.channel(way, recipient) else {
            return Ok(());
        };
        if way == Way::Down {
            channel.window = channel.window.saturating_sub(length);
        }
        if let Content::Session(Program {
            started: true,
            sftp: Some(sftp),
            ..
        }) = &mut channel.content
        {
            let followed = match way {
                Way::Up => sftp.follow_up(&data),
                Way::Down => sftp.follow_down(&data),
            };
            let done = sftp.take();
            let lost = followed.err().map(|why| why.to_string());
            self.on_files(way, key, done);
            if let Some(why) = lost {
                self.lose_sftp(way, key, &why, data);
            }
            self.count(way, length);
            self.forward(way, payload);
            return Ok(());
        }
        let entry = match &mut channel.content {
            // Before a program runs there is nobody to take it; nothing passes unrecorded.
            Content::Session(program) if !program.started => return Ok(()),
            Content::Session(_) => match way {
                Way::Up => Some(Entry::Input(data)),
                Way::Down if stderr => Some(Entry::Error(data)),
                Way::Down => Some(Entry::Output(data)),
            },
            Content::Stream(flow) => flow.count(way, length),
        };
        self.count(way, length);
        if let Some(entry) = entry {
            self.record(way, key, entry);
        }
        self.forward(way, payload);
        Ok(())
    }

    fn count(&mut self, way: Way, length: u64) {
        match way {
            Way::Up => self.bytes_up += length,
            Way::Down => self.bytes_down += length,
        }
    }

    /// File operations go into the recording before their answer passes, and into the log.
    fn on_files(&mut self, way: Way, key: Key, done: Vec<FileOperation>) {
        for operation in done {
            self.record(way, key, Entry::File(operation.clone()));
            self.facts.push_back(Fact::FileOperation(operation));
        }
    }

    /// What is not understood is not ended (new versions and extensions come), but from here on
    /// every byte is recorded: nothing passes unseen.
    fn lose_sftp(&mut self, way: Way, key: Key, why: &str, data: Bytes) {
        let lost = self
            .channels
            .get(key)
            .and_then(Channel::program)
            .and_then(|program| program.sftp.take());
        if let Some(sftp) = lost {
            self.on_files(way, key, sftp.finish());
        }
        let note = format!("{why}; from here on all bytes are recorded");
        self.record(way, key, Entry::Note(note));
        let entry = match way {
            Way::Up => Entry::Input(data),
            Way::Down => Entry::Output(data),
        };
        self.record(way, key, entry);
    }

    /// Writes facts to the log, several at once: each waits until it is durable.
    pub(super) fn log_facts(&mut self) {
        while self.logging.len() < MAX_LOGGING
            && let Some(fact) = self.facts.pop_front()
        {
            let session = self.session.clone();
            self.logging
                .push(async move { session.log(fact).await }.boxed());
        }
    }

    fn on_window(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, mut reader) = message::recipient(&payload)?;
        let more = reader.u32("bytes")?;
        reader.finish()?;
        if let Some((_, channel)) = self.channel(way, recipient) {
            if way == Way::Up {
                channel.window = channel.window.saturating_add(u64::from(more));
            }
            self.forward(way, payload);
        }
        Ok(())
    }

    fn on_eof(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, reader) = message::recipient(&payload)?;
        reader.finish()?;
        if self.channel(way, recipient).is_some() {
            self.forward(way, payload);
        }
        Ok(())
    }

    fn on_close(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, reader) = message::recipient(&payload)?;
        reader.finish()?;
        let Some((key, channel)) = self.channel(way, recipient) else {
            return Ok(());
        };
        match way {
            Way::Up => channel.closed_up = true,
            Way::Down => channel.closed_down = true,
        }
        let over = channel.closed_up && channel.closed_down;
        self.forward(way, payload);
        if over {
            self.retire(key);
        }
        Ok(())
    }

    /// An answer to a channel request.
    fn on_reply(&mut self, way: Way, payload: Bytes) -> Result<(), Fault> {
        let (recipient, reader) = message::recipient(&payload)?;
        reader.finish()?;
        let Some((_, channel)) = self.channel(way, recipient) else {
            return Ok(());
        };
        if way == Way::Up {
            if channel.asked_by_target > 0 {
                channel.asked_by_target -= 1;
                self.forward(way, payload);
            }
            return Ok(());
        }
        let Some(Reply::Target(purpose)) = channel.replies.pop_front() else {
            return Err(TransportError::Framing("reply").into());
        };
        let failed = payload.first() == Some(&CHANNEL_FAILURE);
        let mut unused = None;
        if purpose == Purpose::Start && failed {
            // Nothing runs: another program may be asked for, with a recording of its own.
            unused = channel.recording.take();
            if let Some(program) = channel.program() {
                program.started = false;
                program.sftp = None;
            }
        }
        let mut due = Vec::new();
        while let Some(Reply::Ours(_)) = channel.replies.front() {
            if let Some(Reply::Ours(ours)) = channel.replies.pop_front() {
                due.push(ours);
            }
        }
        if let Some(recording) = unused {
            self.retire_recording(recording, vec![]);
        }
        self.forward(way, payload);
        for ours in due {
            self.forward(way, ours);
        }
        Ok(())
    }
}

/// Joins what follows each other in one stream: one write instead of many.
fn coalesce(entries: Vec<(Recording, Entry)>) -> Vec<(Recording, Entry)> {
    let mut joined: Vec<(Recording, Entry)> = Vec::with_capacity(entries.len().min(16));
    for (recording, entry) in entries {
        match (joined.last_mut(), &entry) {
            (Some((last, Entry::Output(held))), Entry::Output(more))
            | (Some((last, Entry::Error(held))), Entry::Error(more))
            | (Some((last, Entry::Input(held))), Entry::Input(more))
                if last.name() == recording.name() =>
            {
                append(held, more);
            }
            _ => joined.push((recording, entry)),
        }
    }
    joined
}

/// Appends in place once `held` is a buffer of our own.
fn append(held: &mut Bytes, more: &[u8]) {
    let own = std::mem::take(held).try_into_mut();
    let mut own = own.unwrap_or_else(|shared| BytesMut::from(&*shared));
    own.extend_from_slice(more);
    *held = own.freeze();
}

impl Flow {
    /// Counts, and says what the recording must know now.
    fn count(&mut self, way: Way, length: u64) -> Option<Entry> {
        match way {
            Way::Up => self.up += length,
            Way::Down => self.down += length,
        }
        let due = self
            .noted
            .is_none_or(|noted| noted.elapsed() >= FLOW_INTERVAL);
        if due { self.note() } else { None }
    }

    pub(super) fn note(&mut self) -> Option<Entry> {
        self.noted = Some(Instant::now());
        let (up, down) = (std::mem::take(&mut self.up), std::mem::take(&mut self.down));
        (up + down > 0).then_some(Entry::Flow { up, down })
    }
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
