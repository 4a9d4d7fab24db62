//! Messages by their kind, and what passes on channels that are open.

use bytes::Bytes;
use futures_util::FutureExt as _;
use postern_proto::audit::event::{Fact, FileOperation};
use tokio::time::{Duration, Instant};

use super::Relay;
use super::channels::{Channel, Content, Flow, Key, Program, Purpose, Reply, Way};
use super::message::{
    self, CHANNEL_CLOSE, CHANNEL_DATA, CHANNEL_EOF, CHANNEL_EXTENDED_DATA, CHANNEL_FAILURE,
    CHANNEL_OPEN, CHANNEL_OPEN_CONFIRMATION, CHANNEL_OPEN_FAILURE, CHANNEL_REQUEST,
    CHANNEL_SUCCESS, CHANNEL_WINDOW_ADJUST, GLOBAL_REQUEST, REQUEST_FAILURE, REQUEST_SUCCESS,
};
use super::switch::{Fault, Step};
use crate::evidence::Entry;
use crate::ssh::transport::TransportError;

/// Facts that are written to the log at once.
const MAX_LOGGING: usize = 64;

/// A flow is noted in its recording this often.
const FLOW_INTERVAL: Duration = Duration::from_secs(1);

impl Relay {
    pub(super) fn handle(&mut self, way: Way, payload: Bytes) -> Result<Step, Fault> {
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
        let Some((_, channel)) = self.channel(way, recipient) else {
            return Ok(());
        };
        let passes = match way {
            Way::Up => channel.refill(more),
            Way::Down => more,
        };
        if passes == more {
            self.forward(way, payload);
        } else if passes > 0 {
            self.forward(way, message::window_adjust(recipient, passes).into());
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
