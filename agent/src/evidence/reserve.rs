//! Space set aside for the closing event of every open session: on a full disk it is given back
//! to the file system, and the events that say so still fit.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::disk;

/// For what the agent itself has to say, and folders.
const BASE: u64 = 1024 * 1024;
/// For one closing event: the longest entry, tiles and checkpoint in whole blocks.
const EACH: u64 = 96 * 1024;
/// Grown in steps, so that most grants need no call.
const STEP: u64 = 1024 * 1024;

/// The file that holds the space.
pub(super) struct Reserve {
    file: File,
    size: u64,
    released: bool,
}

impl Reserve {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let file = disk::options()
            .create(true)
            .truncate(true)
            .open(folder.join("reserve"))?;
        let mut reserve = Self {
            file,
            size: 0,
            released: false,
        };
        reserve.hold(0)?;
        Ok(reserve)
    }

    /// Sets space aside for this many open sessions; an error means that there is none.
    pub(super) fn hold(&mut self, sessions: usize) -> io::Result<()> {
        let needed = (BASE + sessions as u64 * EACH).next_multiple_of(STEP);
        if self.released || needed <= self.size {
            return Ok(());
        }
        fallocate(&self.file, FallocateFlags::empty(), 0, needed)?;
        self.size = needed;
        Ok(())
    }

    /// Gives all of it back.
    pub(super) fn release(&mut self) {
        if !self.released {
            self.released = true;
            if let Err(error) = self.file.set_len(0) {
                tracing::warn!(%error, "the space set aside could not be given back");
            }
        }
    }
}
