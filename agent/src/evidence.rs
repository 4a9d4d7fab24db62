//! Evidence: the audit log and recordings (DESIGN.md section 7).
//!
//! ```text
//! append ─▶ log thread ─▶ entry, tiles, checkpoint: durable ─▶ Witness
//! write  ─▶ recorder threads ─▶ seal, write() ─▶ relay
//!                  └─ flusher, every 100 ms ─▶ progress ─▶ log thread
//! watchdog: whatever of these takes longer than a second fails the store, until restart
//! ```

mod auditors;
mod claimed;
mod claims;
mod disk;
mod event;
mod file;
mod flush;
mod handed;
mod health;
mod log;
mod open;
mod queue;
mod quota;
pub mod reader;
mod recorder;
mod recording;
mod recover;
mod reserve;
mod retention;
mod settings;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use postern_proto::audit::event::{Event, Fact, RecordingDigest};
use postern_proto::audit::tree;
use postern_proto::gateway::message::Witness;
use postern_proto::names::SessionId;
pub use postern_proto::recording::{Entry, Kind as RecordingKind};
use postern_proto::recording::{Keep, RecordingName};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use claimed::{NotTaken, Taken};
pub(crate) use claims::ClaimError;
use claims::{Claims, Uploads};
pub(crate) use event::{agent_event, now_ms};
pub(crate) use handed::PieceError;
use health::{Health, lock};
pub use open::{LookError, OpenError, Startup, look};
use queue::{Begin, Queue};
use quota::Usage;
use reader::FolderStore;
use recorder::Open;
use recording::Handle;
pub use recording::Recording;
pub(crate) use recording::WeakRecording;
pub use recover::{LogError, hint as log_hint};
pub use settings::Settings;
use writer::Order;

/// What leaves say of the program that wrote them.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why evidence could not be written. Final for the store until restart, except `Quota` and
/// `Space`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvidenceError {
    /// The log or a recording cannot be written.
    #[error("the evidence store failed: {0}")]
    Failed(Arc<str>),
    /// The session's or principal's recording quota is used up.
    #[error("the recording quota of {0} bytes is used up")]
    Quota(u64),
    /// Free space is below the floor: no session starts.
    #[error("{free} bytes are free under the evidence store, {floor} are needed")]
    Space {
        /// Free bytes.
        free: u64,
        /// The floor.
        floor: u64,
    },
}

/// The evidence store of this agent. Clones share it; with the last one its threads end.
#[derive(Clone)]
pub struct Evidence {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    vkey: String,
    orders: mpsc::Sender<Order>,
    queue: Arc<Queue>,
    dirty: Arc<flush::Dirty>,
    health: Arc<Health>,
    usage: Usage,
    claims: Arc<Claims>,
    uploads: Arc<Uploads>,
    /// Recordings whose end the log does not state yet.
    recordings: Mutex<std::collections::HashMap<RecordingName, Arc<Open>>>,
    checkpoint: watch::Receiver<String>,
    floor: u64,
    record_input: bool,
    bulk_programs: Vec<String>,
    threads: Mutex<Threads>,
    /// The folder of [`Evidence::default`], removed with the store.
    #[cfg(test)]
    temporary: std::sync::OnceLock<tempfile::TempDir>,
}

/// In the order in which they end.
#[derive(Default)]
struct Threads {
    recorders: Vec<JoinHandle<()>>,
    flusher: Vec<JoinHandle<()>>,
    /// And the watchdog.
    log: Vec<JoinHandle<()>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Orders every thread to finish. What was asked before is still done.
    fn stop(&self) {
        self.queue.stop();
        self.dirty.stop();
        self.health.stop();
        // A full queue: the log thread ends when its last sender is gone.
        drop(self.orders.try_send(Order::Stop));
    }
}

