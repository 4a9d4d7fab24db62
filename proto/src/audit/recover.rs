//! Opening a log: the tree must reproduce the last durable checkpoint, else nothing starts and
//! nothing is touched. Whole entries after it are kept, a torn one is dropped. Nothing here
//! writes: what is to be written are [`Step`]s for the log's writer.

use std::io;

use thiserror::Error;

use super::append::{LogFile, Step, Tail};
use super::layout::{
    BUNDLE_LIMIT, CHECKPOINT_LIMIT, StorePath, TILE_WIDTH, push_entry, split_entries,
};
use super::note::{Checkpoint, LogIdentity, LogSigner, NoteError, sign_checkpoint};
use super::ocsf;
use super::tree::{self, Edge, HASH_SIZE, TileEdge};
use crate::names::AgentId;

/// Why a log was not opened. Nothing was changed.
#[derive(Debug, Error)]
pub enum LogError {
    /// It could not be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There are entries but no checkpoint.
    #[error("the audit log has entries but no checkpoint: it was removed")]
    NoCheckpoint,
    /// The checkpoint is not ours.
    #[error("the checkpoint is {0}")]
    Checkpoint(#[from] NoteError),
    /// A file that the checkpoint needs is missing or shorter.
    #[error("{0} is missing or shorter than the checkpoint says")]
    Missing(StorePath),
    /// A file is not what the checkpoint signs.
    #[error("{0} is not what the checkpoint signs")]
    Altered(StorePath),
    /// All files agree with each other but not with the checkpoint.
    #[error("the log does not reproduce its last checkpoint of {size} entries")]
    Root {
        /// Entries of the checkpoint.
        size: u64,
    },
}

/// Reads the files of a log.
pub trait LogFiles {
    /// A whole file of at most `limit` bytes, a longer one is an error; `None` when there is none.
    fn read(&self, file: LogFile, limit: u64) -> io::Result<Option<Vec<u8>>>;
    /// Whether anything but a checkpoint is there.
    fn has_entries(&self) -> bool;
}

/// What stands after the checkpoint.
#[derive(Debug, Default)]
pub struct Left {
    /// Whole entries, to be committed first.
    pub kept: Vec<Vec<u8>>,
    /// Bytes of a torn entry. Nobody was told that it is durable.
    pub dropped: u64,
    /// Growing files without their torn ends.
    whole: Vec<(u64, Vec<u8>)>,
}

impl Left {
    /// What drops the torn entry.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        self.whole.iter().map(|(index, bytes)| Step::Replace {
            file: LogFile::Growing { index: *index },
            bytes,
        })
    }
}

/// The log's checkpoint, signed by any of `signers`; `None` when there is no log yet. A log
/// without one is an error.
pub fn last_checkpoint(
    files: &impl LogFiles,
    origin: &AgentId,
    signers: &[LogSigner],
) -> Result<Option<Checkpoint>, LogError> {
    let file = LogFile::Static(StorePath::Checkpoint);
    let Some(bytes) = files.read(file, CHECKPOINT_LIMIT)? else {
        return if files.has_entries() {
            Err(LogError::NoCheckpoint)
        } else {
            Ok(None)
        };
    };
    let note = String::from_utf8(bytes).map_err(|_| NoteError::Malformed)?;
    let mut last = Err(NoteError::Key);
    for signer in signers {
        last = LogIdentity::new(origin.clone(), signer.vkey())?.checkpoint(&note);
        if last.is_ok() {
            break;
        }
    }
    Ok(Some(last?))
}

/// The first checkpoint of all, of the empty log: so that a missing one is always a removal. Its
/// note is to be written before anything else.
pub fn first_checkpoint(origin: &AgentId, signers: &[LogSigner]) -> Result<Checkpoint, NoteError> {
    let signers: Vec<&LogSigner> = signers.iter().collect();
    let root = Edge::default().root();
    let note = sign_checkpoint(origin, 0, root, &signers)?;
    Ok(Checkpoint {
        size: 0,
        root,
        note,
    })
}

