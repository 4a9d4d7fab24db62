//! Files that decide who gets in where: read whole, bounded, and only when nobody else can write
//! them.

use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever may write it decides who gets in.
    #[error("{} may be written by every user of this machine", .0.display())]
    Writable(PathBuf),
    /// More than such a file ever needs.
    #[error("{} is longer than {limit} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// In bytes.
        limit: u64,
    },
}

impl FileError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "make it, or name another one in agent.toml".to_owned()
            }
            Self::Read { path, .. } => {
                format!("make {} readable for the agent's user", path.display())
            }
            Self::Writable(path) => format!("chmod o-w {}", path.display()),
            Self::TooLong { .. } => "split it, or remove what does not belong there".to_owned(),
        }
    }
}

/// The text of a file of at most `limit` bytes. Blocks.
pub fn read(path: &Path, limit: u64) -> Result<String, FileError> {
    let fault = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fault)?;
    // Of the open file, so that another cannot take its place in between.
    refuse_writable(path, &file.metadata().map_err(fault)?)?;
    let mut text = String::new();
    file.take(limit + 1)
        .read_to_string(&mut text)
        .map_err(fault)?;
    if text.len() as u64 > limit {
        return Err(FileError::TooLong {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(text)
}

/// The files of a folder with an extension, sorted. Hidden files are left alone. Blocks.
pub fn list(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, FileError> {
    let fault = |source| FileError::Read {
        path: folder.to_owned(),
        source,
    };
    refuse_writable(folder, &std::fs::metadata(folder).map_err(fault)?)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        if path.extension().is_some_and(|e| e == extension) && !path.file_name().is_some_and(hidden)
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn refuse_writable(path: &Path, metadata: &std::fs::Metadata) -> Result<(), FileError> {
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(FileError::Writable(path.to_owned()));
    }
    Ok(())
}
