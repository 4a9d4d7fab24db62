//! Reading a store: what the audit API serves. Names are parsed into types first, so no path
//! leads out of the folder.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use aws_lc_rs::digest::{Context, SHA256};
use postern_proto::audit::event::RecordingDigest;
use postern_proto::audit::layout::{StorePath, TILE_WIDTH};
use postern_proto::audit::tree::HASH_SIZE;
use postern_proto::audit::verify::StoreReader;
use postern_proto::recording::RecordingName;

/// A store in a folder.
#[derive(Debug, Clone)]
pub struct FolderStore {
    folder: PathBuf,
}

impl FolderStore {
    /// The store in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Opens one file; `None` when there is none.
    pub fn file(&self, path: StorePath) -> io::Result<Option<File>> {
        match File::open(self.folder.join(path.to_string())) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names of all recordings, in order. Other files are passed over.
    pub fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.folder.join("recordings"))? {
            let name = entry?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.parse::<RecordingName>().ok()),
            );
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Length and hash of a recording as it is.
    pub(super) fn digest(&self, name: RecordingName) -> io::Result<RecordingDigest> {
        let mut file = self
            .file(StorePath::Recording(name))?
            .ok_or(io::ErrorKind::NotFound)?;
        let (mut hash, mut length) = (Context::new(&SHA256), 0);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(buffer.get(..read).unwrap_or_default());
            length += read as u64;
        }
        Ok(RecordingDigest {
            name: name.to_string(),
            length,
            sha256: hex::encode(hash.finish()),
            complete: false,
        })
    }

    /// A tile of the tree of `size`, wide enough for it.
    pub(super) fn tile(&self, level: u8, index: u64, size: u64) -> Option<Vec<u8>> {
        let (_, width) = StorePath::tiles(level, size).nth(usize::try_from(index).ok()?)?;
        let full = StorePath::Tile {
            level,
            index,
            width: TILE_WIDTH as u16,
        };
        let exact = StorePath::Tile {
            level,
            index,
            width,
        };
        let file = match self.file(exact).ok()? {
            Some(file) => file,
            // It was partial, and is full by now.
            None => self.file(full).ok()??,
        };
        let mut bytes = Vec::new();
        file.take(TILE_WIDTH * HASH_SIZE as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(bytes)
    }
}

impl StoreReader for FolderStore {
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn io::Read + '_>>> {
        Ok(self
            .file(path)?
            .map(|file| Box::new(file) as Box<dyn io::Read>))
    }

    fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        self.recordings()
    }
}
