//! The log's thread: takes events from everywhere, commits what arrived together.

use std::sync::Arc;

use postern_proto::audit::event::{Event, Fact, RecordingDigest, Source};
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::gateway::message::Witness;
use tokio::sync::{mpsc, oneshot, watch};

use super::auditors::Auditors;
use super::health::{Health, Watched};
use super::log::Log;
use super::recover::OpenSessions;
use super::reserve::Reserve;
use super::{EvidenceError, VERSION};

/// Events that wait for the log.
pub(super) const QUEUE: usize = 1024;
/// Events of one commit.
const BATCH: usize = 256;
/// Digests in one event: more go ahead of it, in events of their own.
const DIGESTS: usize = 128;

/// Where the answer goes; absent for those who do not wait.
type Reply = Option<oneshot::Sender<Result<Witness, EvidenceError>>>;

/// What the thread is asked.
pub(super) enum Order {
    /// Append an event.
    Append {
        /// The event.
        event: Box<Event>,
        /// Told once it is durable; dropped by those who do not wait.
        reply: Reply,
    },
    /// Finish what was asked before and end.
    Stop,
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) log: Log,
    pub(super) auditors: Arc<Auditors>,
    pub(super) health: Arc<Health>,
    pub(super) watched: Watched,
    pub(super) reserve: Reserve,
    pub(super) open: OpenSessions,
    pub(super) checkpoint: watch::Sender<String>,
    pub(super) floor: u64,
}

struct Encoded {
    event: Event,
    leaf: Vec<u8>,
    reply: Reply,
}

