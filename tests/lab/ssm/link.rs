//! One direction of a session inside the service: a bounded queue between two connections that
//! come and go, where frames are lost, doubled and delayed on order.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::knobs::{Noise, Retention};

/// Bytes that wait for a reader that is there: above it the writer is not read on.
const ATTACHED: usize = 1024 * 1024;
/// Bytes that are kept for a reader that is away. Above it frames are lost.
const AWAY: usize = 16 * 1024 * 1024;

/// One direction.
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// Whether a connection takes frames out.
    attached: bool,
    /// Of the service itself: ahead of everything.
    urgent: VecDeque<Bytes>,
    queue: VecDeque<(Option<Instant>, Bytes)>,
    bytes: usize,
    /// The last frame, after everything in the queue.
    end: Option<Bytes>,
    dice: StdRng,
}

/// What comes out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Frame(Bytes),
    /// The last one.
    End(Bytes),
}

impl Lane {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                attached: false,
                urgent: VecDeque::new(),
                queue: VecDeque::new(),
                bytes: 0,
                end: None,
                dice: StdRng::seed_from_u64(seed),
            }),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame of the other side. Waits while the reader is there and slow.
    pub(super) async fn push(&self, frame: Bytes, noise: Noise, retention: Retention) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if !state.attached || state.bytes < ATTACHED {
                    state.put(frame, noise, retention);
                    break;
                }
            }
            changed.await;
        }
        self.changed.notify_waiters();
    }

    /// A frame of the service.
    pub(super) fn inject(&self, frame: Bytes) {
        {
            let mut state = self.state();
            if state.attached {
                state.urgent.push_back(frame);
            }
        }
        self.changed.notify_waiters();
    }

    /// Nothing comes after this frame.
    pub(super) fn end(&self, frame: Bytes) {
        self.state().end = Some(frame);
        self.changed.notify_waiters();
    }

    pub(super) fn attach(&self) {
        self.state().attached = true;
        self.changed.notify_waiters();
    }

    pub(super) fn detach(&self, retention: Retention) {
        {
            let mut state = self.state();
            state.attached = false;
            state.urgent.clear();
            if retention == Retention::Drop {
                state.queue.clear();
                state.bytes = 0;
            }
        }
        self.changed.notify_waiters();
    }

    /// The next frame, when there is one. Loses nothing when it is dropped before that.
    pub(super) async fn take(&self) -> Taken {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let due = match self.try_take() {
                Ok(taken) => return taken,
                Err(due) => due,
            };
            match due {
                None => changed.await,
                Some(due) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// As [`Self::take`]; else when the first delayed frame is due.
    pub(super) fn try_take(&self) -> Result<Taken, Option<Instant>> {
        let mut state = self.state();
        let frame = state.urgent.pop_front().or_else(|| state.pop());
        let taken = match frame {
            Some(frame) => Taken::Frame(frame),
            None if state.queue.is_empty() => Taken::End(state.end.take().ok_or(None)?),
            None => return Err(state.queue.iter().filter_map(|(due, _)| *due).min()),
        };
        drop(state);
        self.changed.notify_waiters();
        Ok(taken)
    }
}

impl State {
    fn put(&mut self, frame: Bytes, noise: Noise, retention: Retention) {
        let lost = !self.attached && (retention == Retention::Drop || self.bytes >= AWAY);
        if lost || self.end.is_some() || self.throw(noise.drop) {
            return;
        }
        let copies = 1 + usize::from(self.throw(noise.double));
        for _ in 0..copies {
            let due = self
                .throw(noise.delay)
                .then(|| Instant::now() + noise.delay_for);
            self.bytes += frame.len();
            self.queue.push_back((due, frame.clone()));
        }
    }

    fn throw(&mut self, percentage: f64) -> bool {
        percentage > 0.0 && self.dice.random_bool((percentage / 100.0).clamp(0.0, 1.0))
    }

    fn pop(&mut self) -> Option<Bytes> {
        let now = Instant::now();
        let ready = |(due, _): &(Option<Instant>, Bytes)| due.is_none_or(|due| due <= now);
        let place = self.queue.iter().position(ready)?;
        let (_, frame) = self.queue.remove(place)?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const QUIET: Noise = Noise {
        drop: 0.0,
        double: 0.0,
        delay: 0.0,
        delay_for: Duration::ZERO,
    };

    fn frame(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number])
    }

    fn all(lane: &Lane) -> Vec<u8> {
        let mut numbers = Vec::new();
        while let Ok(Taken::Frame(frame)) = lane.try_take() {
            numbers.extend_from_slice(&frame);
        }
        numbers
    }

    #[tokio::test]
    async fn frames_for_a_side_that_is_away_are_kept_or_dropped() {
        for (retention, expected) in [(Retention::Keep, vec![1, 2, 3]), (Retention::Drop, vec![3])]
        {
            let lane = Lane::new(1);
            lane.attach();
            lane.push(frame(1), QUIET, retention).await;
            lane.detach(retention);
            lane.push(frame(2), QUIET, retention).await;
            lane.attach();
            lane.push(frame(3), QUIET, retention).await;
            assert_eq!(all(&lane), expected);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_writer_up() {
        let lane = Lane::new(1);
        lane.attach();
        let large = Bytes::from(vec![0; ATTACHED]);
        lane.push(large, QUIET, Retention::Keep).await;
        let mut second = Box::pin(lane.push(frame(2), QUIET, Retention::Keep));
        assert_eq!((&mut second).now_or_never(), None);
        assert!(matches!(lane.take().await, Taken::Frame(_)));
        second.await;
        assert_eq!(lane.take().await, Taken::Frame(frame(2)));
    }

    #[tokio::test]
    async fn noise_loses_doubles_and_overtakes() {
        let lane = Lane::new(1);
        lane.attach();
        let noise = |drop, double, delay| Noise {
            drop,
            double,
            delay,
            delay_for: Duration::from_millis(50),
        };
        lane.push(frame(1), noise(100.0, 0.0, 0.0), Retention::Keep)
            .await;
        lane.push(frame(2), noise(0.0, 0.0, 100.0), Retention::Keep)
            .await;
        lane.push(frame(3), noise(0.0, 100.0, 0.0), Retention::Keep)
            .await;
        assert_eq!(all(&lane), [3, 3]);
        assert_eq!(lane.take().await, Taken::Frame(frame(2)));
    }

    #[tokio::test]
    async fn the_end_comes_after_everything_and_nothing_after_it() {
        let lane = Lane::new(1);
        lane.attach();
        lane.push(frame(1), QUIET, Retention::Keep).await;
        lane.end(frame(9));
        lane.push(frame(2), QUIET, Retention::Keep).await;
        assert_eq!(lane.take().await, Taken::Frame(frame(1)));
        assert_eq!(lane.take().await, Taken::End(frame(9)));
    }
}
