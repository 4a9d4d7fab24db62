//! The files of a store. Source: C2SP `tlog-tiles` (c2sp.org/tlog-tiles), sections "Merkle
//! Tree", "Partial Tiles" and "Log entries". The `tlog_tiles` crate writes Go's paths, so these
//! are ours.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::recording::RecordingName;

/// Hashes of a full tile, entries of a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// The longest entry: its length is 16 bits.
pub const ENTRY_LIMIT: usize = u16::MAX as usize;
/// The longest bundle.
pub const BUNDLE_LIMIT: u64 = TILE_WIDTH * (2 + ENTRY_LIMIT as u64);
/// The longest checkpoint that is read.
pub const CHECKPOINT_LIMIT: u64 = 16 * 1024;
/// The highest level of tiles that 2⁶⁴ entries need.
pub const MAX_LEVEL: u8 = 7;

/// One file of a store. Parsed from a path it is one of ours, whatever the path was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorePath {
    /// `checkpoint`
    Checkpoint,
    /// `tile/L/N[.p/W]`
    Tile {
        /// The level: 0 holds the leaves' hashes.
        level: u8,
        /// The place in its level.
        index: u64,
        /// Hashes in it, 1 to 256.
        width: u16,
    },
    /// `tile/entries/N[.p/W]`
    Entries {
        /// The place.
        index: u64,
        /// Entries in it, 1 to 256.
        width: u16,
    },
    /// `recordings/NAME`
    Recording(RecordingName),
}

/// A path that is no file of a store.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a file of an audit store")]
pub struct PathError;

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Tile {
                level,
                index,
                width,
            } => {
                write!(f, "tile/{level}/")?;
                write_place(f, index, width)
            }
            Self::Entries { index, width } => {
                f.write_str("tile/entries/")?;
                write_place(f, index, width)
            }
            Self::Recording(name) => write!(f, "recordings/{name}"),
        }
    }
}

impl FromStr for StorePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let path = parse(text).ok_or(PathError)?;
        // Only the one written form is a path.
        if path.to_string() == text {
            Ok(path)
        } else {
            Err(PathError)
        }
    }
}

fn parse(text: &str) -> Option<StorePath> {
    if text == "checkpoint" {
        return Some(StorePath::Checkpoint);
    }
    if let Some(name) = text.strip_prefix("recordings/") {
        return Some(StorePath::Recording(name.parse().ok()?));
    }
    let (kind, place) = text.strip_prefix("tile/")?.split_once('/')?;
    let (index, width) = parse_place(place)?;
    if kind == "entries" {
        return Some(StorePath::Entries { index, width });
    }
    let level = kind.parse().ok().filter(|level| *level <= MAX_LEVEL)?;
    Some(StorePath::Tile {
        level,
        index,
        width,
    })
}

fn parse_place(text: &str) -> Option<(u64, u16)> {
    let (index, width) = match text.split_once(".p/") {
        Some((index, width)) => (index, width.parse().ok()?),
        None => (text, TILE_WIDTH as u16),
    };
    if !(1..=TILE_WIDTH as u16).contains(&width) || index.len() > 40 {
        return None;
    }
    let digits: String = index.replace("/x", "").replace(['x', '/'], "");
    Some((digits.parse().ok()?, width))
}

fn write_place(f: &mut fmt::Formatter<'_>, index: u64, width: u16) -> fmt::Result {
    let mut groups = vec![index % 1000];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(rest % 1000);
        rest /= 1000;
    }
    let last = groups.len() - 1;
    for (place, group) in groups.iter().rev().enumerate() {
        if place < last {
            write!(f, "x{group:03}/")?;
        } else {
            write!(f, "{group:03}")?;
        }
    }
    if u64::from(width) < TILE_WIDTH {
        write!(f, ".p/{width}")?;
    }
    Ok(())
}

impl StorePath {
    /// The bundles of a log with `size` entries, in order.
    pub fn bundles(size: u64) -> impl Iterator<Item = (u64, u16)> {
        (0..size.div_ceil(TILE_WIDTH)).map(move |index| (index, width_of(size, index)))
    }