impl Writer {
    /// Runs until told to stop or nobody can ask any more.
    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut stop = false;
        while !stop {
            let Some(first) = orders.blocking_recv() else {
                break;
            };
            let mut batch = Vec::new();
            let mut next = Some(first);
            while let Some(order) = next {
                match order {
                    Order::Stop => {
                        stop = true;
                        break;
                    }
                    Order::Append { event, reply } => batch.push((event, reply)),
                }
                next = if batch.len() < BATCH {
                    orders.try_recv().ok()
                } else {
                    None
                };
            }
            self.batch(batch);
        }
    }

    fn batch(&mut self, batch: Vec<(Box<Event>, Reply)>) {
        let mut encoded = Vec::with_capacity(batch.len());
        for (event, reply) in batch {
            if let Err(error) = self.take(*event, &mut encoded) {
                if let Some(reply) = reply {
                    drop(reply.send(Err(error)));
                }
            } else if let Some(last) = encoded.last_mut() {
                last.reply = reply;
            }
        }
        // One event may have become many.
        while !encoded.is_empty() {
            let rest = encoded.split_off(encoded.len().min(BATCH));
            self.commit(std::mem::replace(&mut encoded, rest));
        }
    }

    /// Admits an event and encodes it, with the events that have to go ahead of it.
    fn take(&mut self, mut event: Event, encoded: &mut Vec<Encoded>) -> Result<(), EvidenceError> {
        self.admit(&event)?;
        let mark = encoded.len();
        let result = overflow(&mut event)
            .into_iter()
            .chain([event])
            .try_for_each(|event| {
                let sequence = self.log.size() + encoded.len() as u64;
                let leaf = self.encode(&event, sequence)?;
                encoded.push(Encoded {
                    event,
                    leaf,
                    reply: None,
                });
                Ok(())
            });
        if result.is_err() {
            encoded.truncate(mark);
        }
        result
    }

    /// After a failure only the ends of sessions are still written, and only while a full disk
    /// is all that is wrong.
    fn admit(&mut self, event: &Event) -> Result<(), EvidenceError> {
        if let Some(error) = self.health.error() {
            let closing = matches!(
                event.fact,
                Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } | Fact::AgentStopped
            );
            if self.health.is_broken() || !closing {
                return Err(error);
            }
        }
        if matches!(event.fact, Fact::SessionGranted { .. })
            && let Err(error) = self.reserve.hold(self.open.own.len() + 1)
        {
            tracing::warn!(%error, "no space can be set aside for a further session");
            return Err(EvidenceError::Space {
                free: 0,
                floor: self.floor,
            });
        }
        Ok(())
    }

    fn encode(&self, event: &Event, sequence: u64) -> Result<Vec<u8>, EvidenceError> {
        let place = Place {
            origin: &self.log.origin,
            sequence,
            version: VERSION,
            access: event.session.and_then(|session| self.open.access(session)),
            source: Source::Agent,
        };
        ocsf::encode(event, place, &mut |plain| self.auditors.seal(plain))
            .map_err(|error| EvidenceError::Failed(error.to_string().into()))
    }

    fn commit(&mut self, encoded: Vec<Encoded>) {
        let (leaves, rest): (Vec<_>, Vec<_>) = encoded
            .into_iter()
            .map(|one| (one.leaf, (one.event, one.reply)))
            .unzip();
        match self.write(&leaves) {
            Ok(witnesses) => {
                metrics::counter!("postern_log_entries_total").increment(leaves.len() as u64);
                metrics::gauge!("postern_log_size").set(self.log.size() as f64);
                self.checkpoint.send_replace(self.log.checkpoint.clone());
                for ((event, reply), witness) in rest.into_iter().zip(witnesses) {
                    self.open.follow(&event);
                    if let Some(reply) = reply {
                        drop(reply.send(Ok(witness)));
                    }
                }
            }
            Err(error) => {
                for reply in rest.into_iter().filter_map(|(_, reply)| reply) {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }

    /// Commits; on a full disk once more with the space that was set aside.
    fn write(&mut self, leaves: &[Vec<u8>]) -> Result<Vec<Witness>, EvidenceError> {
        if self.health.is_full() {
            self.log.disk.sparing = true;
            self.reserve.release();
        }
        let began = std::time::Instant::now();
        let (log, watched) = (&mut self.log, &self.watched);
        let mut result = watched.run(|| log.commit(leaves));
        if let Err(error) = &result
            && super::disk::is_full(error)
        {
            self.health.write_failed("the audit log", error);
            self.reserve.release();
            log.disk.sparing = true;
            result = watched.run(|| log.commit(leaves));
        }
        metrics::histogram!("postern_log_commit_seconds").record(began.elapsed().as_secs_f64());
        result.map_err(|error| self.health.broke("the audit log", &error))
    }

    /// Commits what recovery kept, as it is.
    pub(super) fn keep(&mut self, kept: &[Vec<u8>]) -> Result<(), EvidenceError> {
        for chunk in kept.chunks(BATCH) {
            self.write(chunk)?;
            for leaf in chunk {
                if let Ok(decoded) = ocsf::decode(leaf, &[]) {
                    self.open.follow(&decoded.event);
                }
            }
        }
        Ok(())
    }

    /// Commits events before anybody else can.
    pub(super) fn begin(&mut self, events: Vec<Event>) -> Result<(), EvidenceError> {
        for chunk in events.chunks(BATCH) {
            let mut encoded = Vec::new();
            for event in chunk {
                self.take(event.clone(), &mut encoded)?;
            }
            let (leaves, events): (Vec<_>, Vec<_>) =
                encoded.into_iter().map(|one| (one.leaf, one.event)).unzip();
            self.write(&leaves)?;
            for event in &events {
                self.open.follow(event);
            }
        }
        self.checkpoint.send_replace(self.log.checkpoint.clone());
        Ok(())
    }
}

/// Takes the digests that do not fit out of an event, as events of their own.
fn overflow(event: &mut Event) -> Vec<Event> {
    let more: Vec<RecordingDigest> = match &mut event.fact {
        Fact::SessionClosed { recordings, .. } | Fact::SessionInterrupted { recordings }
            if recordings.len() > DIGESTS =>
        {
            recordings.split_off(DIGESTS)
        }
        _ => return Vec::new(),
    };
    let event = &*event;
    more.into_iter()
        .map(|recording| Event {
            fact: Fact::RecordingProgressed { recording },
            ..event.clone()
        })
        .collect()
}
