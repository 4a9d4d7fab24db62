//! What every message carries besides its content, drawn from a seed and a clock that the caller
//! hands in, so that a run can be repeated.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ssm::message::MessageId;

/// 32 random bytes from which a channel draws message ids, its first nonce and its challenge: one
/// seed for each channel. Never printed, wiped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Takes 32 random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(…)")
    }
}

#[derive(Debug)]
pub(super) struct Ids {
    seed: Seed,
    drawn: u64,
    clock: (Instant, Duration),
}

impl Ids {
    pub(super) fn new(seed: Seed, now: Instant, unix: Duration) -> Self {
        Self {
            seed,
            drawn: 0,
            clock: (now, unix),
        }
    }

    /// The clocks drift apart while a laptop sleeps: each connection tells them anew.
    pub(super) fn set_clock(&mut self, now: Instant, unix: Duration) {
        self.clock = (now, unix);
    }

    pub(super) fn message_id(&mut self) -> MessageId {
        let random = self.random();
        MessageId::from_random(random.first_chunk().copied().unwrap_or_default())
    }

    /// Milliseconds since 1970.
    pub(super) fn created(&self, now: Instant) -> u64 {
        let (then, unix) = self.clock;
        let millis = (unix + now.saturating_duration_since(then)).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX)
    }

    pub(super) fn random(&mut self) -> [u8; 32] {
        self.drawn += 1;
        let mut context = Context::new(&SHA256);
        context.update(&self.seed.0);
        context.update(&self.drawn.to_be_bytes());
        context.finish().as_ref().try_into().unwrap_or_default()
    }
}
