//! Which `Open`s wait for a fresh code: an approval counts only for a session id that this agent
//! named in a denial, for the same key and the same `Open`.

use std::sync::Mutex;
use std::time::Duration;

use postern_proto::names::SessionId;
use tokio::time::Instant;

/// How long a person may take to type a code, a burnt one included.
const WAITS: Duration = Duration::from_secs(5 * 60);
/// How many wait at most; the oldest gives way.
const MANY: usize = 1024;
/// The same, for one key.
const OF_ONE_KEY: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct StepUps(Mutex<Vec<Waiting>>);

#[derive(Debug)]
struct Waiting {
    session: SessionId,
    key: [u8; 32],
    open: [u8; 32],
    since: Instant,
}

impl StepUps {
    /// A denial names `session`.
    pub(crate) fn wait(&self, session: SessionId, key: [u8; 32], open: [u8; 32], now: Instant) {
        let mut waiting = self.0.lock().unwrap_or_else(|e| e.into_inner());
        waiting.retain(|entry| now.saturating_duration_since(entry.since) < WAITS);
        let mut of_key = waiting.iter().filter(|entry| entry.key == key).count();
        if of_key >= OF_ONE_KEY || waiting.len() >= MANY {
            // In order of age: the first is the oldest, of this key if that has too many.
            let oldest = waiting
                .iter()
                .position(|entry| of_key < OF_ONE_KEY || entry.key == key);
            if let Some(oldest) = oldest {
                waiting.remove(oldest);
                of_key = of_key.saturating_sub(1);
            }
        }
        debug_assert!(of_key < OF_ONE_KEY);
        waiting.push(Waiting {
            session,
            key,
            open,
            since: now,
        });
    }

    /// Whether `session` was named for this key and `Open`. Once.
    pub(crate) fn take(
        &self,
        session: SessionId,
        key: &[u8; 32],
        open: &[u8; 32],
        now: Instant,
    ) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let found = waiting.iter().position(|entry| {
            entry.session == session
                && entry.key == *key
                && entry.open == *open
                && now.saturating_duration_since(entry.since) < WAITS
        });
        found.map(|index| waiting.remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> SessionId {
        SessionId::from_parts(1, n)
    }

    #[test]
    fn an_approval_counts_once_for_its_key_and_its_open() {
        let (waits, now) = (StepUps::default(), Instant::now());
        waits.wait(id(1), [1; 32], [2; 32], now);
        assert!(!waits.take(id(1), &[9; 32], &[2; 32], now), "another key");
        assert!(!waits.take(id(1), &[1; 32], &[9; 32], now), "another Open");
        assert!(
            !waits.take(id(9), &[1; 32], &[2; 32], now),
            "an id of its own"
        );
        assert!(waits.take(id(1), &[1; 32], &[2; 32], now));
        assert!(!waits.take(id(1), &[1; 32], &[2; 32], now), "used");

        waits.wait(id(2), [1; 32], [2; 32], now);
        assert!(
            !waits.take(id(2), &[1; 32], &[2; 32], now + WAITS),
            "too late"
        );
    }

    #[test]
    fn one_key_cannot_crowd_out_another() {
        let (waits, now) = (StepUps::default(), Instant::now());
        waits.wait(id(1), [1; 32], [0; 32], now);
        for n in 0..1000 {
            waits.wait(id(100 + n), [2; 32], [0; 32], now);
        }
        assert!(waits.take(id(1), &[1; 32], &[0; 32], now));
        assert!(waits.take(id(1099), &[2; 32], &[0; 32], now));
        assert!(!waits.take(id(100), &[2; 32], &[0; 32], now));
    }
}
