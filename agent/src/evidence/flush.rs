//! One flush for all recordings, started every 100 ms, and what the log says of those that grow.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use postern_proto::audit::event::{Event, Fact};
use rustix::fs::{Advice, fadvise};
use tokio::sync::{mpsc, watch};

use super::disk;
use super::event::agent_event;
use super::health::{Health, Watched, lock};
use super::recorder::{Open, Snapshot};
use super::writer::Order;

/// Between the starts of two flushes.
const INTERVAL: Duration = Duration::from_millis(100);
/// Files that are flushed one by one; with more, the file system is flushed as a whole.
const ONE_BY_ONE: usize = 32;

/// Files that may wait for that; with more, those that wait longest are closed at once.
const KEPT: usize = 256;

/// What is synced leaves the page cache in steps of this, so that bulk fills no memory: nobody
/// reads a recording soon. A multiple of every page size, since half a page would be read back.
const FORGET: u64 = 1024 * 1024;

/// Recordings with bytes that are not synced.
pub(super) struct Dirty {
    list: Mutex<Vec<Arc<Open>>>,
    created: AtomicBool,
    kick: (Mutex<Kick>, Condvar),
    done: watch::Sender<u64>,
    free: AtomicU64,
}

#[derive(Default)]
struct Kick {
    now: bool,
    stop: bool,
}

impl Dirty {
    pub(super) fn new() -> Self {
        Self {
            list: Mutex::default(),
            created: AtomicBool::new(false),
            kick: (Mutex::default(), Condvar::new()),
            done: watch::Sender::new(0),
            free: AtomicU64::new(u64::MAX),
        }
    }

    /// A file was created: its folder is to be synced too.
    pub(super) fn created(&self) {
        self.created.store(true, Ordering::Release);
    }

    pub(super) fn mark(&self, open: &Arc<Open>) {
        if !open.dirty.swap(true, Ordering::AcqRel) {
            self.push(Arc::clone(open));
        }
    }

    pub(super) fn push(&self, open: Arc<Open>) {
        lock(&self.list).push(open);
    }

    /// Free bytes at the last look.
    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Changes after every flush.
    pub(super) fn done(&self) -> watch::Receiver<u64> {
        self.done.subscribe()
    }

    /// Flushes now instead of at the next interval.
    pub(super) fn kick(&self) {
        lock(&self.kick.0).now = true;
        self.kick.1.notify_all();
    }

    pub(super) fn stop(&self) {
        lock(&self.kick.0).stop = true;
        self.kick.1.notify_all();
    }

