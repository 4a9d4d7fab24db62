//! Looks at open sessions again: each second at their time, each minute and after a change at
//! policy, and at once when evidence fails.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::CloseReason;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Ending, Session};
use crate::assemble::Core;
use crate::end::End;
use crate::identity::VerifiedPrincipal;
use crate::policy::Decision;
use crate::rules::Rules;

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
            if now >= session.ends_at {
                session.end(Ending {
                    reason: CloseReason::Expired,
                    message: Some("the time of this grant is over".to_owned()),
                });
            } else if now >= session.ends_at - WARNING {
                session.warn();
            }
            if self.is_left(&session) {
                let core = Arc::clone(&self.core);
                self.core.tasks.spawn(async move {
                    let ordered = session.ending.borrow().clone();
                    let end = ordered.map_or(End::Done, End::Ordered);
                    core.sessions.close(&session, &end).await;
                });
            }
        }
    }

    /// Whether the session has been without a pipe for longer than it may: a running `forward`
    /// opens further pipes of one grant, and one that cost a code waits longer.
    fn is_left(&self, session: &Session) -> bool {
        session.state.alone_since().is_some_and(|since| {
            let over = session.ending.borrow().is_some() || self.core.drain.is_cancelled();
            over || since.elapsed() >= self.core.linger(session)
        })
    }

    async fn ask_again(&self) {
        for (index, session) in self.core.sessions.all().into_iter().enumerate() {
            if index % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            if session.ending.borrow().is_some() {
                continue;
            }
            let mut sources = session.state.sources();
            if sources.is_empty() {
                sources.push(session.grant.request().source);
            }
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

impl Session {
    /// Why policy no longer allows what the session does from these addresses, asked again by
    /// `who` where that was proved anew; `None` when it still does.
    pub(super) fn objection(
        &self,
        rules: &Rules,
        who: Option<&VerifiedPrincipal>,
        sources: &[IpAddr],
    ) -> Option<String> {
        let now = OffsetDateTime::now_utc();
        let granted = self.grant.request();
        let target = match &granted.target {
            None => None,
            Some(target) => match (rules.target)(&target.id) {
                Some(current) => Some(current),
                None => return Some(format!("`{}` is no longer in the inventory", target.name)),
            },
        };
        let inner = self.state.inner();
        for source in sources {
            if let Err(denial) = (rules.admit)(who.unwrap_or(&granted.who), *source) {
                return Some(format!("you may not come in any more: {}", denial.message));
            }
            for grant in std::iter::once(&self.grant).chain(&inner) {
                let mut again = grant.again(now, *source, target.clone());
                if let Some(who) = who {
                    again.who = who.clone();
                }
                match (rules.decide)(&again) {
                    Decision::Allow(_) => {}
                    Decision::StepUp { .. } => {
                        return Some("policy wants a fresh MFA code for this now".to_owned());
                    }
                    Decision::Deny(denial) => {
                        return Some(format!("policy no longer allows this: {}", denial.message));
                    }
                }
            }
        }
        None
    }

    fn warn(&self) {
        self.notice.send_if_modified(|notice| {
            let first = notice.is_none();
            if first {
                let left = (self.ends_at - OffsetDateTime::now_utc())
                    .whole_seconds()
                    .max(0);
                let minutes = (left + 59) / 60;
                *notice = Some(format!("this session ends in {minutes} minutes").into());
                tracing::info!(session = %self.id, minutes, "session ends soon");
            }
            first
        });
    }
}
