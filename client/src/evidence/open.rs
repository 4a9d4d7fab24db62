//! Sessions that are open, each a file that its process holds locked: whoever finds one that can
//! be locked knows that its process died, and says so in the log.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use postern_proto::audit::event::{Access, Event, Fact, RecordingDigest};
use postern_proto::audit::layout::StorePath;
use postern_proto::names::SessionId;
use postern_proto::recording::RecordingName;
use serde::{Deserialize, Serialize};

use super::disk;
use super::lock::{Held, lock, try_lock};
use super::log::{AppendError, Log};
use crate::audit::log::walk;
use crate::audit::store::Folder;

/// The longest note of an open session.
const LIMIT: u64 = 64 * 1024;

/// What is known of an open session outside of the log.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    claimed: Event,
    access: Access,
}

/// An open session of this process.
#[derive(Debug)]
pub(super) struct Marker {
    path: PathBuf,
    _held: Held,
}

impl Marker {
    /// Marks `claimed` as open, before the log says so.
    pub(super) fn put(folder: &Path, claimed: &Event, access: &Access) -> io::Result<Self> {
        let open = folder.join("open");
        disk::make_folder(&open)?;
        let session = claimed.session.ok_or(io::ErrorKind::InvalidInput)?;
        let path = open.join(session.to_string());
        let _turn = turn(folder)?;
        let held = try_lock(&path).map_err(io::Error::other)?;
        let held = held.ok_or(io::ErrorKind::AlreadyExists)?;
        let note = Open {
            claimed: claimed.clone(),
            access: access.clone(),
        };
        // In place: the lock is on this very file.
        fs::write(&path, serde_json::to_vec(&note).map_err(io::Error::other)?)?;
        disk::sync_folder(&open)?;
        Ok(Self { path, _held: held })
    }

    /// The log states its end.
    pub(super) fn remove(self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Closes as interrupted what died: the sessions whose process is gone and that the log has no
/// end of. Answers with them.
pub(super) fn interrupt_dead(log: &Log) -> Result<Vec<SessionId>, AppendError> {
    let mut dead = Vec::new();
    for (path, held) in orphans(&log.folder)? {
        let Some(open) = read(&path)? else {
            // It died before anything was claimed.
            drop(fs::remove_file(&path));
            continue;
        };
        if let Some(session) = open.claimed.session
            && is_open(log, session)?
        {
            let event = Event {
                time_ms: super::now_ms(),
                fact: Fact::SessionInterrupted {
                    recordings: left_of(&log.folder, session)?,
                },
                ..open.claimed
            };
            log.append(&[event], Some(&open.access))?;
            dead.push(session);
        }
        drop(fs::remove_file(&path));
        drop(held);
    }
    Ok(dead)
}

/// Between making a mark and locking it nobody must take it for one of the dead.
fn turn(folder: &Path) -> io::Result<Held> {
    lock(&folder.join("open.lock")).map_err(io::Error::other)
}

/// The marks of sessions whose process is gone.
pub(super) fn orphans(folder: &Path) -> io::Result<Vec<(PathBuf, Held)>> {
    let entries = match fs::read_dir(folder.join("open")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let _turn = turn(folder)?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(held) = try_lock(&path).map_err(io::Error::other)? {
            found.push((path, held));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> io::Result<Option<Open>> {
    let bytes = disk::read(path, LIMIT)?.unwrap_or_default();
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Whether the log has the session's beginning and no end.
fn is_open(log: &Log, session: SessionId) -> io::Result<bool> {
    let Ok(folder) = Folder::new(&log.folder) else {
        return Ok(false);
    };
    let mut open = false;
    walk(&folder, &[], |entry| {
        let Some(event) = entry.event.filter(|event| event.session == Some(session)) else {
            return;
        };
        match event.fact {
            Fact::SessionClaimed { .. } => open = true,
            Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } => open = false,
            _ => {}
        }
    })?;
    Ok(open)
}

/// What is left of a dead session's recordings.
fn left_of(folder: &Path, session: SessionId) -> io::Result<Vec<RecordingDigest>> {
    let names: BTreeSet<RecordingName> = match fs::read_dir(folder.join("recordings")) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|name: &RecordingName| name.session == session)
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(error),
    };
    names
        .into_iter()
        .map(|name| {
            let path = folder.join(StorePath::Recording(name).to_string());
            let (length, sha256) = hashed(&path)?;
            Ok(RecordingDigest {
                name: name.to_string(),
                length,
                sha256,
                complete: false,
            })
        })
        .collect()
}

/// Length and SHA-256 of a file.
fn hashed(path: &Path) -> io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    // What is stated must be on disk.
    file.sync_data()?;
    let (mut hash, mut length) = (Hash::new(&SHA256), 0);
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
