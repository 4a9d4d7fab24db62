//! One recording on disk. It is written before anything is relayed, without a buffer between.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use postern_proto::audit::event::RecordingDigest;
use postern_proto::audit::layout::StorePath;
use postern_proto::recording::{Entry, Keep, Kind, RecordingName, RecordingWriter};

use super::disk;
use super::recipients::Recipients;

/// A recording that is open.
pub(super) struct Recording {
    path: PathBuf,
    file: File,
    writer: RecordingWriter,
    started: Instant,
    synced: u64,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl Recording {
    /// Begins one in the store `folder`, durably named.
    pub(super) fn begin(
        folder: &Path,
        name: RecordingName,
        kind: &Kind,
        recipients: &Recipients,
    ) -> io::Result<Self> {
        let (key, wrapped) = recipients.key().map_err(io::Error::other)?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        let (writer, head) =
            RecordingWriter::start(name, kind, now, Keep::default(), &key, &wrapped)
                .map_err(io::Error::other)?;
        let path = folder.join(StorePath::Recording(name).to_string());
        let parent = folder.join("recordings");
        disk::make_folder(&parent)?;
        let file = disk::private().create_new(true).open(&path)?;
        let mut recording = Self {
            path,
            file,
            writer,
            started: Instant::now(),
            synced: 0,
            plain: Vec::new(),
            sealed: head,
        };
        recording.flush_sealed()?;
        recording.sync()?;
        disk::sync_folder(&parent)?;
        Ok(recording)
    }

    /// Seals and writes one entry.
    pub(super) fn write(&mut self, entry: &Entry) -> io::Result<()> {
        self.plain.clear();
        let at_ms = self.at_ms();
        self.writer.entry(at_ms, entry, &mut self.plain);
        if self.plain.is_empty() {
            return Ok(());
        }
        self.seal(false)
    }

    /// Writes its end, durably.
    pub(super) fn finish(&mut self) -> io::Result<RecordingDigest> {
        self.plain.clear();
        let at_ms = self.at_ms();
        self.writer.finish(at_ms, &mut self.plain);
        self.seal(true)?;
        self.sync()?;
        Ok(self.writer.digest(true))
    }

    /// Makes durable what was written.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.synced != self.writer.length() {
            self.file.sync_data()?;
            self.synced = self.writer.length();
        }
        Ok(())
    }

    /// What is written so far; durable after [`Self::sync`].
    pub(super) fn digest(&self) -> RecordingDigest {
        self.writer.digest(false)
    }

    /// Removes a recording that no log names.
    pub(super) fn discard(self) {
        drop(std::fs::remove_file(&self.path));
    }

    fn at_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        self.sealed.clear();
        self.writer
            .seal(&self.plain, last, &mut self.sealed)
            .map_err(io::Error::other)?;
        self.flush_sealed()
    }

    /// Writes what was sealed; counts and hashes what really reached the file.
    fn flush_sealed(&mut self) -> io::Result<()> {
        let mut rest = self.sealed.as_slice();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, left) = rest.split_at(written.min(rest.len()));
                    self.writer.wrote(done);
                    rest = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
