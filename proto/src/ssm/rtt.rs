//! The smoothed round trip and the resend delay that follows from it: arithmetic only.

use std::time::Duration;

// Constants of both peers: plugin `config/config.go`, SSM Agent `session/config/config.go`.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
const LEAST_MARGIN: Duration = Duration::from_millis(10);

/// The estimate of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    round_trip: Duration,
    variation: Duration,
    delay: Duration,
}

impl Default for Rtt {
    fn default() -> Self {
        Self {
            round_trip: FIRST_ROUND_TRIP,
            variation: Duration::ZERO,
            delay: FIRST_DELAY,
        }
    }
}

impl Rtt {
    /// Takes the time between a message and its acknowledgement.
    pub fn sample(&mut self, sample: Duration) {
        let sample = sample.min(Duration::from_secs(3600));
        self.variation = self.variation * 3 / 4 + self.round_trip.abs_diff(sample) / 4;
        self.round_trip = self.round_trip * 7 / 8 + sample / 8;
        self.delay = (self.round_trip + LEAST_MARGIN.max(self.variation * 4)).min(LONGEST_DELAY);
    }

    /// The smoothed round trip.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// How long to wait for an acknowledgement before the `resends`-th resend (from 0): doubled
    /// each time, never above one second, which is the peers' own longest.
    pub fn delay(&self, resends: u32) -> Duration {
        self.delay
            .saturating_mul(1 << resends.min(8))
            .min(LONGEST_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_peers_formula() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.delay(0), Duration::from_millis(200));
        rtt.sample(Duration::from_millis(20));
        // variation = 80 / 4 = 20, round trip = 87.5 + 2.5 = 90, delay = 90 + 4 * 20
        assert_eq!(rtt.round_trip(), Duration::from_millis(90));
        assert_eq!(rtt.delay(0), Duration::from_millis(170));
        for _ in 0..200 {
            rtt.sample(Duration::from_millis(20));
        }
        assert!(rtt.delay(0) <= Duration::from_millis(31), "{rtt:?}");
    }

    #[test]
    fn the_delay_doubles_to_one_second() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.delay(1), Duration::from_millis(400));
        assert_eq!(rtt.delay(u32::MAX), Duration::from_secs(1));
        rtt.sample(Duration::MAX);
        assert_eq!(rtt.delay(0), Duration::from_secs(1));
    }
}