impl Evidence {
    /// Appends one event; returns once it is durable under a durable checkpoint.
    pub async fn append(&self, event: Event) -> Result<Witness, EvidenceError> {
        let closing = match (&event.fact, event.session) {
            (Fact::SessionClosed { recordings, .. }, Some(session)) => {
                // What the log is about to state must be on disk first.
                self.synced(recordings).await;
                Some(session)
            }
            _ => None,
        };
        let (reply, answer) = oneshot::channel();
        let order = Order::Append {
            event: Box::new(event),
            reply: Some(reply),
        };
        let durable = async {
            if self.shared.orders.send(order).await.is_err() {
                return Err(self.closed());
            }
            answer.await.unwrap_or_else(|_| Err(self.closed()))
        };
        // On a full disk the log goes on with ends of sessions; a broken store answers nobody.
        let result = tokio::select! {
            biased;
            result = durable => result,
            () = self.shared.health.broken() => Err(self.closed()),
        };
        if let (Ok(_), Some(session)) = (&result, closing) {
            self.shared.usage.close(session);
            lock(&self.shared.recordings).retain(|name, _| name.session != session);
        }
        result
    }

    /// Adds to `witness` the proof that the log still begins with its first `known` entries. A
    /// number that the log never had gets no proof, and the client refuses.
    pub async fn prove_growth(
        &self,
        witness: &mut Witness,
        known: u64,
    ) -> Result<(), EvidenceError> {
        let size = witness.checkpoint.lines().nth(1);
        let size: Option<u64> = size.and_then(|size| size.parse().ok());
        // Of the same state, or of a newer one than ours, nothing can be proven.
        if size.is_some_and(|size| known >= size) {
            witness.consistency = Vec::new();
            return Ok(());
        }
        let store = self.reader();
        let work = move || -> Option<Vec<String>> {
            let size = size?;
            let tiles = |level: u8, index: u64| store.tile(level, index, size);
            let proof = tree::prove_growth(&tiles, size, known).ok()?;
            Some(proof.iter().map(|hash| hex::encode(hash.0)).collect())
        };
        let proof = tokio::task::spawn_blocking(work).await.ok().flatten();
        witness.consistency =
            proof.ok_or_else(|| EvidenceError::Failed("the log's tiles cannot be read".into()))?;
        Ok(())
    }

    /// The proof of the same event under the newest checkpoint.
    pub async fn renew(&self, witness: Witness) -> Result<Witness, EvidenceError> {
        let note = self.checkpoint();
        if note == witness.checkpoint {
            return Ok(Witness {
                consistency: Vec::new(),
                ..witness
            });
        }
        let store = self.reader();
        let (leaf, leaf_hash) = (witness.leaf, witness.leaf_hash);
        let work = move || -> Option<Witness> {
            let size = note.lines().nth(1)?.parse().ok()?;
            let tiles = |level: u8, index: u64| store.tile(level, index, size);
            let proof = tree::prove_leaf(&tiles, size, leaf).ok()?;
            Some(Witness {
                checkpoint: note,
                leaf,
                leaf_hash,
                proof: proof.iter().map(|hash| hex::encode(hash.0)).collect(),
                consistency: Vec::new(),
            })
        };
        let renewed = tokio::task::spawn_blocking(work).await.ok().flatten();
        renewed.ok_or_else(|| EvidenceError::Failed("the log's tiles cannot be read".into()))
    }

    /// Whether a new session may start: the store works and space is above the floor.
    pub fn admit(&self) -> Result<(), EvidenceError> {
        if let Some(error) = self.shared.health.error() {
            return Err(error);
        }
        let (free, floor) = (self.shared.dirty.free(), self.shared.floor);
        if free < floor {
            return Err(EvidenceError::Space { free, floor });
        }
        Ok(())
    }

    /// Starts a recording of a session. `principal` is the key of its quota.
    pub async fn begin(
        &self,
        session: SessionId,
        principal: &str,
        kind: RecordingKind,
    ) -> Result<Recording, EvidenceError> {
        self.admit()?;
        let Some(usage) = self.shared.usage.session(session, principal) else {
            return Err(EvidenceError::Failed("the session has ended".into()));
        };
        let name = RecordingName {
            session,
            number: usage.number(),
        };
        let (reply, answer) = oneshot::channel();
        self.shared.queue.begin(Begin {
            name,
            usage,
            keep: Keep {
                input: self.shared.record_input,
                bulk: self.is_bulk(&kind),
            },
            kind,
            reply,
        });
        let open = self.or_failure(answer).await?;
        lock(&self.shared.recordings).insert(name, Arc::clone(&open));
        Ok(Recording {
            name: name.to_string(),
            handle: Arc::new(Handle {
                open,
                evidence: self.clone(),
            }),
        })
    }

