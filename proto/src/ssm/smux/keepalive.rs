//! Signs of life, where one side is so old that the other expects them.

use std::time::{Duration, Instant};

// smux `mux.go`, the defaults that both programs use.
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Keepalive {
    next: Instant,
    heard: Instant,
    owed: bool,
}

impl Keepalive {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now + INTERVAL,
            heard: now,
            owed: false,
        }
    }

    /// Anything arrived.
    pub(super) fn handle_data(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Says whether the other side is still to be believed in.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.next <= now {
            self.next = now + INTERVAL;
            self.owed = true;
        }
        now < self.heard + TIMEOUT
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next.min(self.heard + TIMEOUT)
    }

    /// Whether a keepalive is to be sent.
    pub(super) fn is_owed(&self) -> bool {
        self.owed
    }

    /// Whether one was to be sent: now it is.
    pub(super) fn take(&mut self) -> bool {
        std::mem::take(&mut self.owed)
    }
}
