//! How much all pipes together may keep for peers that have not acknowledged it.
//!
//! Every pipe may keep [`FREE`]; what it keeps above comes out of its principal's share and the
//! agent's, in steps, and goes back when the peer has taken everything. With nothing left to
//! share, throughput falls to what [`FREE`] allows; no session ends for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that every pipe may keep. All the pipes that one principal may open keep less of it than
/// the share of a principal.
const FREE: usize = 128 * 1024;
/// Room that there is before the shares are asked for more: that of a whole read.
const READ: usize = 64 * 1024;
/// Bytes taken from the shares at once.
const STEP: usize = 1024 * 1024;

/// A number of bytes that several pipes share. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    left: Arc<AtomicUsize>,
}

impl Share {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(bytes)),
        }
    }

    fn take(&self) -> bool {
        let take = |left: usize| left.checked_sub(STEP);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One pipe's part of the shares.
#[derive(Debug)]
pub(crate) struct Budget {
    shares: [Share; 2],
    taken: usize,
}

impl Budget {
    /// Takes from the agent's share and the principal's.
    pub(crate) fn new(agent: Share, principal: Share) -> Self {
        Self {
            shares: [agent, principal],
            taken: 0,
        }
    }

    /// How many of `room` bytes may be kept now by a pipe that keeps `held` already.
    pub(super) fn room(&mut self, held: usize, room: usize) -> usize {
        if held == 0 {
            self.release();
        }
        while held + READ > FREE + self.taken && self.take() {}
        room.min((FREE + self.taken).saturating_sub(held))
    }

    fn take(&mut self) -> bool {
        let [agent, principal] = &self.shares;
        if !agent.take() {
            return false;
        }
        if !principal.take() {
            agent.give(STEP);
            return false;
        }
        self.taken += STEP;
        true
    }

    fn release(&mut self) {
        if self.taken > 0 {
            for share in &self.shares {
                share.give(self.taken);
            }
            self.taken = 0;
        }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn what_is_kept_above_the_free_part_is_shared_and_given_back() {
        let (agent, principal) = (Share::new(3 * MIB), Share::new(2 * MIB));
        let mut one = Budget::new(agent.clone(), principal.clone());
        assert_eq!(one.room(0, 32 * MIB), FREE);
        assert_eq!(one.room(READ, 32 * MIB), FREE - READ, "not asked for yet");
        assert_eq!(one.room(FREE, 32 * MIB), STEP);
        assert_eq!(one.room(FREE + STEP, 32 * MIB), STEP);
        assert_eq!(
            one.room(FREE + 2 * STEP, 32 * MIB),
            0,
            "the principal's share is used up"
        );

        let mut other = Budget::new(agent.clone(), Share::new(32 * MIB));
        assert_eq!(other.room(FREE, 32 * MIB), STEP);
        assert_eq!(
            other.room(FREE + STEP, 32 * MIB),
            0,
            "the agent's share is used up"
        );
        drop(other);
        assert_eq!(one.room(0, 32 * MIB), FREE, "all acknowledged");
        assert_eq!(agent.left.load(Ordering::Relaxed), 3 * MIB);
        assert_eq!(principal.left.load(Ordering::Relaxed), 2 * MIB);
    }

    #[test]
    fn pipes_that_acknowledge_nothing_keep_half_a_gibibyte_of_a_principal_in_all() {
        // What a principal may have open, as the agent's configuration says by itself.
        const PIPES: usize = 2048;
        let (agent, principal) = (Share::new(1024 * MIB), Share::new(256 * MIB));
        let mut kept = 0;
        let budgets: Vec<Budget> = (0..PIPES)
            .map(|_| {
                let mut budget = Budget::new(agent.clone(), principal.clone());
                let mut held = 0;
                loop {
                    let room = budget.room(held, 32 * MIB - held);
                    if room == 0 {
                        break;
                    }
                    held += room;
                }
                assert!(held >= FREE, "nobody is left without any");
                kept += held;
                budget
            })
            .collect();
        assert!(kept <= 512 * MIB, "{kept}");
        drop(budgets);
        assert_eq!(principal.left.load(Ordering::Relaxed), 256 * MIB);
    }
}
