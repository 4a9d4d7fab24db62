//! Looks at open sessions again: each second at their time, each minute and after a change at
//! policy, and at once when evidence fails.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::CloseReason;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::assemble::Core;
use crate::end::End;
use crate::session::{Ending, Session};

const TICK: Duration = Duration::from_secs(1);
/// How often policy is asked again without a change.
const AGAIN: Duration = Duration::from_secs(60);
/// How long before its end a session is told.
const WARNING: time::Duration = time::Duration::minutes(5);
/// Decisions made before other tasks of the thread get a turn.
const BATCH: usize = 32;

/// The task that keeps sessions honest. One per agent.
pub(crate) struct Keeper {
    core: Arc<Core>,
}

impl Keeper {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Runs until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failure = self.core.evidence.failure();
        let mut changes = self.core.rules.changes.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                why = failed(&mut failure) => return self.fail(&why, stop).await,
                changed = changes.changed() => {
                    if changed.is_err() {
                        // Nobody can change rules any more; the minute remains.
                        changes = watch::Sender::new(0).subscribe();
                    }
                    asked = Instant::now();
                    self.ask_again().await;
                }
                _ = tick.tick() => {
                    self.look_at_time();
                    if asked.elapsed() >= AGAIN {
                        asked = Instant::now();
                        self.ask_again().await;
                        self.core.each_minute();
                    }
                }
            }
        }
    }

    /// Evidence failed: everything ends, and what appears nevertheless ends as well.
    /// The store stays failed until restart, and so do we.
    async fn fail(self, why: &str, stop: CancellationToken) {
        tracing::error!(%why, "evidence failed: all sessions end");
        let mut tick = interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.core.sessions.end_all(&Ending {
                reason: CloseReason::Evidence,
                message: Some("the agent can no longer write evidence".to_owned()),
            });
            self.look_at_time();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
        }
    }

    /// Time over, nearly over, nobody left.
    fn look_at_time(&self) {
        let now = OffsetDateTime::now_utc();
        for session in self.core.sessions.all() {
            if now >= session.ends_at() {
                session.end(Ending {
                    reason: CloseReason::Expired,
                    message: Some("the time of this grant is over".to_owned()),
                });
            } else if now >= session.ends_at() - WARNING {
                session.warn();
            }
            if self.is_left(&session) {
                let core = Arc::clone(&self.core);
                self.core.tasks.spawn(async move {
                    let end = session.ordered().map_or(End::Done, End::Ordered);
                    core.sessions.close(&session, &end).await;
                });
            }
        }
    }

    /// Whether the session has been without a pipe for longer than it may: a running `forward`
    /// opens further pipes of one grant, and one that cost a code waits longer.
    fn is_left(&self, session: &Session) -> bool {
        session.alone_since().is_some_and(|since| {
            let over = session.ordered().is_some() || self.core.drain.is_cancelled();
            over || since.elapsed() >= session.linger(&self.core.lifetimes)
        })
    }

    async fn ask_again(&self) {
        for (index, session) in self.core.sessions.all().into_iter().enumerate() {
            if index % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            if session.ordered().is_some() {
                continue;
            }
            let sources = session.sources();
            if let Some(message) = session.objection(&self.core.rules, None, &sources) {
                session.end(Ending {
                    reason: CloseReason::Policy,
                    message: Some(message),
                });
            }
        }
    }
}

/// Why the evidence store failed, once it has.
async fn failed(failure: &mut watch::Receiver<Option<Arc<str>>>) -> Arc<str> {
    match failure.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_else(|| "unknown".into()),
        Err(_) => "the store is gone".into(),
    }
}
