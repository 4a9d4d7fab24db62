//! A recording's file: only ever longer, and closed while nobody writes.
//!
//! Thousands of idle sessions would each hold a descriptor for a file that nothing is added to.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_proto::recording::RecordingName;

use super::disk;

/// The file of one recording.
pub(super) struct RecordingFile {
    folder: Arc<Path>,
    name: RecordingName,
    /// `None` while it is closed.
    handle: Option<Arc<File>>,
    /// What was closed: it must be what is opened again.
    closed: Option<Identity>,
}

/// Device, inode and time of the last change: a file that takes another's place may get its inode.
type Identity = (u64, u64, i64, i64);

impl RecordingFile {
    /// Makes it; a file of that name must not be there.
    pub(super) fn create(folder: &Arc<Path>, name: RecordingName) -> io::Result<Self> {
        let path = folder.join(name.to_string());
        let file = disk::options().create_new(true).open(path)?;
        Ok(Self {
            folder: Arc::clone(folder),
            name,
            handle: Some(Arc::new(file)),
            closed: None,
        })
    }

    /// Opens it if it is closed. `length` is what was written: another file in its place, or one
    /// that was cut or added to, is an error.
    pub(super) fn open(&mut self, length: u64) -> io::Result<()> {
        if self.handle.is_none() {
            let file = disk::options().append(true).open(self.path())?;
            let found = file.metadata()?;
            if Some(identity(&found)) != self.closed || found.len() != length {
                return Err(io::Error::other(format!(
                    "{} is not the file that was written",
                    self.path().display()
                )));
            }
            self.handle = Some(Arc::new(file));
        }
        Ok(())
    }

    /// Writes to its end; it is open.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.handle {
            Some(file) => (&**file).write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The open file, to be synced.
    pub(super) fn handle(&self) -> Option<Arc<File>> {
        self.handle.clone()
    }

    /// Closes it. All of it is synced: an error that only shows later would find nobody to tell.
    /// It stays open when the system does not tell what it is.
    pub(super) fn close(&mut self) {
        if let Some(Ok(metadata)) = self.handle.as_ref().map(|file| file.metadata()) {
            self.closed = Some(identity(&metadata));
            self.handle = None;
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.name.to_string())
    }
}

fn identity(of: &Metadata) -> Identity {
    (of.dev(), of.ino(), of.mtime(), of.mtime_nsec())
}

/// Whether an error says that this process, or the machine, has too many open files: that is not
/// the store's failure.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use postern_proto::names::SessionId;

    use super::*;

    fn file(folder: &Path) -> RecordingFile {
        let session = SessionId::of_agent(1, 1);
        RecordingFile::create(&folder.into(), RecordingName { session, number: 0 }).unwrap()
    }

    #[test]
    fn a_file_that_was_closed_goes_on_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        assert_eq!(file.write(b"one").unwrap(), 3);
        file.close();
        assert!(file.handle().is_none() && file.write(b"lost").is_err());
        file.open(3).unwrap();
        assert_eq!(file.write(b" two").unwrap(), 4);
        assert_eq!(fs::read(file.path()).unwrap(), b"one two");
        assert!(RecordingFile::create(&file.folder, file.name).is_err());
    }

    #[test]
    fn what_is_not_the_file_that_was_closed_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        file.write(b"one").unwrap();
        file.close();
        let path = file.path();
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(file.open(3).is_err(), "it is gone");
        fs::copy(&aside, &path).unwrap();
        assert!(file.open(3).is_err(), "it is a copy");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        fs::rename(&aside, &path).unwrap();
        file.open(3).unwrap();
        file.close();
        for content in ["on", "ones"] {
            fs::write(&path, content).unwrap();
            assert!(file.open(3).is_err(), "somebody wrote to it");
        }
    }

    #[test]
    fn too_many_open_files_are_not_the_stores_failure() {
        let is = |code| is_out_of_descriptors(&io::Error::from_raw_os_error(code));
        // EMFILE and ENFILE; ENOSPC and EIO.
        assert_eq!([24, 23, 28, 5].map(is), [true, true, false, false]);
    }
}