    /// Becomes `Some(why)` when the store has failed: every session ends within a second.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.shared.health.failure()
    }

    /// The log's last durable checkpoint, as it was signed.
    pub fn checkpoint(&self) -> String {
        self.shared.checkpoint.borrow().clone()
    }

    /// The log's public key, as C2SP writes it.
    pub fn vkey(&self) -> &str {
        &self.shared.vkey
    }

    /// Reads the store, for the audit API.
    pub fn reader(&self) -> FolderStore {
        FolderStore::new(self.shared.folder.clone())
    }

    /// Writes and syncs what is left, says in the log that the agent stopped and ends the
    /// threads. Sessions are to be closed before; recordings that are still open stay without
    /// an end.
    pub async fn shutdown(&self) -> Result<(), EvidenceError> {
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        self.shared.queue.stop();
        join(threads.recorders).await?;
        self.shared.dirty.stop();
        join(threads.flusher).await?;
        let stopped = self.append(agent_event(Fact::AgentStopped)).await;
        self.shared.health.stop();
        drop(self.shared.orders.send(Order::Stop).await);
        join(threads.log).await?;
        stopped.map(drop)
    }

    /// Waits until these recordings are on disk as far as their digests say, or the store failed.
    async fn synced(&self, recordings: &[RecordingDigest]) {
        let behind: Vec<Arc<Open>> = {
            let open = lock(&self.shared.recordings);
            recordings
                .iter()
                .filter_map(|digest| open.get(&digest.name.parse().ok()?).cloned())
                .collect()
        };
        let mut done = self.shared.dirty.done();
        let mut failure = self.failure();
        while behind.iter().any(|open| open.is_behind()) {
            self.shared.dirty.kick();
            tokio::select! {
                changed = done.changed() => if changed.is_err() { return },
                _ = failure.wait_for(Option::is_some) => return,
            }
        }
    }

    async fn or_failure<T>(
        &self,
        answer: oneshot::Receiver<Result<T, EvidenceError>>,
    ) -> Result<T, EvidenceError> {
        let mut failure = self.failure();
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(self.closed())),
            _ = failure.wait_for(Option::is_some) => Err(self.closed()),
        }
    }

    fn closed(&self) -> EvidenceError {
        self.shared
            .health
            .error()
            .unwrap_or_else(|| EvidenceError::Failed("the store is closed".into()))
    }

    /// Whether the command's program is one whose streams are kept as digests.
    fn is_bulk(&self, kind: &RecordingKind) -> bool {
        let RecordingKind::Streams { command } = kind else {
            return false;
        };
        is_bulk(command, &self.shared.bulk_programs)
    }
}

/// Whether a command line runs one of `programs` and nothing else: with a shell's operators a
/// second program would hide behind the first, and a path of one's own behind its name.
/// `git` stands for `git-upload-pack` and the like, too.
fn is_bulk(command: &str, programs: &[String]) -> bool {
    const OPERATORS: &[char] = &[';', '&', '|', '<', '>', '(', ')', '$', '`', '\n', '\r'];
    if command.contains(OPERATORS) {
        return false;
    }
    let program = command.split_whitespace().next().unwrap_or_default();
    let name = ["/usr/local/bin/", "/usr/bin/", "/bin/"]
        .into_iter()
        .find_map(|folder| program.strip_prefix(folder))
        .unwrap_or(program);
    let is = |bulk: &String| {
        name.strip_prefix(bulk.as_str())
            .is_some_and(|rest| rest.is_empty() || (rest.starts_with('-') && !rest.contains('/')))
    };
    programs.iter().any(is)
}

async fn join(threads: Vec<JoinHandle<()>>) -> Result<(), EvidenceError> {
    let join = move || {
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(drop))
    };
    match tokio::task::spawn_blocking(join).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(EvidenceError::Failed("a thread of the store died".into())),
    }
}

/// For tests of what stands on evidence: a real store in a folder of its own.
#[cfg(test)]
impl Default for Evidence {
    fn default() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (settings, _) = tests::settings(folder.path());
        let (evidence, _) = Self::open(settings).expect("an evidence store");
        drop(evidence.shared.temporary.set(folder));
        evidence
    }
}

#[cfg(test)]
impl Evidence {
    /// Makes the store fail, as a full disk would.
    pub(crate) fn fail(&self) {
        self.shared.health.broke("a write", &"the disk is gone");
    }
}

#[cfg(test)]
mod tests;
