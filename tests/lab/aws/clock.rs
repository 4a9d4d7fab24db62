//! The emulator's time: the system's, plus an offset that tests move.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use time::{Duration, OffsetDateTime};

/// System time plus a settable offset. Clones share the offset, so that an expiry test moves time
/// instead of waiting for it.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that shows the system's time until it is moved.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// The time as the emulator sees it.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.offset()
    }

    /// Moves the clock forward, or back with a negative duration.
    pub fn advance(&self, by: Duration) {
        self.offset_ms
            .fetch_add(saturating_ms(by), Ordering::SeqCst);
    }

    /// Sets the distance to the system's time: a server whose clock is wrong.
    pub fn set_offset(&self, offset: Duration) {
        self.offset_ms
            .store(saturating_ms(offset), Ordering::SeqCst);
    }

    /// The distance to the system's time.
    #[must_use]
    pub fn offset(&self) -> Duration {
        Duration::milliseconds(self.offset_ms.load(Ordering::SeqCst))
    }
}

fn saturating_ms(duration: Duration) -> i64 {
    // A year either way is more than any test needs and keeps date arithmetic far from overflow.
    const YEAR_MS: i128 = 366 * 86_400 * 1_000;
    i64::try_from(duration.whole_milliseconds().clamp(-YEAR_MS, YEAR_MS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_clock_move_together() {
        let clock = Clock::system();
        let other = clock.clone();
        clock.advance(Duration::hours(2));
        assert_eq!(other.offset(), Duration::hours(2));
        assert!(other.now() - OffsetDateTime::now_utc() > Duration::minutes(119));
        other.set_offset(Duration::ZERO);
        assert_eq!(clock.offset(), Duration::ZERO);
    }
}
