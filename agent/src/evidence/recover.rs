//! Opening a log: the tree must reproduce the last durable checkpoint, else nothing starts and
//! nothing is touched. Whole entries after it are kept, a torn one is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use postern_proto::audit::event::{Access, Event, Fact, RecordingDigest};
use postern_proto::audit::layout::{
    BUNDLE_LIMIT, CHECKPOINT_LIMIT, StorePath, TILE_WIDTH, split_entries,
};
use postern_proto::audit::note::{Checkpoint, LogIdentity, LogSigner, NoteError, sign_checkpoint};
use postern_proto::audit::ocsf;
use postern_proto::audit::tree::{self, Edge};
use postern_proto::names::{AgentId, SessionId};

use super::disk;
use super::log::{Log, State};
use super::quota::Recorded;

/// Why a log was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
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

impl LogError {
    /// What an operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io(_) => "the agent's user must be able to read and write the whole store",
            Self::Checkpoint(NoteError::Signature | NoteError::Origin(_)) => {
                "this log is another agent's, or keys/audit-log.key is not the key that signed it: \
                 restore the right key, or name a new store in `evidence.store` and keep this one"
            }
            _ => {
                "somebody or something changed the store: keep it as it is for inquiry (`postern \
                 audit verify` names what differs), then restore a copy, or name a new store in \
                 `evidence.store`"
            }
        }
    }
}

/// A log that was opened.
pub(super) struct Recovered {
    pub(super) log: Log,
    /// Whole entries after the checkpoint, to be committed first.
    pub(super) kept: Vec<Vec<u8>>,
    /// Bytes of a torn entry.
    pub(super) dropped: u64,
    /// Whether there was no log before.
    pub(super) first: bool,
    pub(super) open: OpenSessions,
    /// What was recorded lately, for the quotas.
    pub(super) recorded: Recorded,
}

/// Sessions without an end, with what they carry.
#[derive(Default)]
pub(super) struct OpenSessions(pub(super) BTreeMap<SessionId, OpenSession>);

/// One of them.
pub(super) struct OpenSession {
    pub(super) granted: Event,
    pub(super) access: Option<Access>,
    /// The last state of each recording that the log holds.
    pub(super) recordings: BTreeMap<String, RecordingDigest>,
}

impl OpenSessions {
    /// Follows the log by one event.
    pub(super) fn follow(&mut self, event: &Event) {
        let Some(session) = event.session else { return };
        match &event.fact {
            Fact::SessionGranted { access, .. } => {
                let open = OpenSession {
                    granted: event.clone(),
                    access: Some(access.clone()),
                    recordings: BTreeMap::new(),
                };
                self.0.insert(session, open);
            }
            Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } => {
                self.0.remove(&session);
            }
            Fact::RecordingProgressed { recording } => {
                if let Some(open) = self.0.get_mut(&session) {
                    open.recordings
                        .insert(recording.name.clone(), recording.clone());
                }
            }
            _ => {}
        }
    }
}

/// Opens the log in `folder`, or begins one. `signers` sign from now on; the checkpoint may be
/// signed by any of them. The caller holds the folder's lock.
pub(super) fn open(
    folder: &Path,
    origin: &AgentId,
    signers: Vec<LogSigner>,
) -> Result<Recovered, LogError> {
    let found = last_checkpoint(folder, origin, &signers)?;
    let first = found.is_none();
    let checkpoint = match found {
        Some(checkpoint) => checkpoint,
        None => begin(folder, origin, &signers)?,
    };
    let mut reader = Replay::default();
    reader.checked(folder, &checkpoint)?;
    reader.mend(folder, &checkpoint)?;
    reader.kept(folder)?;
    let log = Log {
        folder: folder.to_owned(),
        origin: origin.clone(),
        signers,
        state: reader.state,
        superseded: VecDeque::new(),
        copies: VecDeque::new(),
        sparing: false,
        checkpoint: checkpoint.note,
    };
    log.sweep();
    Ok(Recovered {
        log,
        kept: reader.kept,
        dropped: reader.dropped,
        first,
        open: reader.open,
        recorded: reader.recorded,
    })
}

/// How many entries the log holds, after the same check as [`open`] makes; `None` when there is
/// no log yet. Changes nothing, and needs no lock: what is appended meanwhile is not looked at.
pub(super) fn inspect(
    folder: &Path,
    origin: &AgentId,
    signers: &[LogSigner],
) -> Result<Option<u64>, LogError> {
    let Some(checkpoint) = last_checkpoint(folder, origin, signers)? else {
        if folder.join("tile").exists() {
            return Err(LogError::NoCheckpoint);
        }
        return Ok(None);
    };
    Replay::default().checked(folder, &checkpoint)?;
    Ok(Some(checkpoint.size))
}

