//! Recorder threads: whatever arrived for a recording is sealed and written in one call, and
//! reported written after it. No buffer of ours lies between.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::digest::Context;
use postern_proto::audit::event::RecordingDigest;
use postern_proto::recording::seal::OVERHEAD;
use postern_proto::recording::{Entry, RecordingName, RecordingWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::EvidenceError;
use super::auditors::Auditors;
use super::event::now_ms;
use super::file::{RecordingFile, is_out_of_descriptors};
use super::flush::Dirty;
use super::health::{Health, Watched, lock};
use super::queue::{Begin, Job, Queue, Reply};
use super::quota::SessionUsage;

/// Content bytes that may wait for one recording's next write.
pub(super) const ROOM: usize = 1024 * 1024;

/// An open recording.
pub(super) struct Open {
    pub(super) name: RecordingName,
    pub(super) usage: Arc<SessionUsage>,
    pub(super) room: Arc<Semaphore>,
    started: Instant,
    pending: Mutex<Pending>,
    writer: Mutex<FileWriter>,
    pub(super) dirty: AtomicBool,
    pub(super) progress: Mutex<Progress>,
}

#[derive(Default)]
struct Pending {
    entries: Vec<(u64, Entry)>,
    replies: Vec<Reply<()>>,
    room: Vec<OwnedSemaphorePermit>,
    closing: Vec<Reply<RecordingDigest>>,
    close: bool,
    closed: bool,
    scheduled: bool,
}

/// What the log knows of a recording, kept by the flusher.
pub(super) struct Progress {
    /// Synced length, and since when it is that.
    pub(super) synced: u64,
    pub(super) synced_at: Instant,
    /// Whether the flusher will look if its file can be closed.
    pub(super) watched: bool,
    /// Length that the page cache was asked to forget.
    pub(super) forgotten: u64,
    /// Length that the log states.
    pub(super) logged: u64,
    pub(super) logged_at: Instant,
    pub(super) digest: Option<RecordingDigest>,
}

struct FileWriter {
    file: RecordingFile,
    recording: RecordingWriter,
    /// Why nothing more may be written.
    refused: Option<EvidenceError>,
    ended: Option<RecordingDigest>,
}

/// A thread's buffers: an idle recording holds none, and an idle thread none for long.
#[derive(Default)]
struct Scratch {
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

/// A recording's state at one moment.
pub(super) struct Snapshot {
    /// `None` when nothing was added since it was closed, all of it synced.
    pub(super) file: Option<Arc<File>>,
    pub(super) length: u64,
    hash: Context,
    complete: bool,
}

impl Open {
    /// Hands an entry over; the answer comes once it is written.
    pub(super) fn push(
        self: &Arc<Self>,
        queue: &Queue,
        entry: Entry,
        room: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Result<(), EvidenceError>>, EvidenceError> {
        let (reply, answer) = oneshot::channel();
        let mut pending = lock(&self.pending);
        if pending.close {
            return Err(EvidenceError::Failed("the recording is closed".into()));
        }
        let at_ms = self.started.elapsed().as_millis() as u64;
        pending.entries.push((at_ms, entry));
        pending.replies.push(reply);
        pending.room.push(room);
        self.schedule(&mut pending, queue);
        Ok(answer)
    }

    /// Asks for the end; further entries are refused.
    pub(super) fn close(
        self: &Arc<Self>,
        queue: &Queue,
    ) -> oneshot::Receiver<Result<RecordingDigest, EvidenceError>> {
        let (reply, answer) = oneshot::channel();
        let mut pending = lock(&self.pending);
        pending.close = true;
        pending.closing.push(reply);
        self.schedule(&mut pending, queue);
        answer
    }

    fn schedule(self: &Arc<Self>, pending: &mut Pending, queue: &Queue) {
        if pending.scheduled {
            return;
        }
        pending.scheduled = queue.push(Job::Write(Arc::clone(self)));
        if !pending.scheduled {
            // Those who wait learn it from their reply's end.
            *pending = Pending {
                close: true,
                closed: true,
                ..Pending::default()
            };
        }
    }

    /// Whether bytes were written that are not synced.
    pub(super) fn is_behind(&self) -> bool {
        let length = lock(&self.writer).recording.length();
        lock(&self.progress).synced < length
    }

    /// Closes the file, unless something was written after the first `synced` bytes. It is opened
    /// again when there is more to write.
    pub(super) fn rest(&self, synced: u64) {
        let mut writer = lock(&self.writer);
        if writer.recording.length() == synced {
            writer.file.close();
        }
    }

    /// The state to sync now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let writer = lock(&self.writer);
        Snapshot {
            file: writer.file.handle(),
            length: writer.recording.length(),
            hash: writer.recording.hash(),
            complete: writer.ended.as_ref().is_some_and(|digest| digest.complete),
        }
    }
}

impl Snapshot {
    pub(super) fn digest(self, name: RecordingName) -> RecordingDigest {
        RecordingDigest {
            name: name.to_string(),
            length: self.length,
            sha256: hex::encode(self.hash.finish()),
            complete: self.complete,
        }
    }
}

/// One recorder thread.
pub(super) struct Recorder {
    pub(super) folder: Arc<Path>,
    pub(super) queue: Arc<Queue>,
    pub(super) auditors: Arc<Auditors>,
    pub(super) health: Arc<Health>,
    pub(super) watched: Watched,
    pub(super) dirty: Arc<Dirty>,
}

impl Recorder {
    /// Runs until the queue is stopped and empty.
    pub(super) fn run(self) {
        let mut scratch = Scratch::default();
        let next = |holds| self.queue.next(holds, || self.auditors.refill());
        while let Some(job) = next(scratch.holds()) {
            match job {
                Job::Rest => scratch = Scratch::default(),
                Job::Begin(begin) => self.begin(*begin),
                Job::Write(open) => self.write(&open, &mut scratch),
            }
        }
    }

    fn begin(&self, begin: Begin) {
        let result = self.create(&begin);
        if let Ok(open) = &result {
            self.dirty.created();
            self.dirty.mark(open);
        }
        drop(begin.reply.send(result));
    }

    fn create(&self, begin: &Begin) -> Result<Arc<Open>, EvidenceError> {
        if let Some(error) = self.health.error() {
            return Err(error);
        }
        let fault = |error: &dyn std::fmt::Display| EvidenceError::Failed(error.to_string().into());
        let wrapped = self.auditors.key()?;
        let now = now_ms() / 1000;
        let (recording, sealed) = RecordingWriter::start(
            begin.name,
            &begin.kind,
            now,
            begin.keep,
            &wrapped.key,
            &wrapped.file,
        )
        .map_err(|error| fault(&error))?;
        begin.usage.take(sealed.len() as u64)?;
        let file = RecordingFile::create(&self.folder, begin.name)
            .map_err(|error| self.not_opened(&error))?;
        let mut writer = FileWriter {
            file,
            recording,
            refused: None,
            ended: None,
        };
        self.watched
            .run(|| writer.write(&sealed))
            .map_err(|error| self.health.write_failed("a recording", &error))?;
        metrics::gauge!("postern_recordings_open").increment(1.0);
        Ok(Arc::new(Open {
            name: begin.name,
            usage: Arc::clone(&begin.usage),
            room: Arc::new(Semaphore::new(ROOM)),
            started: Instant::now(),
            pending: Mutex::default(),
            writer: Mutex::new(writer),
            dirty: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                synced: 0,
                synced_at: Instant::now(),
                watched: false,
                forgotten: 0,
                logged: 0,
                logged_at: Instant::now(),
                digest: None,
            }),
        }))
    }

    fn write(&self, open: &Arc<Open>, scratch: &mut Scratch) {
        let (entries, replies, room, closing, close) = {
            let mut pending = lock(&open.pending);
            let close = pending.close && !pending.closed;
            pending.closed |= close;
            (
                std::mem::take(&mut pending.entries),
                std::mem::take(&mut pending.replies),
                std::mem::take(&mut pending.room),
                std::mem::take(&mut pending.closing),
                close,
            )
        };
        let (result, digest) = {
            let mut writer = lock(&open.writer);
            let at_ms = open.started.elapsed().as_millis() as u64;
            let result = self.append(open, &mut writer, scratch, &entries, close.then_some(at_ms));
            if close {
                let digest = writer.recording.digest(result.is_ok());
                writer.ended = Some(digest);
                metrics::gauge!("postern_recordings_open").decrement(1.0);
            }
            (result, writer.ended.clone())
        };
        if !open.dirty.swap(true, Ordering::AcqRel) {
            self.dirty.push(Arc::clone(open));
        }
        drop(room);
        for reply in replies {
            drop(reply.send(result.clone()));
        }
        for reply in closing {
            let digest = digest
                .clone()
                .ok_or_else(|| EvidenceError::Failed("the recording has no end".into()));
            drop(reply.send(digest));
        }
        let mut pending = lock(&open.pending);
        if pending.entries.is_empty()
            && pending.closing.is_empty()
            && pending.close == pending.closed
        {
            pending.scheduled = false;
        } else {
            pending.scheduled = false;
            open.schedule(&mut pending, &self.queue);
        }
    }

    /// Encodes, seals and writes; with `close` the recording's end too.
    fn append(
        &self,
        open: &Open,
        writer: &mut FileWriter,
        scratch: &mut Scratch,
        entries: &[(u64, Entry)],
        close: Option<u64>,
    ) -> Result<(), EvidenceError> {
        scratch.clear();
        if writer.ended.is_some() {
            return Err(EvidenceError::Failed("the recording is closed".into()));
        }
        let mut result = match (&writer.refused, self.health.error()) {
            (_, Some(error)) => return Err(error),
            (Some(error), None) => Err(error.clone()),
            (None, None) => self.encode(open, writer, scratch, entries),
        };
        if let (Err(EvidenceError::Quota(limit)), None) = (&result, &writer.refused) {
            writer.refused = result.clone().err();
            let at_ms = open.started.elapsed().as_millis() as u64;
            let text = format!("the recording quota of {limit} bytes is used up");
            writer
                .recording
                .entry(at_ms, &Entry::Note(text), &mut scratch.plain);
        }
        if let Some(at_ms) = close {
            writer.recording.finish(at_ms, &mut scratch.plain);
            // The end of a recording over its quota is still an end.
            if matches!(result, Err(EvidenceError::Quota(_))) {
                result = Ok(());
            }
        }
        if scratch.plain.is_empty() && close.is_none() {
            return result;
        }
        let length = writer.recording.length();
        self.watched
            .run(|| writer.file.open(length))
            .map_err(|error| self.not_opened(&error))?;
        writer
            .recording
            .seal(&scratch.plain, close.is_some(), &mut scratch.sealed)
            .map_err(|error| self.health.broke("a recording", &error))?;
        self.watched
            .run(|| writer.write(&scratch.sealed))
            .map_err(|error| self.health.write_failed("a recording", &error))?;
        metrics::counter!("postern_recording_bytes_total").increment(scratch.sealed.len() as u64);
        result
    }

    /// Too many open files stop this recording; everything else, the store.
    fn not_opened(&self, error: &io::Error) -> EvidenceError {
        if is_out_of_descriptors(error) {
            return EvidenceError::Failed(format!("a recording: {error}").into());
        }
        self.health.write_failed("a recording", error)
    }

    fn encode(
        &self,
        open: &Open,
        writer: &mut FileWriter,
        scratch: &mut Scratch,
        entries: &[(u64, Entry)],
    ) -> Result<(), EvidenceError> {
        for (at_ms, entry) in entries {
            writer.recording.entry(*at_ms, entry, &mut scratch.plain);
        }
        let bytes = scratch.plain.len() + OVERHEAD;
        open.usage
            .take(bytes as u64)
            .inspect_err(|_| scratch.plain.clear())
    }
}

impl Scratch {
    fn holds(&self) -> bool {
        self.plain.capacity() + self.sealed.capacity() > 0
    }

    /// Empties them; what one large batch needed is not kept for good.
    fn clear(&mut self) {
        const KEPT: usize = 512 * 1024;
        for buffer in [&mut self.plain, &mut self.sealed] {
            buffer.clear();
            buffer.shrink_to(KEPT);
        }
    }
}

impl FileWriter {
    /// Writes what was sealed; counts and hashes what really reached the file.
    fn write(&mut self, mut sealed: &[u8]) -> io::Result<()> {
        while !sealed.is_empty() {
            match self.file.write(sealed) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, left) = sealed.split_at(written.min(sealed.len()));
                    self.recording.wrote(done);
                    sealed = left;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
