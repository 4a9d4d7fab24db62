//! Locks between processes of one user: bounded waits, and freed by the end of a process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::disk;

/// Longer than an append takes on a slow disk; whoever holds a lock this long hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a lock is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LockError {
    /// The file.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Another process holds it, too long.
    #[error("{}: another `postern` holds it and does not end", .0.display())]
    Held(PathBuf),
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "the lock lives as long as the file")] File);

/// Waits for the lock, for a while. Blocks.
pub(crate) fn lock(path: &Path) -> Result<Held, LockError> {
    if let Some(held) = try_lock(path)? {
        return Ok(held);
    }
    let file = open(path).map_err(fault(path))?;
    let (sender, receiver) = mpsc::channel();
    // flock has no deadline: it waits in a thread of its own. Given up, the lock is dropped there.
    std::thread::Builder::new()
        .name("evidence-lock".to_owned())
        .spawn(move || {
            let locked = flock(&file, FlockOperation::LockExclusive).map(|()| Held(file));
            drop(sender.send(locked));
        })
        .map_err(fault(path))?;
    match receiver.recv_timeout(DEADLINE) {
        Ok(Ok(held)) => Ok(held),
        Ok(Err(error)) => Err(fault(path)(error.into())),
        Err(_) => Err(LockError::Held(path.to_owned())),
    }
}

/// The lock if nobody has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<Held>, LockError> {
    let file = open(path).map_err(fault(path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Held(file))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(fault(path)(error.into())),
    }
}

fn open(path: &Path) -> io::Result<File> {
    disk::private().create(true).truncate(false).open(path)
}

fn fault(path: &Path) -> impl Fn(io::Error) -> LockError + use<> {
    let path = path.to_owned();
    move |error| LockError::File {
        path: path.clone(),
        cause: error.to_string(),
    }
}