/// Reads all that the checkpoint signs, every entry and every tile; `each` gets the entries.
pub fn replay(
    files: &impl LogFiles,
    checkpoint: &Checkpoint,
    mut each: impl FnMut(&[u8]),
) -> Result<Tail, LogError> {
    let mut tail = Tail::default();
    for (index, width) in StorePath::bundles(checkpoint.size) {
        let path = StorePath::Entries { index, width };
        let bytes = bundle_file(files, index, width)?.ok_or(LogError::Missing(path))?;
        let (entries, taken) = split_entries(&bytes);
        let entries = entries
            .get(..usize::from(width))
            .ok_or(LogError::Missing(path))?;
        if u64::from(width) == TILE_WIDTH && taken != bytes.len() {
            return Err(LogError::Altered(path));
        }
        tail.bundle.clear();
        for entry in entries {
            let leaf = tree::leaf_hash(entry);
            tail.edge.push(leaf);
            for full in tail.tiles.push(leaf) {
                let width = TILE_WIDTH as u16;
                expect_tile(files, full.level, full.index, width, &full.bytes)?;
            }
            each(entry);
            // Cannot be too long: it was read behind a 16-bit length.
            let _ = push_entry(&mut tail.bundle, entry);
        }
        if tail.size().is_multiple_of(TILE_WIDTH) {
            tail.bundle.clear();
        }
    }
    for (level, index, bytes) in tail.tiles.partial() {
        let width = (bytes.len() / HASH_SIZE) as u16;
        expect_tile(files, level, index, width, bytes)?;
    }
    reproduces(tail, checkpoint)
}

/// Reads the right edge of what the checkpoint signs: its partial tiles and the bundle that is
/// being filled. Enough to append without reading a whole log; what lies further left is for
/// whoever verifies.
pub fn resume(files: &impl LogFiles, checkpoint: &Checkpoint) -> Result<Tail, LogError> {
    let mut levels = Vec::new();
    for level in 0..8u8 {
        let hashes = checkpoint.size >> (8 * u32::from(level));
        if hashes == 0 {
            break;
        }
        let (index, width) = (hashes / TILE_WIDTH, (hashes % TILE_WIDTH) as u16);
        let path = StorePath::Tile {
            level,
            index,
            width,
        };
        let length = usize::from(width) * HASH_SIZE;
        let bytes = match width {
            0 => Vec::new(),
            _ => files
                .read(LogFile::Static(path), length as u64)
                .map_err(|_| LogError::Altered(path))?
                .ok_or(LogError::Missing(path))?,
        };
        if bytes.len() != length {
            return Err(LogError::Missing(path));
        }
        levels.push((index, bytes));
    }
    let tiles = TileEdge::from_partial(levels);
    let edge = Edge::from_tiles(&tiles, checkpoint.size).ok_or(LogError::Root {
        size: checkpoint.size,
    })?;
    let mut tail = Tail {
        edge,
        tiles,
        ..Tail::default()
    };
    let (index, width) = (
        checkpoint.size / TILE_WIDTH,
        (checkpoint.size % TILE_WIDTH) as u16,
    );
    if width > 0 {
        let path = StorePath::Entries { index, width };
        let bytes = bundle_file(files, index, width)?.ok_or(LogError::Missing(path))?;
        let (entries, _) = split_entries(&bytes);
        let entries = entries
            .get(..usize::from(width))
            .ok_or(LogError::Missing(path))?;
        let hashes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| tree::leaf_hash(entry).0)
            .collect();
        let stated = tail.tiles.partial().find(|(level, ..)| *level == 0);
        if stated.map(|(_, _, bytes)| bytes) != Some(hashes.as_slice()) {
            return Err(LogError::Altered(path));
        }
        for entry in entries {
            let _ = push_entry(&mut tail.bundle, entry);
        }
    }
    reproduces(tail, checkpoint)
}

fn reproduces(tail: Tail, checkpoint: &Checkpoint) -> Result<Tail, LogError> {
    if tail.edge.root() != checkpoint.root {
        return Err(LogError::Root {
            size: checkpoint.size,
        });
    }
    Ok(tail)
}

