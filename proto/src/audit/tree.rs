//! Roots and proofs. Hashing and the proofs' shape are `tlog_tiles`; reading tiles is ours: its
//! own tile reader panics on tiles of a wrong size.

use std::cell::RefCell;

use thiserror::Error;
pub use tlog_tiles::tlog::Hash;
use tlog_tiles::tlog::{self, HashReader};

use super::layout::TILE_WIDTH;

/// Bytes of a hash.
pub const HASH_SIZE: usize = 32;
/// The longest proof that any tree has: one hash for each level, twice for consistency.
pub const PROOF_LIMIT: usize = 128;

/// Why a proof could not be made or does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TreeError {
    /// Index and sizes do not fit each other.
    #[error("no such proof: index or sizes do not fit")]
    Range,
    /// A tile is missing or has a wrong size.
    #[error("tile {index} of level {level} is missing or too short")]
    Tile {
        /// Its level.
        level: u8,
        /// Its place.
        index: u64,
    },
    /// The proof does not hold.
    #[error("the proof does not hold")]
    Proof,
}

/// The RFC 6962 hash of an entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    tlog::record_hash(entry)
}

/// The hash over a run of hashes whose length is a power of two: a node of the tree.
fn node(hashes: &[u8]) -> Option<Hash> {
    if hashes.len() <= HASH_SIZE {
        return Some(Hash(hashes.try_into().ok()?));
    }
    let (left, right) = hashes.split_at(hashes.len() / 2);
    Some(tlog::node_hash(node(left)?, node(right)?))
}

/// The right edge of a growing tree: enough to go on and to know the root at this size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edge {
    size: u64,
    /// Roots of full subtrees from left to right, each smaller than the one before.
    roots: Vec<(u8, Hash)>,
}

impl Edge {
    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf's hash.
    pub fn push(&mut self, leaf: Hash) {
        let (mut level, mut hash) = (0, leaf);
        while let Some((_, left)) = self.roots.pop_if(|(top, _)| *top == level) {
            hash = tlog::node_hash(left, hash);
            level += 1;
        }
        self.roots.push((level, hash));
        self.size += 1;
    }

    /// The root at this size.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev().map(|(_, hash)| *hash);
        let Some(first) = roots.next() else {
            return tlog::EMPTY_HASH;
        };
        roots.fold(first, |right, left| tlog::node_hash(left, right))
    }

    /// The edge of a tree of `size`, from its partial tiles; `None` where they do not fit it.
    pub(super) fn from_tiles(tiles: &TileEdge, size: u64) -> Option<Self> {
        let mut roots = Vec::new();
        // From left to right: the highest level's hashes cover the most.
        for level in (0..8u8).rev() {
            let Some(tile) = tiles.levels.get(usize::from(level)) else {
                continue;
            };
            let mut rest = tile.bytes.as_slice();
            for height in (0..8u8).rev() {
                let length = HASH_SIZE << height;
                if (size >> (8 * u32::from(level) + u32::from(height))) & 1 == 1 {
                    let (run, after) = rest.split_at_checked(length)?;
                    roots.push((8 * level + height, node(run)?));
                    rest = after;
                }
            }
            if !rest.is_empty() {
                return None;
            }
        }
        Some(Self { size, roots })
    }
}

/// The rightmost tile of each level of a growing tree.
#[derive(Debug, Clone, Default)]
pub struct TileEdge {
    levels: Vec<Level>,
}

#[derive(Debug, Clone, Default)]
struct Level {
    index: u64,
    bytes: Vec<u8>,
}

/// A tile that is full now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullTile {
    /// Its level.
    pub level: u8,
    /// Its place.
    pub index: u64,
    /// 256 hashes.
    pub bytes: Vec<u8>,
}

impl TileEdge {
    /// The rightmost tiles from level 0 on: place and bytes, which are none where a tile was just
    /// filled.
    pub(super) fn from_partial(levels: Vec<(u64, Vec<u8>)>) -> Self {
        let levels = levels.into_iter();
        Self {
            levels: levels
                .map(|(index, bytes)| Level { index, bytes })
                .collect(),
        }
    }

    /// Adds a leaf's hash; answers with the tiles that it filled, lowest first.
    pub fn push(&mut self, leaf: Hash) -> Vec<FullTile> {
        let mut full = Vec::new();
        let mut hash = leaf;
        for level in 0u8.. {
            let place = usize::from(level);
            if self.levels.len() <= place {
                self.levels.push(Level::default());
            }
            let Some(current) = self.levels.get_mut(place) else {
                break;
            };
            current.bytes.extend_from_slice(&hash.0);
            if current.bytes.len() < TILE_WIDTH as usize * HASH_SIZE {
                break;
            }
            let bytes = std::mem::take(&mut current.bytes);
            let index = current.index;
            current.index += 1;
            let above = node(&bytes);
            full.push(FullTile {
                level,
                index,
                bytes,
            });
            match above {
                Some(above) => hash = above,
                None => break,
            }
        }
        full
    }

