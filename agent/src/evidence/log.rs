//! The transparency log on disk: one writer, entries before tiles before checkpoint, each
//! durable before the next.
//!
//! The bundle that is being filled is one growing file, `tile/entries/N.p/growing`, which C2SP
//! does not know: it is what is flushed, so that a commit waits for its own entries alone. Each
//! checkpoint's partial bundle is a copy with exactly as many entries as its name says, which
//! never changes (C2SP tlog-tiles: partial tiles are immutable, and are served at least until
//! the full one is). A copy that a power cut tears is made again at start.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use postern_proto::audit::layout::{ENTRY_LIMIT, StorePath, TILE_WIDTH, push_entry};
use postern_proto::audit::note::{LogSigner, sign_checkpoint};
use postern_proto::audit::tree::{self, Edge, FullTile, Hash, TileEdge};
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
    pub(super) folder: PathBuf,
    pub(super) origin: AgentId,
    pub(super) signers: Vec<LogSigner>,
    pub(super) state: State,
    /// Folders of partial files whose full ones are there, by commit.
    pub(super) superseded: VecDeque<Vec<PathBuf>>,
    /// Partial bundles of the bundle that is being filled, with their bytes.
    pub(super) copies: VecDeque<(PathBuf, u64)>,
    /// On a full disk partial bundles are further names of the growing file, which cost nothing.
    pub(super) sparing: bool,
    pub(super) checkpoint: String,
}

/// What a commit replaces as a whole.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) edge: Edge,
    pub(super) tiles: TileEdge,
    /// The bundle that is being filled: its bytes so far.
    pub(super) bundle: Vec<u8>,
    /// How many of them are known to be in the growing file.
    pub(super) written: usize,
    /// Partial tiles that this state's checkpoint needs.
    pub(super) partial: Vec<PathBuf>,
}

impl Log {
    /// Entries under the last durable checkpoint.
    pub(super) fn size(&self) -> u64 {
        self.state.edge.size()
    }