/// The checkpoint's partial bundle is written but not flushed: where a power cut tore it, this
/// makes it again.
pub fn mend<'a>(files: &impl LogFiles, tail: &'a Tail) -> Result<Option<Step<'a>>, LogError> {
    let width = (tail.size() % TILE_WIDTH) as u16;
    if width == 0 {
        return Ok(None);
    }
    let index = tail.size() / TILE_WIDTH;
    let file = LogFile::Static(StorePath::Entries { index, width });
    // On a full disk it is a further name of the growing file, and has more.
    let whole = files
        .read(file, BUNDLE_LIMIT)?
        .is_some_and(|bytes| bytes == tail.bundle);
    Ok((!whole).then_some(Step::Publish {
        index,
        width,
        bytes: &tail.bundle,
    }))
}

/// Finds what stands after the tail's checkpoint.
pub fn left(files: &impl LogFiles, tail: &Tail) -> Result<Left, LogError> {
    let mut left = Left::default();
    let size = tail.size();
    let mut sequence = size;
    let mut skip = tail.bundle.len();
    for index in size / TILE_WIDTH.. {
        let Some(bytes) = longest(files, index, size)? else {
            break;
        };
        if bytes.get(..skip) != Some(tail.bundle.as_slice()) && index == size / TILE_WIDTH {
            return Err(LogError::Altered(StorePath::Entries {
                index,
                width: TILE_WIDTH as u16,
            }));
        }
        let before = std::mem::take(&mut skip);
        let after = bytes.get(before..).unwrap_or_default();
        let (entries, _) = split_entries(after);
        let mut taken = 0;
        for entry in entries {
            let fits = ocsf::decode(entry, &[]).is_ok_and(|leaf| leaf.sequence == sequence);
            if !fits {
                break;
            }
            left.kept.push(entry.to_vec());
            taken += 2 + entry.len();
            sequence += 1;
        }
        if taken < after.len() {
            left.dropped += (after.len() - taken) as u64;
            let whole = bytes.get(..before + taken).unwrap_or_default();
            left.whole.push((index, whole.to_vec()));
        }
        if !sequence.is_multiple_of(TILE_WIDTH) || sequence == size {
            break;
        }
    }
    Ok(left)
}

/// The bytes of a bundle: of a partial one what was flushed, which is the growing file (absent in
/// a folder that was copied without it).
fn bundle_file(files: &impl LogFiles, index: u64, width: u16) -> io::Result<Option<Vec<u8>>> {
    if u64::from(width) < TILE_WIDTH
        && let Some(bytes) = files.read(LogFile::Growing { index }, BUNDLE_LIMIT)?
    {
        return Ok(Some(bytes));
    }
    let path = StorePath::Entries { index, width };
    files.read(LogFile::Static(path), BUNDLE_LIMIT)
}

/// The bundle at `index` as far as it was written: its full name, else the growing file, else
/// the partial one of the checkpoint (in a folder that was copied without the growing file).
fn longest(files: &impl LogFiles, index: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    let full = StorePath::Entries {
        index,
        width: TILE_WIDTH as u16,
    };
    if let Some(bytes) = files.read(LogFile::Static(full), BUNDLE_LIMIT)? {
        return Ok(Some(bytes));
    }
    if let Some(bytes) = files.read(LogFile::Growing { index }, BUNDLE_LIMIT)? {
        return Ok(Some(bytes));
    }
    let width = (size % TILE_WIDTH) as u16;
    if index != size / TILE_WIDTH || width == 0 {
        return Ok(None);
    }
    let partial = StorePath::Entries { index, width };
    files.read(LogFile::Static(partial), BUNDLE_LIMIT)
}

fn expect_tile(
    files: &impl LogFiles,
    level: u8,
    index: u64,
    width: u16,
    bytes: &[u8],
) -> Result<(), LogError> {
    let path = StorePath::Tile {
        level,
        index,
        width,
    };
    let found = files
        .read(LogFile::Static(path), bytes.len() as u64)
        .map_err(|_| LogError::Altered(path))?
        .ok_or(LogError::Missing(path))?;
    if found != bytes {
        return Err(LogError::Altered(path));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