    /// The partial tiles as they are now: level, place, bytes.
    pub fn partial(&self) -> impl Iterator<Item = (u8, u64, &[u8])> {
        (0u8..)
            .zip(&self.levels)
            .filter(|(_, level)| !level.bytes.is_empty())
            .map(|(level, tile)| (level, tile.index, tile.bytes.as_slice()))
    }
}

/// Gives the bytes of a tile: full where the tree of that size has it full, else at least as
/// wide as the tree needs. `None` where there is none.
pub trait TileSource {
    /// The tile of `level` at `index`.
    fn tile(&self, level: u8, index: u64) -> Option<Vec<u8>>;
}

impl<F: Fn(u8, u64) -> Option<Vec<u8>>> TileSource for F {
    fn tile(&self, level: u8, index: u64) -> Option<Vec<u8>> {
        self(level, index)
    }
}

/// The inclusion proof of leaf `index` in the tree of `size`.
pub fn prove_leaf(tiles: &impl TileSource, size: u64, index: u64) -> Result<Vec<Hash>, TreeError> {
    if index >= size || size > 1 << 56 {
        return Err(TreeError::Range);
    }
    let hashes = Hashes::new(tiles);
    tlog::prove_record(size, index, &hashes).map_err(|_| hashes.error())
}

/// The proof that the tree of `size` begins with the tree of `old`.
pub fn prove_growth(tiles: &impl TileSource, size: u64, old: u64) -> Result<Vec<Hash>, TreeError> {
    if old > size || size > 1 << 56 {
        return Err(TreeError::Range);
    }
    if old == 0 || old == size {
        return Ok(Vec::new());
    }
    let hashes = Hashes::new(tiles);
    tlog::prove_tree(size, old, &hashes).map_err(|_| hashes.error())
}

/// The root of the tree of `size`, from its tiles.
pub fn root(tiles: &impl TileSource, size: u64) -> Result<Hash, TreeError> {
    if size > 1 << 56 {
        return Err(TreeError::Range);
    }
    let hashes = Hashes::new(tiles);
    tlog::tree_hash(size, &hashes).map_err(|_| hashes.error())
}

/// Whether `leaf` stands at `index` in the tree of `size` with that `root`.
pub fn check_leaf(
    proof: &[Hash],
    size: u64,
    root: Hash,
    index: u64,
    leaf: Hash,
) -> Result<(), TreeError> {
    if index >= size || size > 1 << 56 || proof.len() > PROOF_LIMIT {
        return Err(TreeError::Range);
    }
    tlog::check_record(&proof.to_vec(), size, root, index, leaf).map_err(|_| TreeError::Proof)
}

/// Whether the tree of `size` begins with the tree of `old`.
pub fn check_growth(
    proof: &[Hash],
    size: u64,
    root: Hash,
    old: u64,
    old_root: Hash,
) -> Result<(), TreeError> {
    if old > size || size > 1 << 56 || proof.len() > PROOF_LIMIT {
        return Err(TreeError::Range);
    }
    if old == 0 {
        let fits = proof.is_empty() && old_root == tlog::EMPTY_HASH;
        return if fits { Ok(()) } else { Err(TreeError::Proof) };
    }
    tlog::check_tree(&proof.to_vec(), size, root, old, old_root).map_err(|_| TreeError::Proof)
}

/// Reads the tree's nodes out of tiles.
struct Hashes<'a, T> {
    tiles: &'a T,
    missing: RefCell<Option<(u8, u64)>>,
}

impl<'a, T: TileSource> Hashes<'a, T> {
    fn new(tiles: &'a T) -> Self {
        Self {
            tiles,
            missing: RefCell::new(None),
        }
    }

    fn error(&self) -> TreeError {
        match *self.missing.borrow() {
            Some((level, index)) => TreeError::Tile { level, index },
            None => TreeError::Range,
        }
    }

    fn hash(&self, stored: u64) -> Option<Hash> {
        let (level, place) = tlog::split_stored_hash_index(stored);
        let (tile_level, height) = (level / 8, level % 8);
        let first = place << height;
        let index = first / TILE_WIDTH;
        let start = usize::try_from(first % TILE_WIDTH).ok()? * HASH_SIZE;
        let found = self
            .tiles
            .tile(tile_level, index)
            .and_then(|bytes| node(bytes.get(start..start + (HASH_SIZE << height))?));
        if found.is_none() {
            *self.missing.borrow_mut() = Some((tile_level, index));
        }
        found
    }
}

impl<T: TileSource> HashReader for Hashes<'_, T> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
        indexes
            .iter()
            .map(|stored| self.hash(*stored).ok_or(tlog::Error::IndexesNotInTree))
            .collect()
    }
}

#[cfg(test)]
mod tests;
