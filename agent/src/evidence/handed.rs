//! Recordings that clients hand over: pieces in a folder apart, moved to the others once length
//! and hash are what the closing claim states.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_proto::audit::event::RecordingDigest;
use postern_proto::audit::layout::StorePath;
use postern_proto::recording::RecordingName;

use super::claims::{Expected, Upload};
use super::reader::hashed;
use super::{Evidence, EvidenceError, disk};

/// Why a piece is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceError {
    /// No claim of this principal states that recording as complete.
    #[error("you claimed no such recording")]
    Unknown,
    /// Another request hands it over.
    #[error("another request hands this recording over")]
    Busy,
    /// Pieces come in order.
    #[error("the next piece begins at byte {0}")]
    Offset(u64),
    /// It is not what was claimed: the pieces are gone.
    #[error("the recording is not what the log says of it")]
    Other,
    /// The principal's quota, or the store.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What is there of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Has {
    /// Bytes: the next piece begins there.
    pub(crate) length: u64,
    /// Whether it is whole, and in the store.
    pub(crate) complete: bool,
}

impl Evidence {
    /// What is there of a recording that `owner` claimed.
    pub(crate) async fn handed(&self, owner: &str, name: RecordingName) -> Result<Has, PieceError> {
        self.expected(owner, name)?;
        let folder = self.shared.folder.clone();
        let has = tokio::task::spawn_blocking(move || has(&folder, name)).await;
        Ok(has.map_err(io::Error::other)??)
    }

    /// Adds a piece at `offset`.
    pub(crate) async fn hand_over(
        &self,
        owner: &str,
        name: RecordingName,
        offset: u64,
        piece: bytes::Bytes,
    ) -> Result<Has, PieceError> {
        let expected = self.expected(owner, name)?;
        self.admit()?;
        let upload = self.shared.uploads.begin(name).ok_or(PieceError::Busy)?;
        if offset.saturating_add(piece.len() as u64) > expected.digest.length {
            return Err(PieceError::Other);
        }
        let shared = Arc::clone(&self.shared);
        let (folder, owner) = (self.shared.folder.clone(), owner.to_owned());
        let work = move || -> Result<Has, PieceError> {
            let _upload: Upload = upload;
            let there = has(&folder, name)?;
            if there.complete {
                return Ok(there);
            }
            if there.length != offset {
                return Err(PieceError::Offset(there.length));
            }
            shared.usage.take(&owner, piece.len() as u64)?;
            add(&folder, name, offset, &piece, &expected.digest)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(io::Error::other)?
    }

    fn expected(&self, owner: &str, name: RecordingName) -> Result<Expected, PieceError> {
        let expected = self.shared.claims.expected(name);
        expected
            .filter(|expected| expected.owner == owner)
            .ok_or(PieceError::Unknown)
    }
}

/// Where pieces are kept.
pub(super) fn pieces(folder: &Path) -> PathBuf {
    folder.join("handed")
}

fn has(folder: &Path, name: RecordingName) -> io::Result<Has> {
    let length = |path: PathBuf| match std::fs::metadata(path) {
        Ok(data) => Ok(Some(data.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(length) = length(folder.join(StorePath::Recording(name).to_string()))? {
        return Ok(Has {
            length,
            complete: true,
        });
    }
    let there = length(pieces(folder).join(name.to_string()))?;
    Ok(Has {
        length: there.unwrap_or(0),
        complete: false,
    })
}

fn add(
    folder: &Path,
    name: RecordingName,
    offset: u64,
    piece: &[u8],
    stated: &RecordingDigest,
) -> Result<Has, PieceError> {
    let path = pieces(folder).join(name.to_string());
    disk::make_folder(&pieces(folder))?;
    let file = disk::options().create(true).truncate(false).open(&path)?;
    file.write_all_at(piece, offset)?;
    let length = offset + piece.len() as u64;
    if length < stated.length {
        return Ok(Has {
            length,
            complete: false,
        });
    }
    file.sync_data()?;
    let (found, sha256) = hashed(&mut File::open(&path)?)?;
    if (found, sha256.as_str()) != (stated.length, stated.sha256.as_str()) {
        std::fs::remove_file(&path)?;
        return Err(PieceError::Other);
    }
    std::fs::rename(&path, folder.join(StorePath::Recording(name).to_string()))?;
    disk::sync_folder(&folder.join("recordings"))?;
    Ok(Has {
        length,
        complete: true,
    })
}