    /// The tiles of one level of a log with `size` entries, in order: full ones, then a partial
    /// one where the size has a rest.
    pub fn tiles(level: u8, size: u64) -> impl Iterator<Item = (u64, u16)> {
        let hashes = size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        Self::bundles(hashes)
    }
}

/// The width of the tile at `index` when its level holds `hashes`.
fn width_of(hashes: u64, index: u64) -> u16 {
    (hashes - (index * TILE_WIDTH).min(hashes)).min(TILE_WIDTH) as u16
}

/// Appends an entry to a bundle: a 16-bit length, big-endian, and the bytes. `false` when the
/// entry is too long.
#[must_use]
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else {
        return false;
    };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The whole entries at the start of a bundle, and how many bytes they take. What follows is
/// torn.
pub fn split_entries(bundle: &[u8]) -> (Vec<&[u8]>, usize) {
    let mut entries = Vec::new();
    let mut taken = 0;
    while let Some((length, rest)) = bundle
        .get(taken..)
        .and_then(|left| left.split_first_chunk::<2>())
    {
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(entry) = rest.get(..length) else {
            break;
        };
        entries.push(entry);
        taken += 2 + length;
    }
    (entries, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let entries = |index, width| StorePath::Entries { index, width }.to_string();
        assert_eq!(entries(1_234_067, 256), "tile/entries/x001/x234/067");
        assert_eq!(entries(0, 7), "tile/entries/000.p/7");
        // "a tree of size 70,000 will be represented by 273 full level 0 tiles, one partial
        // level 0 tile of width 112, one full level 1 tile, one partial level 1 tile of width
        // 17, and one partial level 2 tile of width 1."
        let tiles = |level| StorePath::tiles(level, 70_000).collect::<Vec<_>>();
        assert_eq!(tiles(0).len(), 274);
        assert_eq!(tiles(0).last(), Some(&(273, 112)));
        assert_eq!(tiles(1), [(0, 256), (1, 17)]);
        assert_eq!(tiles(2), [(0, 1)]);
        assert_eq!(tiles(3), []);
    }

    #[test]
    fn a_path_that_leaves_the_store_is_no_path() {
        for bad in [
            "",
            "..",
            "/etc/passwd",
            "tile/0/../../checkpoint",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/00/000",
            "tile/8/000",
            "tile/0/0",
            "tile/0/001/000",
            "tile/entries/x000/000",
            "tile/entries/x001/x234/067/",
            "recordings/../checkpoint",
            "recordings/",
            "checkpoint\0",
            "lock",
        ] {
            assert_eq!(bad.parse::<StorePath>(), Err(PathError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_path_reads_back(level in 0..=MAX_LEVEL, index in any::<u64>(), width in 1..=256u16) {
            for path in [StorePath::Tile { level, index, width }, StorePath::Entries { index, width }] {
                prop_assert_eq!(path.to_string().parse(), Ok(path));
            }
        }

        #[test]
        fn parsing_a_path_never_panics_and_forgives_nothing(text in "[xtilenrs0-9/.p]{0,40}") {
            if let Ok(path) = text.parse::<StorePath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }

        #[test]
        fn entries_read_back_and_a_torn_one_is_left(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
            cut in 0..60usize,
        ) {
            let mut bundle = Vec::new();
            for entry in &entries {
                prop_assert!(push_entry(&mut bundle, entry));
            }
            let (read, taken) = split_entries(&bundle);
            prop_assert_eq!(&read, &entries);
            prop_assert_eq!(taken, bundle.len());
            bundle.truncate(bundle.len().saturating_sub(cut));
            let (read, taken) = split_entries(&bundle);
            prop_assert!(taken <= bundle.len());
            prop_assert!(entries.iter().zip(&read).all(|(entry, read)| entry == read));
            prop_assert!(read.len() <= entries.len());
        }
    }
}