    /// Makes `entries` durable under a new durable checkpoint and answers with a witness for
    /// each. After an error nothing of it counts, and the same call may be made again.
    pub(super) fn commit(&mut self, entries: &[Vec<u8>]) -> io::Result<Vec<Witness>> {
        let first = self.size();
        let mut next = self.state.clone();
        let mut full = Vec::new();
        let mut leaves = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.len() > ENTRY_LIMIT || !push_entry(&mut next.bundle, entry) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let leaf = tree::leaf_hash(entry);
            leaves.push(leaf);
            next.edge.push(leaf);
            full.extend(next.tiles.push(leaf));
            if next.edge.size().is_multiple_of(TILE_WIDTH) {
                self.finish_bundle(&mut next)?;
            }
        }
        self.write_bundle(&mut next)?;
        self.write_tiles(&mut next, &full)?;
        let checkpoint = self.write_checkpoint(&next)?;
        let witnesses = self.witnesses(&next, &full, &checkpoint, first, &leaves)?;
        self.state = next;
        self.checkpoint = checkpoint;
        self.forget(first, &full);
        Ok(witnesses)
    }

    fn path(&self, path: StorePath) -> PathBuf {
        self.folder.join(path.to_string())
    }

    /// The growing file of the bundle that is being filled at this size.
    pub(super) fn growing(folder: &Path, index: u64) -> PathBuf {
        let partial = StorePath::Entries { index, width: 1 }.to_string();
        folder.join(partial).with_file_name("growing")
    }

    /// The bundle is full: it gets its final name.
    fn finish_bundle(&self, next: &mut State) -> io::Result<()> {
        let index = next.edge.size() / TILE_WIDTH - 1;
        let bytes = std::mem::take(&mut next.bundle);
        next.written = 0;
        disk::put(
            &self.path(StorePath::Entries {
                index,
                width: TILE_WIDTH as u16,
            }),
            &bytes,
        )
    }

    fn write_bundle(&self, next: &mut State) -> io::Result<()> {
        let width = (next.edge.size() % TILE_WIDTH) as u16;
        if width == 0 {
            return Ok(());
        }
        let index = next.edge.size() / TILE_WIDTH;
        let growing = Self::growing(&self.folder, index);
        if let Some(folder) = growing.parent() {
            disk::make_folder(folder)?;
        }
        let file = disk::options()
            .create(true)
            .truncate(false)
            .open(&growing)?;
        let new = next.bundle.get(next.written..).unwrap_or_default();
        file.write_all_at(new, next.written as u64)?;
        file.sync_data()?;
        let named = self.path(StorePath::Entries { index, width });
        self.publish(&growing, &named, &next.bundle)?;
        if let Some(folder) = named.parent() {
            disk::sync_folder(folder)?;
        }
        next.written = next.bundle.len();
        Ok(())
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

    fn write_tiles(&self, next: &mut State, full: &[FullTile]) -> io::Result<()> {
        for tile in full {
            let path = self.path(StorePath::Tile {
                level: tile.level,
                index: tile.index,
                width: TILE_WIDTH as u16,
            });
            disk::put_new(&path, &tile.bytes)?;
        }
        let mut partial = Vec::new();
        for (level, index, bytes) in next.tiles.partial() {
            let width = (bytes.len() / tree::HASH_SIZE) as u16;
            let path = self.path(StorePath::Tile {
                level,
                index,
                width,
            });
            // The last checkpoint's own tiles are never written again.
            if !self.state.partial.contains(&path) {
                disk::put_new(&path, bytes)?;
            }
            partial.push(path);
        }
        next.partial.extend(partial);
        Ok(())
    }

    fn write_checkpoint(&self, next: &State) -> io::Result<String> {
        let signers: Vec<&LogSigner> = self.signers.iter().collect();
        let note = sign_checkpoint(&self.origin, next.edge.size(), next.edge.root(), &signers)
            .map_err(io::Error::other)?;
        disk::put(&self.path(StorePath::Checkpoint), note.as_bytes())?;
        Ok(note)
    }

    fn witnesses(
        &self,
        next: &State,
        full: &[FullTile],
        checkpoint: &str,
        first: u64,
        leaves: &[Hash],
    ) -> io::Result<Vec<Witness>> {
        let tiles = |level: u8, index: u64| {
            let partial = next
                .tiles
                .partial()
                .find(|(l, i, _)| (*l, *i) == (level, index))
                .map(|(_, _, bytes)| bytes.to_vec());
            let filled = || {
                full.iter()
                    .find(|tile| (tile.level, tile.index) == (level, index))
                    .map(|tile| tile.bytes.clone())
            };
            partial
                .or_else(filled)
                .or_else(|| read_tile(&self.folder, level, index))
        };
        (first..)
            .zip(leaves)
            .map(|(leaf, hash)| {
                let proof =
                    tree::prove_leaf(&tiles, next.edge.size(), leaf).map_err(io::Error::other)?;
                Ok(Witness {
                    checkpoint: checkpoint.to_owned(),
                    leaf,
                    leaf_hash: hex::encode(hash.0),
                    proof: proof.iter().map(|hash| hex::encode(hash.0)).collect(),
                    consistency: Vec::new(),
                })
            })
            .collect()
    }

    /// Removes partial files some commits after the full ones came, and of partial bundles the
    /// oldest when they take too much. Losing one is no loss: whatever it held stands in the
    /// wider ones. `first` was the size before the commit that finished the tiles `full`.
    fn forget(&mut self, first: u64, full: &[FullTile]) {
        let size = self.size();
        let mut done: Vec<PathBuf> = full
            .iter()
            .map(|tile| partials(&self.folder, Some(tile.level), tile.index))
            .collect();
        if first / TILE_WIDTH != size / TILE_WIDTH {
            // They go with their folder.
            self.copies.clear();
        }
        let bundles = first / TILE_WIDTH..size / TILE_WIDTH;
        done.extend(bundles.map(|index| partials(&self.folder, None, index)));
        self.superseded.push_back(done);
        while self.superseded.len() > KEPT_COMMITS {
            for folder in self.superseded.pop_front().unwrap_or_default() {
                drop(std::fs::remove_dir_all(&folder));
            }
        }
        let width = (size % TILE_WIDTH) as u16;
        if width > 0 {
            let index = size / TILE_WIDTH;
            let named = self.path(StorePath::Entries { index, width });
            let bytes = self.state.bundle.len() as u64;
            self.copies.push_back((named, bytes));
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
        let size = self.size();
        let whole = |index: u64, width: u16| (u64::from(width) == TILE_WIDTH).then_some(index);
        let mut folders = Vec::new();
        let bundles = StorePath::bundles(size).filter_map(|(i, w)| whole(i, w));
        folders.extend(bundles.map(|index| partials(&self.folder, None, index)));
        for level in 0..8 {
            let tiles = StorePath::tiles(level, size).filter_map(|(i, w)| whole(i, w));
            folders.extend(tiles.map(|index| partials(&self.folder, Some(level), index)));
        }
        for folder in folders {
            drop(std::fs::remove_dir_all(folder));
        }
    }
}

/// The folder of partial files of one tile, or (without a level) of one bundle.
fn partials(folder: &Path, level: Option<u8>, index: u64) -> PathBuf {
    let path = match level {
        Some(level) => StorePath::Tile {
            level,
            index,
            width: 1,
        },
        None => StorePath::Entries { index, width: 1 },
    };
    let mut path = folder.join(path.to_string());
    path.pop();
    path
}

/// A full tile from disk.
pub(super) fn read_tile(folder: &Path, level: u8, index: u64) -> Option<Vec<u8>> {
    let path = StorePath::Tile {
        level,
        index,
        width: TILE_WIDTH as u16,
    };
    let mut bytes = vec![0; TILE_WIDTH as usize * tree::HASH_SIZE];
    let file = File::open(folder.join(path.to_string())).ok()?;
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}
