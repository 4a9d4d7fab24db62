//! Verification of a store: what an auditor demands. Works on anything that gives out files: a
//! folder, a copy, an object store, the agent's own API.
//!
//! What must not come from the store comes from the reader: the log's name and public key, and
//! checkpoints that were kept elsewhere.

mod log;
mod recordings;
mod report;

use std::io;

use age::x25519::Identity;

use super::layout::StorePath;
use super::note::LogIdentity;
use crate::recording::RecordingName;

pub use report::{Fault, Outside, Report, Session, SessionState};

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

/// Reads a whole file of at most `limit` bytes; a longer one is cut there.
fn read(store: &dyn StoreReader, path: StorePath, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    let Some(file) = store.open(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
