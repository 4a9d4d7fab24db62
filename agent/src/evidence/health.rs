//! Whether the store works, and the watchdog that notices when it does not answer.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{EvidenceError, disk};

const WORKS: u8 = 0;
const FULL: u8 = 1;
const BROKEN: u8 = 2;
/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(50);

/// The store's state. It only gets worse until restart.
pub(super) struct Health {
    state: AtomicU8,
    why: watch::Sender<Option<Arc<str>>>,
    broken: watch::Sender<bool>,
    born: Instant,
    deadline: Duration,
    operations: Mutex<Vec<Arc<Operation>>>,
    stop: (Mutex<bool>, Condvar),
}

/// One thing that may hang: when it began, or 0.
struct Operation {
    what: &'static str,
    began: AtomicU64,
}

/// Marks an operation as running.
pub(super) struct Watched {
    operation: Arc<Operation>,
    health: Arc<Health>,
}

impl Health {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            state: AtomicU8::new(WORKS),
            why: watch::Sender::new(None),
            broken: watch::Sender::new(false),
            born: Instant::now(),
            deadline,
            operations: Mutex::default(),
            stop: (Mutex::new(false), Condvar::new()),
        }
    }

    /// Becomes `Some(why)` when the store has failed.
    pub(super) fn failure(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.why.subscribe()
    }

    pub(super) fn error(&self) -> Option<EvidenceError> {
        if self.state.load(Ordering::Acquire) == WORKS {
            return None;
        }
        let why = self.why.borrow().clone();
        Some(EvidenceError::Failed(
            why.unwrap_or_else(|| "unknown".into()),
        ))
    }

    /// No further byte may be written.
    pub(super) fn is_broken(&self) -> bool {
        self.state.load(Ordering::Acquire) == BROKEN
    }

    /// Returns once no further byte may be written.
    pub(super) async fn broken(&self) {
        // The sender lives as long as `self`.
        drop(self.broken.subscribe().wait_for(|broken| *broken).await);
    }

    /// There is no space: closing events still go into the space set aside.
    pub(super) fn is_full(&self) -> bool {
        self.state.load(Ordering::Acquire) == FULL
    }

    /// A write failed.
    pub(super) fn write_failed(&self, what: &str, error: &io::Error) -> EvidenceError {
        let state = if disk::is_full(error) { FULL } else { BROKEN };
        self.fail(state, format!("{what}: {error}"))
    }

    /// A flush failed, or nothing more can be trusted: final.
    pub(super) fn broke(&self, what: &str, error: &dyn std::fmt::Display) -> EvidenceError {
        self.fail(BROKEN, format!("{what}: {error}"))
    }

    fn fail(&self, state: u8, why: String) -> EvidenceError {
        self.state.fetch_max(state, Ordering::AcqRel);
        self.broken.send_if_modified(|broken| {
            let first = state == BROKEN && !*broken;
            *broken |= first;
            first
        });
        let why: Arc<str> = why.into();
        let first = self.why.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(Arc::clone(&why));
            }
            first
        });
        if first {
            metrics::counter!("postern_evidence_failures_total").increment(1);
            tracing::error!(%why, "the evidence store failed: no session starts, running ones end");
        }
        EvidenceError::Failed(self.why.borrow().clone().unwrap_or(why))
    }

    /// A slot for an operation of one thread.
    pub(super) fn watch(self: &Arc<Self>, what: &'static str) -> Watched {
        let operation = Arc::new(Operation {
            what,
            began: AtomicU64::new(0),
        });
        lock(&self.operations).push(Arc::clone(&operation));
        Watched {
            operation,
            health: Arc::clone(self),
        }
    }

    /// Looks for operations that take longer than the deadline, until [`Self::stop`].
    pub(super) fn run_watchdog(&self) {
        let (stopped, changed) = &self.stop;
        let mut guard = lock(stopped);
        while !*guard {
            let now = self.now();
            for operation in lock(&self.operations).iter() {
                let began = operation.began.load(Ordering::Acquire);
                if began != 0 && now.saturating_sub(began) > self.deadline.as_millis() as u64 {
                    self.late(operation.what);
                }
            }
            guard = match changed.wait_timeout(guard, LOOK) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    pub(super) fn stop(&self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
    }

    fn late(&self, what: &str) {
        self.broke(what, &format!("not done within {:?}", self.deadline));
    }

    /// Milliseconds since the store was opened, never 0.
    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64 + 1
    }
}

impl Watched {
    /// Runs `work` under the watchdog. Done, but too late, is a failure all the same.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        self.operation
            .began
            .store(self.health.now(), Ordering::Release);
        let result = work();
        self.operation.began.store(0, Ordering::Release);
        if began.elapsed() > self.health.deadline {
            self.health.late(self.operation.what);
        }
        result
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these mutexes guard is whole between any two statements: a panic elsewhere does not
    // make it wrong.
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}
