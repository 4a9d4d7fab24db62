//! Since when something that was sent waits for the SSM Agent to say anything at all.
//!
//! An SSM Agent that starts again knows nothing of its sessions, and nobody tells their clients
//! (SSM-PROTOCOL.md section 7): what they send stays unanswered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Written by the driver, read by anybody.
#[derive(Debug)]
pub(super) struct Unanswered {
    base: Instant,
    /// Milliseconds after `base`, and one; nothing waits at zero.
    since: AtomicU64,
}

impl Unanswered {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    /// Something waits, and did before.
    pub(super) fn waits(&self) {
        // Only the driver writes.
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Nothing waits, or the silence is explained.
    pub(super) fn clear(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long something has waited by now.
    pub(super) fn elapsed(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis((self.now() + 1).saturating_sub(since)),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_of_what_waits_counts_until_something_is_heard() {
        let unanswered = Unanswered::new();
        assert_eq!(unanswered.elapsed(), Duration::ZERO);
        unanswered.waits();
        tokio::time::sleep(Duration::from_millis(20)).await;
        unanswered.waits();
        assert!(unanswered.elapsed() >= Duration::from_millis(19));
        unanswered.clear();
        assert_eq!(unanswered.elapsed(), Duration::ZERO);
    }
}
