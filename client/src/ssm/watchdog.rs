//! Notices a target that is gone, though the connection to AWS is fine.
//!
//! The SSM Agent's absence is told to nobody (SSM-PROTOCOL.md section 7), and an idle session is
//! as quiet as a dead one. So AWS is asked, when nothing came from the target for a while.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::pipe::outage::{Outage, Outages};

use super::error::SsmError;

/// How long nothing is heard before AWS is asked, and between two questions.
const QUIET: Duration = Duration::from_secs(60);
/// How long a target may be away: the time that unacknowledged data has too.
const PATIENCE: Duration = Duration::from_secs(300);

/// Asks whether the target's SSM Agent is connected.
type Ask = Box<dyn Fn() -> BoxFuture<'static, Result<bool, SsmError>> + Send>;

/// Watches one target.
pub(super) struct Watchdog {
    target: String,
    ask: Ask,
    outages: Outages,
    heard: Instant,
    asked: Instant,
    answer: Option<BoxFuture<'static, Result<bool, SsmError>>>,
    away: Option<(Instant, Outage)>,
    may_ask: bool,
}

impl Watchdog {
    pub(super) fn new(target: String, outages: Outages, ask: Ask) -> Self {
        Self {
            target,
            ask,
            outages,
            heard: Instant::now(),
            asked: Instant::now(),
            answer: None,
            away: None,
            may_ask: true,
        }
    }

    /// The target spoke.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
        self.away = None;
    }

    /// Resolves when the target is away for good. Cancel-safe.
    pub(super) async fn gone(&mut self) -> SsmError {
        loop {
            if !self.may_ask {
                return std::future::pending().await;
            }
            let answer = match &mut self.answer {
                Some(answer) => answer.await,
                None => {
                    sleep_until(self.heard.max(self.asked) + QUIET).await;
                    self.answer = Some((self.ask)());
                    continue;
                }
            };
            self.answer = None;
            self.asked = Instant::now();
            match answer {
                Ok(true) => self.away = None,
                Ok(false) => {
                    let (since, _) = self.away.get_or_insert_with(|| {
                        let outage = self.outages.begin(self.heard.into_std());
                        outage.explain("the target is not connected to AWS");
                        (self.asked, outage)
                    });
                    if since.elapsed() >= PATIENCE {
                        return SsmError::Vanished {
                            target: self.target.clone(),
                            minutes: self.heard.elapsed().as_secs() / 60,
                        };
                    }
                }
                // IAM does not let us ask: then nobody does.
                Err(SsmError::Refused { .. }) => self.may_ask = false,
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    fn watchdog(connected: &Arc<AtomicBool>, asked: &Arc<AtomicUsize>) -> (Watchdog, Outages) {
        let (connected, asked) = (Arc::clone(connected), Arc::clone(asked));
        let ask: Ask = Box::new(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            let connected = connected.load(Ordering::Relaxed);
            Box::pin(async move { Ok(connected) })
        });
        let outages = Outages::new();
        (
            Watchdog::new("i-1".to_owned(), outages.clone(), ask),
            outages,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_away_for_minutes_is_gone_and_one_that_is_back_is_not() {
        let connected = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicUsize::new(0));
        let (mut watchdog, outages) = watchdog(&connected, &asked);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, watchdog.gone()).await.is_err());
        let calm = asked.load(Ordering::Relaxed);
        assert!((50..=60).contains(&calm), "once a minute: {calm}");
        connected.store(false, Ordering::Relaxed);
        let minutes = Duration::from_secs(200);
        assert!(
            tokio::time::timeout(minutes, watchdog.gone())
                .await
                .is_err()
        );
        assert!(outages.watch().borrow().since.is_some(), "it is told");
        watchdog.heard();
        assert!(outages.watch().borrow().since.is_none());
        let begun = Instant::now();
        let error = tokio::time::timeout(hour, watchdog.gone()).await.unwrap();
        assert!(matches!(error, SsmError::Vanished { .. }), "{error}");
        assert!(begun.elapsed() >= PATIENCE);
    }
}
