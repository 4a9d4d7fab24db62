//! Reading a store: what the audit API serves. Names are parsed into types first, so no path
//! leads out of the folder.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use postern_proto::audit::event::RecordingDigest;
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::verify::{StoreReader, read_file};
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
        let (length, sha256) = hashed(&mut file)?;
        Ok(RecordingDigest {
            name: name.to_string(),
            length,
            sha256,
            complete: false,
        })
    }

    /// A tile of the tree of `size`.
    pub(super) fn tile(&self, level: u8, index: u64, size: u64) -> Option<Vec<u8>> {
        let width = StorePath::tile_at(level, index, size)?;
        let path = StorePath::Tile {
            level,
            index,
            width,
        };
        read_file(self, path).ok()?
    }

    /// Recordings that nobody wrote to since `time`: what retention may delete.
    pub fn recordings_before(&self, time: SystemTime) -> io::Result<Vec<RecordingName>> {
        let mut names = self.recordings()?;
        let mut fault = None;
        names.retain(|name| match self.file(StorePath::Recording(*name)) {
            Ok(Some(file)) => file
                .metadata()
                .and_then(|data| data.modified())
                .is_ok_and(|modified| modified < time),
            Ok(None) => false,
            Err(error) => {
                fault = Some(error);
                false
            }
        });
        fault.map_or(Ok(names), Err)
    }
}

/// Length and SHA-256 of what is left of a file.
pub(super) fn hashed(file: &mut File) -> io::Result<(u64, String)> {
    let (mut hash, mut length) = (Context::new(&SHA256), 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((length, hex::encode(hash.finish())));
        }
        hash.update(buffer.get(..read).unwrap_or_default());
        length += read as u64;
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
