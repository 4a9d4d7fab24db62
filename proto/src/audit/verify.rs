//! Verification of a store: what an auditor demands. Works on anything that gives out files: a
//! folder, a copy, an object store, the agent's own API.
//!
//! What must not come from the store comes from the reader: the log's name and public key, and
//! checkpoints that were kept elsewhere.

mod claims;
mod log;
mod recordings;
mod report;

use std::io;

use age::x25519::Identity;

use super::layout::{BUNDLE_LIMIT, CHECKPOINT_LIMIT, StorePath, TILE_WIDTH};
use super::note::LogIdentity;
use super::tree::HASH_SIZE;
use crate::recording::RecordingName;

pub use report::{Claims, Fault, Outside, Report, Session, SessionState};

/// Gives out the files of a store.
pub trait StoreReader {
    /// Opens a file; `None` when there is none.
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn io::Read + '_>>>;
    /// Names of all recordings.
    fn recordings(&self) -> io::Result<Vec<RecordingName>>;
}

/// A checkpoint that was kept outside of the store, with the name of who kept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideCheckpoint {
    /// Where it comes from, for the report.
    pub name: String,
    /// The signed note.
    pub note: String,
}

/// What verification rests on.
#[derive(Clone)]
pub struct Trust<'a> {
    /// The log's name and key.
    pub log: LogIdentity,
    /// Checkpoints kept elsewhere.
    pub outside: &'a [OutsideCheckpoint],
    /// The auditor's identities: with them recordings are decrypted and their end is checked.
    pub identities: &'a [Identity],
}

/// Verifies a whole store. Errors are those of reading it; what is wrong with it stands in the
/// report.
pub fn verify(store: &dyn StoreReader, trust: &Trust<'_>) -> io::Result<Report> {
    let mut report = Report::default();
    let facts = log::check(store, trust, &mut report)?;
    recordings::check(store, trust, &facts, &mut report)?;
    Ok(report)
}

/// Reads a checkpoint, tile or bundle, bounded. A log that is written meanwhile drops partial
/// files that its newest checkpoint does not need: then the wider one that took its place is
/// read, of which the narrower one is the beginning. A bundle may so hold more entries than
/// asked for; a tile is cut.
pub fn read_file(store: &dyn StoreReader, path: StorePath) -> io::Result<Option<Vec<u8>>> {
    if let Some(bytes) = read(store, path)? {
        return Ok(Some(bytes));
    }
    let mut tried = path;
    // Each round the log grew again while we looked.
    for _ in 0..8 {
        let Some(wider) = successor(store, tried)? else {
            return Ok(None);
        };
        if let Some(mut bytes) = read(store, wider)? {
            if let StorePath::Tile { width, .. } = path {
                bytes.truncate(usize::from(width) * HASH_SIZE);
            }
            return Ok(Some(bytes));
        }
        tried = wider;
    }
    Ok(None)
}

/// What a partial file became under the checkpoint that the store has now.
fn successor(store: &dyn StoreReader, path: StorePath) -> io::Result<Option<StorePath>> {
    let note = read(store, StorePath::Checkpoint)?.unwrap_or_default();
    let size = String::from_utf8_lossy(&note)
        .lines()
        .nth(1)
        .and_then(|line| line.parse().ok())
        .unwrap_or(0);
    let wider = match path {
        StorePath::Tile {
            level,
            index,
            width,
        } => StorePath::tile_at(level, index, size)
            .filter(|now| *now > width)
            .map(|width| StorePath::Tile {
                level,
                index,
                width,
            }),
        StorePath::Entries { index, width } => StorePath::tile_at(0, index, size)
            .filter(|now| *now > width)
            .map(|width| StorePath::Entries { index, width }),
        StorePath::Checkpoint | StorePath::Recording(_) => None,
    };
    Ok(wider)
}

fn read(store: &dyn StoreReader, path: StorePath) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    // One byte more than a right one: what is too long is to be seen.
    let limit = 1 + match path {
        StorePath::Tile { .. } => TILE_WIDTH * HASH_SIZE as u64,
        StorePath::Entries { .. } => BUNDLE_LIMIT,
        StorePath::Checkpoint | StorePath::Recording(_) => CHECKPOINT_LIMIT,
    };
    let Some(file) = store.open(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
