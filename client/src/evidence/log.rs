//! A client's log: several `postern` processes append to it, one at a time.

use std::io;
use std::path::PathBuf;

use postern_proto::audit::append::{LogFile, Step, Tail, superseded};
use postern_proto::audit::event::{Access, Event, Fact, Source};
use postern_proto::audit::layout::{StorePath, TILE_WIDTH};
use postern_proto::audit::note::LogSigner;
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::audit::recover::{
    LogError, first_checkpoint, last_checkpoint, left, mend, resume,
};
use postern_proto::names::AgentId;

use super::disk::LogFolder;
use super::lock::{LockError, lock};
use super::recipients::Recipients;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why nothing was appended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// Another process is in the way, or the lock's file.
    #[error("{0}")]
    Lock(#[from] LockError),
    /// The log is not what its checkpoint says, or cannot be read.
    #[error("{0}")]
    Log(#[from] LogError),
    /// It could not be written.
    #[error("{0}")]
    Write(#[from] io::Error),
    /// The event does not become an entry.
    #[error("{0}")]
    Event(String),
}

/// The log that this client writes.
pub(super) struct Log {
    pub(super) folder: PathBuf,
    pub(super) origin: AgentId,
    signers: Vec<LogSigner>,
    pub(super) recipients: Recipients,
}

impl Log {
    /// The log in `folder`, which may be empty still.
    pub(super) fn new(
        folder: PathBuf,
        origin: AgentId,
        signer: LogSigner,
        recipients: Recipients,
    ) -> Self {
        Self {
            folder,
            origin,
            signers: vec![signer],
            recipients,
        }
    }

    pub(super) fn vkey(&self) -> &str {
        self.signers.first().map_or("", LogSigner::vkey)
    }

    /// Makes events durable under one new checkpoint, in their order. `access` is what their
    /// session carries. Waits for other processes, for a while. Blocks.
    pub(super) fn append(
        &self,
        events: &[Event],
        access: Option<&Access>,
    ) -> Result<(), AppendError> {
        let _held = lock(&self.folder.join("lock"))?;
        let disk = LogFolder(self.folder.clone());
        let mut tail = self.open(&disk)?;
        let first = tail.size();
        let mut entries = Vec::with_capacity(events.len());
        for (sequence, event) in (first..).zip(events) {
            let place = Place {
                origin: &self.origin,
                sequence,
                version: VERSION,
                access,
                source: Source::Client,
            };
            let leaf = ocsf::encode(event, place, &mut |plain| self.recipients.seal(plain))
                .map_err(|error| AppendError::Event(error.to_string()))?;
            entries.push(leaf);
        }
        self.commit(&disk, &mut tail, &entries)
    }

    /// The log's end; what another process left half-done is put right first.
    fn open(&self, disk: &LogFolder) -> Result<Tail, AppendError> {
        let checkpoint = match last_checkpoint(disk, &self.origin, &self.signers)? {
            Some(checkpoint) => checkpoint,
            None => {
                let checkpoint =
                    first_checkpoint(&self.origin, &self.signers).map_err(LogError::from)?;
                disk.run(Step::Replace {
                    file: LogFile::Static(StorePath::Checkpoint),
                    bytes: checkpoint.note.as_bytes(),
                })?;
                checkpoint
            }
        };
        let mut tail = resume(disk, &checkpoint)?;
        if let Some(step) = mend(disk, &tail)? {
            disk.run(step)?;
        }
        let left = left(disk, &tail)?;
        for step in left.steps() {
            disk.run(step)?;
        }
        if !left.kept.is_empty() {
            self.commit(disk, &mut tail, &left.kept)?;
        }
        Ok(tail)
    }

    fn commit(
        &self,
        disk: &LogFolder,
        tail: &mut Tail,
        entries: &[Vec<u8>],
    ) -> Result<(), AppendError> {
        let before = tail.size();
        let commit = tail
            .commit(&self.origin, &self.signers, entries)
            .map_err(|error| AppendError::Event(error.to_string()))?;
        for step in commit.steps() {
            disk.run(step)?;
        }
        let (next, _) = commit.done();
        prune(disk, before, next.size());
        *tail = next;
        Ok(())
    }
}

/// Keeps the partial files of the last two checkpoints: a reader of an older one takes the wider
/// file that has its content.
fn prune(disk: &LogFolder, before: u64, now: u64) {
    if before / TILE_WIDTH != now / TILE_WIDTH {
        for path in superseded(now) {
            disk.prune(path, &[]);
        }
    }
    let (index, kept) = (now / TILE_WIDTH, [before % TILE_WIDTH, now % TILE_WIDTH]);
    let width = 1;
    disk.prune(StorePath::Entries { index, width }, &kept);
    let level = 0;
    disk.prune(
        StorePath::Tile {
            level,
            index,
            width,
        },
        &kept,
    );
}

/// The event that begins a log.
pub(super) fn started(
    recipients: &Recipients,
    previous: Option<postern_proto::audit::event::PreviousLog>,
) -> Fact {
    Fact::ClientLogStarted {
        version: VERSION.to_owned(),
        recipients: recipients.texts().to_vec(),
        previous,
    }
}
