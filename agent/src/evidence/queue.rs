//! What the recorder threads are to do, in its order.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use postern_proto::recording::{Keep, Kind, RecordingName};
use tokio::sync::oneshot;

use super::EvidenceError;
use super::health::lock;
use super::quota::SessionUsage;
use super::recorder::Open;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, EvidenceError>>;

/// What a new recording needs.
pub(super) struct Begin {
    pub(super) name: RecordingName,
    pub(super) usage: Arc<SessionUsage>,
    pub(super) kind: Kind,
    pub(super) keep: Keep,
    pub(super) reply: Reply<Arc<Open>>,
}

/// What a thread is to do.
pub(super) enum Job {
    Begin(Box<Begin>),
    Write(Arc<Open>),
    /// Nothing came for a while.
    Rest,
}

/// A thread without a job for so long gives its buffers back.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Jobs for the threads. Each recording stands in it once at most, so it is bounded by their
/// number.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    changed: Condvar,
}

impl Queue {
    /// `false` when the threads are ending: nobody would take the job.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut jobs = lock(&self.jobs);
        if jobs.1 {
            return false;
        }
        jobs.0.push_back(job);
        drop(jobs);
        self.changed.notify_one();
        true
    }

    pub(super) fn begin(&self, begin: Begin) {
        self.push(Job::Begin(Box::new(begin)));
    }

    /// Ends the threads once the queue is empty.
    pub(super) fn stop(&self) {
        lock(&self.jobs).1 = true;
        self.changed.notify_all();
    }

    /// The next job; `idle` runs while there is none and answers whether it has more to do. Who
    /// holds buffers is told to [`Job::Rest`].
    pub(super) fn next(&self, holds: bool, idle: impl Fn() -> bool) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        let mut rested = false;
        loop {
            if let Some(job) = jobs.0.pop_front() {
                return Some(job);
            }
            if jobs.1 {
                return None;
            }
            if rested {
                return Some(Job::Rest);
            }
            drop(jobs);
            let more = idle();
            jobs = lock(&self.jobs);
            if more || !jobs.0.is_empty() || jobs.1 {
                continue;
            }
            jobs = if holds {
                let waited = self.changed.wait_timeout(jobs, REST_AFTER);
                let (jobs, waited) = waited.unwrap_or_else(|error| error.into_inner());
                rested = waited.timed_out();
                jobs
            } else {
                let waited = self.changed.wait(jobs);
                waited.unwrap_or_else(|error| error.into_inner())
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_holds_buffers_is_told_to_rest_and_others_wait() {
        let queue = Queue::default();
        assert!(matches!(queue.next(true, || false), Some(Job::Rest)));
        // Keys are made ahead all the same.
        let made = std::cell::Cell::new(0);
        let make = || made.replace(made.get() + 1) < 3;
        assert!(matches!(queue.next(true, make), Some(Job::Rest)));
        assert_eq!(made.get(), 4);
        std::thread::scope(|threads| {
            let idle = threads.spawn(|| queue.next(false, || false).is_none());
            queue.stop();
            assert!(idle.join().unwrap(), "it waits for a job or the end");
        });
    }
}