fn last_checkpoint(
    folder: &Path,
    origin: &AgentId,
    signers: &[LogSigner],
) -> Result<Option<Checkpoint>, LogError> {
    let Some(bytes) = disk::read(&folder.join("checkpoint"), CHECKPOINT_LIMIT)? else {
        return Ok(None);
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

/// The first checkpoint of all is of the empty log, so that a missing one is always a removal.
fn begin(folder: &Path, origin: &AgentId, signers: &[LogSigner]) -> Result<Checkpoint, LogError> {
    if folder.join("tile").exists() {
        return Err(LogError::NoCheckpoint);
    }
    let signers: Vec<&LogSigner> = signers.iter().collect();
    let root = Edge::default().root();
    let note = sign_checkpoint(origin, 0, root, &signers)?;
    disk::put(&folder.join("checkpoint"), note.as_bytes())?;
    Ok(Checkpoint {
        size: 0,
        root,
        note,
    })
}

#[derive(Default)]
struct Replay {
    state: State,
    open: OpenSessions,
    recorded: Recorded,
    kept: Vec<Vec<u8>>,
    dropped: u64,
}

impl Replay {
    /// Reads what the checkpoint signs: every entry and every tile.
    fn checked(&mut self, folder: &Path, checkpoint: &Checkpoint) -> Result<(), LogError> {
        for (index, width) in StorePath::bundles(checkpoint.size) {
            let path = StorePath::Entries { index, width };
            let bytes = bundle_file(folder, path)?.ok_or(LogError::Missing(path))?;
            let (entries, taken) = split_entries(&bytes);
            let entries = entries
                .get(..usize::from(width))
                .ok_or(LogError::Missing(path))?;
            if u64::from(width) == TILE_WIDTH && taken != bytes.len() {
                return Err(LogError::Altered(path));
            }
            self.bundle(folder, entries)?;
        }
        for (level, index, bytes) in self.state.tiles.partial() {
            let width = (bytes.len() / tree::HASH_SIZE) as u16;
            expect_tile(folder, level, index, width, bytes)?;
            let path = StorePath::Tile {
                level,
                index,
                width,
            };
            self.state.partial.push(folder.join(path.to_string()));
        }
        if self.state.edge.root() != checkpoint.root {
            return Err(LogError::Root {
                size: checkpoint.size,
            });
        }
        Ok(())
    }

    /// The checkpoint's partial bundle is written but not flushed: a power cut may have torn it.
    fn mend(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<(), LogError> {
        let Some((index, width)) = StorePath::bundles(checkpoint.size).last() else {
            return Ok(());
        };
        let path = folder.join(StorePath::Entries { index, width }.to_string());
        if u64::from(width) < TILE_WIDTH
            && disk::read(&path, BUNDLE_LIMIT)?.as_ref() != Some(&self.state.bundle)
        {
            disk::put_soon(&path, &self.state.bundle)?;
        }
        Ok(())
    }

    fn bundle(&mut self, folder: &Path, entries: &[&[u8]]) -> Result<(), LogError> {
        self.state.bundle.clear();
        for entry in entries {
            let leaf = tree::leaf_hash(entry);
            self.state.edge.push(leaf);
            for full in self.state.tiles.push(leaf) {
                expect_tile(
                    folder,
                    full.level,
                    full.index,
                    TILE_WIDTH as u16,
                    &full.bytes,
                )?;
            }
            // Entries of a later version are kept as they are; they open no session here.
            if let Ok(decoded) = ocsf::decode(entry, &[]) {
                self.recorded.follow(&decoded.event, &self.open);
                self.open.follow(&decoded.event);
            }
            // Cannot be too long: it was read behind a 16-bit length.
            let _ = postern_proto::audit::layout::push_entry(&mut self.state.bundle, entry);
        }
        if self.state.edge.size().is_multiple_of(TILE_WIDTH) {
            self.state.bundle.clear();
        }
        Ok(())
    }

    /// Takes the whole entries that follow.
    fn kept(&mut self, folder: &Path) -> Result<(), LogError> {
        let size = self.state.edge.size();
        let mut sequence = size;
        let mut skip = self.state.bundle.len();
        for index in size / TILE_WIDTH.. {
            let Some(bytes) = longest(folder, index, size)? else {
                break;
            };
            if bytes.get(..skip) != Some(self.state.bundle.as_slice()) && index == size / TILE_WIDTH
            {
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
                self.kept.push(entry.to_vec());
                taken += 2 + entry.len();
                sequence += 1;
            }
            if taken < after.len() {
                self.dropped += (after.len() - taken) as u64;
                let whole = bytes.get(..before + taken).unwrap_or_default();
                disk::put(&Log::growing(folder, index), whole)?;
            }
            if !sequence.is_multiple_of(TILE_WIDTH) || sequence == size {
                break;
            }
        }
        Ok(())
    }
}

/// The bytes of a bundle: of a partial one what was flushed, which is the growing file (absent in
/// a folder that was copied without it).
fn bundle_file(folder: &Path, path: StorePath) -> io::Result<Option<Vec<u8>>> {
    if let StorePath::Entries { index, width } = path
        && u64::from(width) < TILE_WIDTH
        && let Some(bytes) = disk::read(&Log::growing(folder, index), BUNDLE_LIMIT)?
    {
        return Ok(Some(bytes));
    }
    disk::read(&folder.join(path.to_string()), BUNDLE_LIMIT)
}

/// The bundle at `index` as far as it was written: its full name, else the growing file, else
/// the partial one of the checkpoint (in a folder that was copied without the growing file).
fn longest(folder: &Path, index: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    let full = StorePath::Entries {
        index,
        width: TILE_WIDTH as u16,
    };
    if let Some(bytes) = disk::read(&folder.join(full.to_string()), BUNDLE_LIMIT)? {
        return Ok(Some(bytes));
    }
    if let Some(bytes) = disk::read(&Log::growing(folder, index), BUNDLE_LIMIT)? {
        return Ok(Some(bytes));
    }
    let width = (size % TILE_WIDTH) as u16;
    if index != size / TILE_WIDTH || width == 0 {
        return Ok(None);
    }
    let partial = StorePath::Entries { index, width };
    disk::read(&folder.join(partial.to_string()), BUNDLE_LIMIT)
}

fn expect_tile(
    folder: &Path,
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
    let found = disk::read(&folder.join(path.to_string()), bytes.len() as u64)
        .map_err(|_| LogError::Altered(path))?
        .ok_or(LogError::Missing(path))?;
    if found != bytes {
        return Err(LogError::Altered(path));
    }
    Ok(())
}
