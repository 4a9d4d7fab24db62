//! Growing a log: which bytes go to which file, in which order. Nothing here touches a disk: the
//! writer executes the [`Step`]s of a [`Commit`], each durable before the next, and takes its
//! [`Tail`] for the log's state once the last one is done.
//!
//! The bundle that is being filled is one growing file, `tile/entries/N.p/growing`, which C2SP
//! does not know: it is what is flushed, so that a commit waits for its own entries alone. Each
//! checkpoint's partial bundle is a copy with exactly as many entries as its name says, which
//! never changes (C2SP tlog-tiles: partial tiles are immutable, and are served at least until
//! the full one is). A copy that a power cut tears is made again at start.

use std::fmt;

use thiserror::Error;

use super::layout::{ENTRY_LIMIT, StorePath, TILE_WIDTH, push_entry};
use super::note::{LogSigner, NoteError, sign_checkpoint};
use super::tree::{self, Edge, FullTile, HASH_SIZE, Hash, TileEdge, TileSource, TreeError};
use crate::gateway::message::Witness;
use crate::names::AgentId;

/// A file of a log, as its writer knows it. Displayed it is a path below the store's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFile {
    /// One that readers know.
    Static(StorePath),
    /// The bundle that is being filled.
    Growing {
        /// Its place.
        index: u64,
    },
}

impl fmt::Display for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Static(path) => path.fmt(f),
            Self::Growing { index } => {
                let partial = StorePath::Entries { index, width: 1 }.to_string();
                // A partial path ends with its width.
                write!(f, "{}growing", partial.trim_end_matches('1'))
            }
        }
    }
}

/// One step of a commit. Done means durable, names included, unless it says otherwise. Missing
/// folders are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Puts a file in its place, whole or not at all.
    Replace {
        /// Which.
        file: LogFile,
        /// Its content.
        bytes: &'a [u8],
    },
    /// Writes a file that no checkpoint refers to yet: torn by a power cut it is written again.
    Create {
        /// Which.
        path: StorePath,
        /// Its content.
        bytes: &'a [u8],
    },
    /// Writes into the growing file of a bundle, which is made when missing.
    Grow {
        /// The bundle.
        index: u64,
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// Gives the growing file's content its name for readers: whole for every one of them. The
    /// name is durable, the content some time later: it is made again from the growing file.
    Publish {
        /// The bundle.
        index: u64,
        /// Its entries, 1 to 255.
        width: u16,
        /// All of it.
        bytes: &'a [u8],
    },
}

/// Why entries cannot be appended. Nothing is to be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AppendError {
    /// An entry is longer than [`ENTRY_LIMIT`].
    #[error("an entry is longer than {ENTRY_LIMIT} bytes")]
    TooLong,
    /// The checkpoint could not be signed.
    #[error("signing the checkpoint: {0}")]
    Sign(#[from] NoteError),
}

/// The end of a log, as far as its last durable checkpoint goes: enough to append.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    pub(super) edge: Edge,
    pub(super) tiles: TileEdge,
    /// The bundle that is being filled: its bytes so far.
    pub(super) bundle: Vec<u8>,
    /// How many of them are known to be in the growing file.
    pub(super) written: usize,
}

impl Tail {
    /// Entries in the log.
    pub fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The bytes of the bundle that is being filled.
    pub fn bundle(&self) -> &[u8] {
        &self.bundle
    }

    /// What appending `entries` takes, under one new checkpoint. Until all its steps are done
    /// nothing of it counts, and `self` stays what the log is.
    pub fn commit(
        &self,
        origin: &AgentId,
        signers: &[LogSigner],
        entries: &[Vec<u8>],
    ) -> Result<Commit<'_>, AppendError> {
        let mut next = self.clone();
        let mut commit = Commit {
            before: self,
            next: Self::default(),
            start: 0,
            bundles: Vec::new(),
            tiles: Vec::new(),
            leaves: Vec::with_capacity(entries.len()),
            checkpoint: String::new(),
        };
        for entry in entries {
            if entry.len() > ENTRY_LIMIT || !push_entry(&mut next.bundle, entry) {
                return Err(AppendError::TooLong);
            }
            let leaf = tree::leaf_hash(entry);
            commit.leaves.push(leaf);
            next.edge.push(leaf);
            commit.tiles.extend(next.tiles.push(leaf));
            if next.size().is_multiple_of(TILE_WIDTH) {
                let bytes = std::mem::take(&mut next.bundle);
                commit.bundles.push((next.size() / TILE_WIDTH - 1, bytes));
                next.written = 0;
            }
        }
        commit.start = next.written;
        next.written = next.bundle.len();
        let signers: Vec<&LogSigner> = signers.iter().collect();
        commit.checkpoint = sign_checkpoint(origin, next.size(), next.edge.root(), &signers)?;
        commit.next = next;
        Ok(commit)
    }
}

