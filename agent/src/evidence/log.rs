//! The transparency log on disk: the steps of `postern_proto::audit::append`, executed by its one
//! writer.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use postern_proto::audit::append::{AppendError, LogFile, Step, Tail, superseded};
use postern_proto::audit::layout::{StorePath, TILE_WIDTH};
use postern_proto::audit::note::LogSigner;
use postern_proto::audit::recover::LogFiles;
use postern_proto::audit::tree::HASH_SIZE;
use postern_proto::gateway::message::Witness;
use postern_proto::names::AgentId;

use super::disk;

/// Partial files whose full one is there are kept for as many commits more.
const KEPT_COMMITS: usize = 8;
/// Bytes of older partial bundles that are kept for readers that hold an older checkpoint. Events
/// are small: this is far from what a bundle's worth of them takes.
const KEPT_BYTES: u64 = 64 * 1024 * 1024;

/// The log as its one writer holds it.
pub(super) struct Log {
    pub(super) disk: LogFolder,
    pub(super) origin: AgentId,
    pub(super) signers: Vec<LogSigner>,
    /// What a commit replaces as a whole.
    pub(super) tail: Tail,
    /// Folders of partial files whose full ones are there, by commit.
    pub(super) superseded: VecDeque<Vec<PathBuf>>,
    /// Partial bundles of the bundle that is being filled, with their bytes.
    pub(super) copies: VecDeque<(PathBuf, u64)>,
    pub(super) checkpoint: String,
}

/// The folder that the log lies in.
pub(super) struct LogFolder {
    pub(super) folder: PathBuf,
    /// On a full disk partial bundles are further names of the growing file, which cost nothing.
    pub(super) sparing: bool,
}

impl Log {
    /// Entries under the last durable checkpoint.
    pub(super) fn size(&self) -> u64 {
        self.tail.size()
    }

    /// Makes `entries` durable under a new durable checkpoint and answers with a witness for
    /// each. After an error nothing of it counts, and the same call may be made again.
    pub(super) fn commit(&mut self, entries: &[Vec<u8>]) -> io::Result<Vec<Witness>> {
        let commit = self
            .tail
            .commit(&self.origin, &self.signers, entries)
            .map_err(|error| match error {
                AppendError::TooLong => io::ErrorKind::InvalidInput.into(),
                AppendError::Sign(error) => io::Error::other(error),
            })?;
        for step in commit.steps() {
            self.disk.run(step)?;
        }
        let disk = |level: u8, index: u64| read_tile(&self.disk.folder, level, index);
        let witnesses = commit.witnesses(&disk).map_err(io::Error::other)?;
        let first = self.tail.size();
        let done: Vec<PathBuf> = commit
            .superseded()
            .into_iter()
            .map(|path| self.disk.around(path))
            .collect();
        (self.tail, self.checkpoint) = commit.done();
        self.forget(first, done);
        Ok(witnesses)
    }

    /// Removes partial files some commits after the full ones came, and of partial bundles the
    /// oldest when they take too much. Losing one is no loss: whatever it held stands in the
    /// wider ones. `first` was the size before the commit that superseded the folders `done`.
    fn forget(&mut self, first: u64, done: Vec<PathBuf>) {
        let size = self.size();
        if first / TILE_WIDTH != size / TILE_WIDTH {
            // They go with their folder.
            self.copies.clear();
        }
        self.superseded.push_back(done);
        while self.superseded.len() > KEPT_COMMITS {
            for folder in self.superseded.pop_front().unwrap_or_default() {
                drop(std::fs::remove_dir_all(&folder));
            }
        }
        let width = (size % TILE_WIDTH) as u16;
        if width > 0 {
            let index = size / TILE_WIDTH;
            let named = StorePath::Entries { index, width };
            let bytes = self.tail.bundle().len() as u64;
            self.copies
                .push_back((self.disk.path(LogFile::Static(named)), bytes));
        }
        let mut kept: u64 = self.copies.iter().map(|(_, bytes)| bytes).sum();
        // The last one is the checkpoint's own.
        while kept > KEPT_BYTES && self.copies.len() > 1 {
            if let Some((path, bytes)) = self.copies.pop_front() {
                drop(std::fs::remove_file(path));
                kept -= bytes;
            }
        }
    }

    /// Removes what a process that ended had no time to remove.
    pub(super) fn sweep(&self) {
        for path in superseded(self.size()) {
            drop(std::fs::remove_dir_all(self.disk.around(path)));
        }
    }
}

impl LogFolder {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            sparing: false,
        }
    }

    fn path(&self, file: LogFile) -> PathBuf {
        self.folder.join(file.to_string())
    }

    /// The folder of partial files that `path` is one of.
    fn around(&self, path: StorePath) -> PathBuf {
        let mut path = self.path(LogFile::Static(path));
        path.pop();
        path
    }

    /// Does one step.
    pub(super) fn run(&self, step: Step<'_>) -> io::Result<()> {
        match step {
            Step::Replace { file, bytes } => disk::put(&self.path(file), bytes),
            Step::Create { path, bytes } => disk::put_new(&self.path(LogFile::Static(path)), bytes),
            Step::Grow {
                index,
                offset,
                bytes,
            } => {
                let growing = self.path(LogFile::Growing { index });
                if let Some(folder) = growing.parent() {
                    disk::make_folder(folder)?;
                }
                let file = disk::options()
                    .create(true)
                    .truncate(false)
                    .open(&growing)?;
                file.write_all_at(bytes, offset)?;
                file.sync_data()
            }
            Step::Publish {
                index,
                width,
                bytes,
            } => {
                let named = self.path(LogFile::Static(StorePath::Entries { index, width }));
                self.publish(&self.path(LogFile::Growing { index }), &named, bytes)?;
                named.parent().map_or(Ok(()), disk::sync_folder)
            }
        }
    }

    /// A partial bundle under its own name. No checkpoint needs it yet.
    fn publish(&self, growing: &Path, named: &Path, bytes: &[u8]) -> io::Result<()> {
        if !self.sparing && disk::put_soon(named, bytes).is_ok() {
            return Ok(());
        }
        match std::fs::remove_file(named) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::hard_link(growing, named)
    }
}

impl LogFiles for LogFolder {
    fn read(&self, file: LogFile, limit: u64) -> io::Result<Option<Vec<u8>>> {
        disk::read(&self.path(file), limit)
    }

    fn has_entries(&self) -> bool {
        self.folder.join("tile").exists()
    }
}

/// A full tile from disk.
fn read_tile(folder: &Path, level: u8, index: u64) -> Option<Vec<u8>> {
    let path = StorePath::Tile {
        level,
        index,
        width: TILE_WIDTH as u16,
    };
    let mut bytes = vec![0; TILE_WIDTH as usize * HASH_SIZE];
    let file = File::open(folder.join(path.to_string())).ok()?;
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}
