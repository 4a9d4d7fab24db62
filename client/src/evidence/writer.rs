//! The thread of one open session: everything that is written of it is written here, in order,
//! and answered for once it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use postern_proto::audit::event::{Access, Event, Fact};
use postern_proto::gateway::message::CloseReason;
use postern_proto::recording::Entry;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::log::Log;
use super::open::Marker;
use super::recording::Recording;
use super::{End, EvidenceError, now_ms};

/// Between two flushes of a recording: what a power cut may lose.
const FLUSH: Duration = Duration::from_secs(1);
/// How often the log states the length of a recording that grows: at least every 10 s, of which
/// some is for flush and commit.
const PROGRESS: Duration = Duration::from_secs(8);

/// Told once it is done.
pub(super) type Reply = oneshot::Sender<Result<(), EvidenceError>>;

/// What the thread is asked.
pub(super) enum Order {
    /// Record this.
    Entry {
        entry: Entry,
        reply: Reply,
        /// Held until it is written: what may wait is bounded.
        room: OwnedSemaphorePermit,
    },
    /// State this in the log, durably, and in the recording.
    Event {
        fact: Fact,
        note: String,
        reply: Reply,
    },
    /// End it.
    Close { end: End, reply: Reply },
}

/// Bytes of flows, counted by those that relay them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) log: Arc<Log>,
    pub(super) claimed: Event,
    pub(super) access: Access,
    pub(super) marker: Marker,
    pub(super) recording: Recording,
    pub(super) counts: Arc<Counts>,
    /// Becomes `Some(why)` when nothing more can be written.
    pub(super) failure: watch::Sender<Option<Arc<str>>>,
    /// Changes when the log grew: claims may be handed over.
    pub(super) grown: watch::Sender<u64>,
    pub(super) totals: (u64, u64),
    pub(super) stated: u64,
}

impl Writer {
    /// Runs until the session's end, or until nobody holds its record any more.
    pub(super) fn run(mut self, orders: Receiver<Order>) {
        let mut flush_at = Instant::now() + FLUSH;
        let mut state_at = Instant::now() + PROGRESS;
        let (end, reply) = loop {
            let wait = flush_at.saturating_duration_since(Instant::now());
            match orders.recv_timeout(wait) {
                Ok(Order::Entry { entry, reply, room }) => {
                    let done = self.entry(&entry);
                    drop(room);
                    drop(reply.send(done));
                }
                Ok(Order::Event { fact, note, reply }) => {
                    drop(reply.send(self.event(fact, note)));
                }
                Ok(Order::Close { end, reply }) => break (end, Some(reply)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break (End::dropped(), None),
            }
            let now = Instant::now();
            if now >= flush_at {
                flush_at = now + FLUSH;
                self.flush(now >= state_at);
                if now >= state_at {
                    state_at = now + PROGRESS;
                }
            }
        };
        let done = self.close(end);
        if let Some(reply) = reply {
            drop(reply.send(done));
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), EvidenceError> {
        self.may_write()?;
        match entry {
            Entry::Input(bytes) => self.totals.0 += bytes.len() as u64,
            Entry::Output(bytes) | Entry::Error(bytes) => self.totals.1 += bytes.len() as u64,
            _ => {}
        }
        let written = self.recording.write(entry);
        written.map_err(|error| self.failed("the recording", &error))
    }

    fn event(&mut self, fact: Fact, note: String) -> Result<(), EvidenceError> {
        self.entry(&Entry::Note(note))?;
        self.append(fact)
    }

    /// What flows moved, on disk; with `state` the log says how far the recording goes.
    fn flush(&mut self, state: bool) {
        if self.may_write().is_err() || self.flows().is_err() {
            return;
        }
        if let Err(error) = self.recording.sync() {
            self.failed("the recording", &error);
            return;
        }
        let digest = self.recording.digest();
        if state && digest.length != self.stated {
            self.stated = digest.length;
            // What failed is told to whoever writes next, and to who waits for it.
            drop(self.append(Fact::RecordingProgressed { recording: digest }));
        }
    }

    fn flows(&mut self) -> Result<(), EvidenceError> {
        let up = self.counts.up.swap(0, Ordering::Relaxed);
        let down = self.counts.down.swap(0, Ordering::Relaxed);
        if (up, down) == (0, 0) {
            return Ok(());
        }
        self.totals.0 = self.totals.0.saturating_add(up);
        self.totals.1 = self.totals.1.saturating_add(down);
        self.entry(&Entry::Flow { up, down })
    }

    fn append(&mut self, fact: Fact) -> Result<(), EvidenceError> {
        let event = Event {
            time_ms: now_ms(),
            fact,
            ..self.claimed.clone()
        };
        match self.log.append(&[event], Some(&self.access)) {
            Ok(()) => {
                self.grown.send_modify(|count| *count += 1);
                Ok(())
            }
            Err(error) => Err(self.failed("the log", &error)),
        }
    }

    /// The end is stated as far as it still can be; after a failure as what it was.
    fn close(mut self, end: End) -> Result<(), EvidenceError> {
        let flows = self.flows();
        if let (Ok(()), Some(status)) = (&flows, end.exit_status) {
            drop(self.entry(&Entry::Exit(Ok(status))));
        }
        let failed = self.failure.borrow().clone();
        let (reason, message) = match &failed {
            Some(why) => (CloseReason::Evidence, Some(why.to_string())),
            None => (end.reason, end.message),
        };
        let digest = match failed {
            None => self
                .recording
                .finish()
                .map_err(|error| self.failed("the recording", &error)),
            Some(_) => Ok(self.recording.digest()),
        };
        let started = self.claimed.time_ms;
        let closed = Fact::SessionClosed {
            reason,
            message,
            exit_status: end.exit_status,
            up: self.totals.0,
            down: self.totals.1,
            duration_ms: (now_ms() - started).max(0),
            recordings: vec![digest?],
        };
        self.append(closed)?;
        self.marker.remove();
        let failed = self.failure.borrow().clone();
        failed.map_or(Ok(()), |why| Err(EvidenceError::Failed(why)))
    }

    fn may_write(&self) -> Result<(), EvidenceError> {
        match &*self.failure.borrow() {
            Some(why) => Err(EvidenceError::Failed(Arc::clone(why))),
            None => Ok(()),
        }
    }

    /// Final: nothing more is written but the end.
    fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> EvidenceError {
        let why: Arc<str> = format!("{what}: {error}").into();
        self.failure.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(Arc::clone(&why));
            }
            first
        });
        EvidenceError::Failed(why)
    }
}

/// Names what failed, for people.
pub(super) fn unwritten(what: &str, error: &io::Error) -> EvidenceError {
    EvidenceError::Failed(format!("{what}: {error}").into())
}