/// What one commit takes: its steps, and what holds after them.
#[derive(Debug)]
pub struct Commit<'a> {
    before: &'a Tail,
    next: Tail,
    /// Bytes of the new bundle that the growing file holds already.
    start: usize,
    /// Bundles that are full now.
    bundles: Vec<(u64, Vec<u8>)>,
    /// Tiles that are full now.
    tiles: Vec<FullTile>,
    leaves: Vec<Hash>,
    checkpoint: String,
}

impl Commit<'_> {
    /// Entries, tiles, checkpoint: in this order, each done before the next is begun.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let mut steps: Vec<Step<'_>> = Vec::new();
        steps.extend(self.bundles.iter().map(|(index, bytes)| Step::Replace {
            file: LogFile::Static(StorePath::Entries {
                index: *index,
                width: TILE_WIDTH as u16,
            }),
            bytes,
        }));
        let bundle = self.next.bundle.as_slice();
        if let Some((index, width)) = self.partial_bundle() {
            steps.push(Step::Grow {
                index,
                offset: self.start as u64,
                bytes: bundle.get(self.start..).unwrap_or_default(),
            });
            steps.push(Step::Publish {
                index,
                width,
                bytes: bundle,
            });
        }
        let create = |level, index, width, bytes| Step::Create {
            path: StorePath::Tile {
                level,
                index,
                width,
            },
            bytes,
        };
        steps.extend(self.tiles.iter().map(|tile| {
            let bytes = tile.bytes.as_slice();
            create(tile.level, tile.index, TILE_WIDTH as u16, bytes)
        }));
        let old: Vec<_> = self.before.tiles.partial().collect();
        for tile @ (level, index, bytes) in self.next.tiles.partial() {
            // The last checkpoint's own tiles are never written again.
            if !old.contains(&tile) {
                steps.push(create(
                    level,
                    index,
                    (bytes.len() / HASH_SIZE) as u16,
                    bytes,
                ));
            }
        }
        steps.push(Step::Replace {
            file: LogFile::Static(StorePath::Checkpoint),
            bytes: self.checkpoint.as_bytes(),
        });
        steps
    }

    /// Proof of each entry under the new checkpoint; `disk` gives full tiles of before.
    pub fn witnesses(&self, disk: &impl TileSource) -> Result<Vec<Witness>, TreeError> {
        let tiles = |level: u8, index: u64| {
            let partial = self
                .next
                .tiles
                .partial()
                .find(|(l, i, _)| (*l, *i) == (level, index))
                .map(|(_, _, bytes)| bytes.to_vec());
            let filled = || {
                self.tiles
                    .iter()
                    .find(|tile| (tile.level, tile.index) == (level, index))
                    .map(|tile| tile.bytes.clone())
            };
            partial.or_else(filled).or_else(|| disk.tile(level, index))
        };
        (self.before.size()..)
            .zip(&self.leaves)
            .map(|(leaf, hash)| {
                let proof = tree::prove_leaf(&tiles, self.next.size(), leaf)?;
                Ok(Witness {
                    checkpoint: self.checkpoint.clone(),
                    leaf,
                    leaf_hash: hex::encode(hash.0),
                    proof: proof.iter().map(|hash| hex::encode(hash.0)).collect(),
                    consistency: Vec::new(),
                })
            })
            .collect()
    }

    /// Partial files that wider ones have taken the place of, each named by one of them: all of
    /// its folder may go once no reader holds an older checkpoint.
    pub fn superseded(&self) -> Vec<StorePath> {
        let tiles = self.tiles.iter().map(|tile| StorePath::Tile {
            level: tile.level,
            index: tile.index,
            width: 1,
        });
        let bundles = self.bundles.iter().map(|(index, _)| StorePath::Entries {
            index: *index,
            width: 1,
        });
        tiles.chain(bundles).collect()
    }

    /// The partial bundle that the new checkpoint needs: place and entries.
    pub fn partial_bundle(&self) -> Option<(u64, u16)> {
        let width = (self.next.size() % TILE_WIDTH) as u16;
        (width > 0).then_some((self.next.size() / TILE_WIDTH, width))
    }

    /// All steps are done: the log's state and its checkpoint from now on.
    pub fn done(self) -> (Tail, String) {
        (self.next, self.checkpoint)
    }
}

/// Partial files of a log of `size` entries whose full ones are there: what a writer that ended
/// had no time to remove. Each is named by one file of its folder.
pub fn superseded(size: u64) -> Vec<StorePath> {
    let whole = |(index, width): (u64, u16)| (u64::from(width) == TILE_WIDTH).then_some(index);
    let bundles = StorePath::bundles(size)
        .filter_map(whole)
        .map(|index| StorePath::Entries { index, width: 1 });
    let tiles = (0..8).flat_map(|level| {
        StorePath::tiles(level, size)
            .filter_map(whole)
            .map(move |index| StorePath::Tile {
                level,
                index,
                width: 1,
            })
    });
    bundles.chain(tiles).collect()
}