    /// Waits for the interval or a kick; `true` when it is time to stop.
    fn wait(&self, until: Instant) -> bool {
        let mut kick = lock(&self.kick.0);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if kick.now || kick.stop || left.is_zero() {
                kick.now = false;
                return kick.stop;
            }
            kick = match self.kick.1.wait_timeout(kick, left) {
                Ok((kick, _)) => kick,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Looks at the free space.
    pub(super) fn look(&self, folder: &Path) -> std::io::Result<()> {
        let stat = rustix::fs::statvfs(folder)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        self.free.store(free, Ordering::Relaxed);
        metrics::gauge!("postern_evidence_free_bytes").set(free as f64);
        Ok(())
    }
}

/// Takes the bytes of a recording from `start` to `end` out of the page cache.
fn forget(file: &File, start: u64, end: u64) {
    let length = NonZeroU64::new(end - start);
    // Advice: where the system does not take it, nothing is lost.
    if let Err(error) = fadvise(file, start, length, Advice::DontNeed) {
        tracing::debug!(%error, "the page cache keeps a recording");
    }
}

/// Recordings whose files will be closed unless more is written, each once, the longest wait first.
struct Quiet {
    after: Duration,
    queue: VecDeque<(Instant, Weak<Open>)>,
}

impl Quiet {
    fn new(after: Duration) -> Self {
        Self {
            after,
            queue: VecDeque::new(),
        }
    }

    fn watch(&mut self, open: &Arc<Open>, since: Instant) {
        let due = since + self.after;
        self.queue.push_back((due, Arc::downgrade(open)));
    }

    /// Closes those that have been quiet.
    fn close(&mut self, now: Instant) {
        loop {
            let crowded = self.queue.len() > KEPT;
            let next = self.queue.pop_front_if(|(due, _)| crowded || *due <= now);
            let Some((_, open)) = next else {
                return;
            };
            let Some(open) = open.upgrade() else {
                continue;
            };
            let mut progress = lock(&open.progress);
            if progress.synced_at + self.after > now && !crowded {
                self.watch(&open, progress.synced_at);
                continue;
            }
            // What is written from now on has it watched again.
            progress.watched = false;
            let synced = progress.synced;
            drop(progress);
            open.rest(synced);
        }
    }
}

/// The flusher's thread.
pub(super) struct Flusher {
    /// The recordings' folder.
    pub(super) folder: Arc<Path>,
    pub(super) dirty: Arc<Dirty>,
    pub(super) health: Arc<Health>,
    pub(super) watched: Watched,
    pub(super) orders: mpsc::WeakSender<Order>,
    /// Between two statements on one growing recording.
    pub(super) interval: Duration,
    /// Without more to write for so long, a recording's file is closed.
    pub(super) quiet: Duration,
}

impl Flusher {
    /// Runs until stopped; the last flush comes after the order to stop.
    pub(super) fn run(self) {
        let mut growing: Vec<Arc<Open>> = Vec::new();
        let mut quiet = Quiet::new(self.quiet);
        loop {
            let stop = self.dirty.wait(Instant::now() + INTERVAL);
            let list = std::mem::take(&mut *lock(&self.dirty.list));
            if !self.health.is_broken() {
                self.flush(list, &mut growing, &mut quiet);
                quiet.close(Instant::now());
            }
            if let Err(error) = self.watched.run(|| self.dirty.look(&self.folder)) {
                self.health.broke("the evidence folder", &error);
            }
            self.report(&mut growing);
            self.dirty.done.send_modify(|count| *count += 1);
            if stop {
                return;
            }
        }
    }

    fn flush(&self, list: Vec<Arc<Open>>, growing: &mut Vec<Arc<Open>>, quiet: &mut Quiet) {
        if list.is_empty() {
            return;
        }
        let snapshots: Vec<(Arc<Open>, Snapshot)> = list
            .into_iter()
            .map(|open| {
                // Before the snapshot: a write after it marks the recording again.
                open.dirty.store(false, Ordering::Release);
                let snapshot = open.snapshot();
                (open, snapshot)
            })
            .collect();
        let began = Instant::now();
        if let Err(error) = self.watched.run(|| self.sync(&snapshots)) {
            self.health.broke("flushing recordings", &error);
            return;
        }
        metrics::histogram!("postern_recording_flush_seconds")
            .record(began.elapsed().as_secs_f64());
        for (open, snapshot) in snapshots {
            let mut progress = lock(&open.progress);
            progress.synced = snapshot.length;
            progress.synced_at = Instant::now();
            if !std::mem::replace(&mut progress.watched, true) {
                quiet.watch(&open, progress.synced_at);
            }
            let synced = snapshot.length / FORGET * FORGET;
            if let Some(file) = &snapshot.file
                && synced > progress.forgotten
            {
                forget(file, progress.forgotten, synced);
                progress.forgotten = synced;
            }
            let known = progress.digest.replace(snapshot.digest(open.name));
            drop(progress);
            if known.is_none() {
                growing.push(open);
            }
        }
    }

    fn sync(&self, snapshots: &[(Arc<Open>, Snapshot)]) -> std::io::Result<()> {
        let mut files = snapshots.iter().filter_map(|(_, s)| s.file.as_deref());
        if snapshots.len() > ONE_BY_ONE
            && let Some(first) = files.next()
        {
            self.dirty.created.store(false, Ordering::Release);
            return Ok(rustix::fs::syncfs(first)?);
        }
        if self.dirty.created.swap(false, Ordering::AcqRel) {
            disk::sync_folder(&self.folder)?;
        }
        files.try_for_each(File::sync_data)
    }

    /// Has the log state what is synced of each growing recording.
    fn report(&self, growing: &mut Vec<Arc<Open>>) {
        growing.retain(|open| {
            let mut progress = lock(&open.progress);
            if open.usage.closed.load(Ordering::Acquire) || progress.logged == progress.synced {
                progress.digest = None;
                return false;
            }
            if progress.logged_at.elapsed() < self.interval {
                return true;
            }
            let (Some(recording), Some(orders)) = (progress.digest.clone(), self.orders.upgrade())
            else {
                return false;
            };
            let event = Event {
                session: Some(open.name.session),
                ..agent_event(Fact::RecordingProgressed { recording })
            };
            let order = Order::Append {
                event: Box::new(event),
                reply: None,
            };
            // A full queue: the next round tries again.
            if orders.try_send(order).is_ok() {
                progress.logged = progress.synced;
                progress.logged_at = Instant::now();
            }
            true
        });
    }
}
