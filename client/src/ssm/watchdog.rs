//! Notices a target that is gone, though the connection to AWS is fine.
//!
//! The SSM Agent's absence is told to nobody (SSM-PROTOCOL.md section 7), and an idle session is
//! as quiet as a dead one. So AWS is asked, when nothing came from the target for a while.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::pipe::outage::{Lost, Outage, Outages};

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
    quiet: Duration,
    patience: Duration,
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
            quiet: QUIET,
            patience: PATIENCE,
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
                    sleep_until(self.heard.max(self.asked) + self.quiet).await;
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
                        let outage = self.outages.begin(Lost::Target, self.heard.into_std());
                        outage.explain("it is not connected to AWS");
                        (self.asked, outage)
                    });
                    if since.elapsed() >= self.patience {
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

    #[tokio::test]
    async fn a_target_that_is_away_for_long_is_gone_and_one_that_is_back_is_not() {
        let connected = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicUsize::new(0));
        let (mut watchdog, outages) = watchdog(&connected, &asked);
        watchdog.quiet = Duration::from_millis(2);
        watchdog.patience = Duration::from_secs(3600);
        let mut away = outages.watch();
        let told = {
            let watching = async {
                while asked.load(Ordering::Relaxed) < 3 {
                    tokio::task::yield_now().await;
                }
                assert!(away.borrow().since.is_none(), "it is there");
                connected.store(false, Ordering::Relaxed);
                let told = away.wait_for(|away| away.since.is_some()).await;
                told.is_ok()
            };
            tokio::select! {
                told = watching => told,
                error = watchdog.gone() => panic!("{error}"),
            }
        };
        assert!(told);
        watchdog.heard();
        assert!(outages.watch().borrow().since.is_none(), "it spoke");
        watchdog.patience = Duration::from_millis(20);
        let error = watchdog.gone().await;
        assert!(matches!(error, SsmError::Vanished { .. }), "{error}");
    }

    #[tokio::test]
    async fn who_may_not_ask_does_not_and_ends_nothing() {
        let refused: Ask = Box::new(|| {
            Box::pin(async {
                Err(SsmError::Refused {
                    service: "SSM",
                    action: "GetConnectionStatus",
                    target: None,
                    code: "AccessDeniedException".to_owned(),
                    message: String::new(),
                })
            })
        });
        let mut watchdog = Watchdog::new("i-1".to_owned(), Outages::new(), refused);
        watchdog.quiet = Duration::ZERO;
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, watchdog.gone()).await.is_err());
        assert!(!watchdog.may_ask);
    }
}
