//! Recording bytes of a session and of a principal.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_proto::audit::event::{Event, Fact};
use postern_proto::names::SessionId;

use super::EvidenceError;
use super::event::now_ms;
use super::health::lock;
use super::recover::OpenSessions;

/// A principal's bytes are counted over this long; then the count starts again.
const WINDOW: Duration = Duration::from_hours(24);

/// Ended sessions that are remembered.
const ENDED: usize = 1024;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quotas {
    pub(super) session: u64,
    pub(super) principal: u64,
}

/// Who recorded how much.
pub(super) struct Usage {
    quotas: Quotas,
    sessions: Mutex<HashMap<SessionId, Arc<SessionUsage>>>,
    principals: Mutex<HashMap<String, Arc<PrincipalUsage>>>,
    /// Sessions that ended lately: a channel that comes too late must not record after the
    /// session's closing event.
    ended: Mutex<VecDeque<SessionId>>,
}

/// One session's recordings.
pub(super) struct SessionUsage {
    bytes: AtomicU64,
    numbers: AtomicU32,
    /// Its closing event is durable: its recordings need no further word in the log.
    pub(super) closed: AtomicBool,
    principal: Arc<PrincipalUsage>,
    quotas: Quotas,
}

struct PrincipalUsage {
    bytes: AtomicU64,
    since: Instant,
}

/// What the log says that was recorded in the last [`WINDOW`]. Follows the log as it is read.
pub(super) struct Recorded {
    now_ms: i64,
    /// By name of the recording: whose, how long, and when the log first spoke of it.
    recordings: HashMap<String, (String, u64, i64)>,
}

impl Default for Recorded {
    fn default() -> Self {
        Self {
            now_ms: now_ms(),
            recordings: HashMap::new(),
        }
    }
}

impl Recorded {
    /// Follows the log by one event; `open` are the sessions that were open before it.
    pub(super) fn follow(&mut self, event: &Event, open: &OpenSessions) {
        let window = i64::try_from(WINDOW.as_millis()).unwrap_or(i64::MAX);
        if event.time_ms <= self.now_ms.saturating_sub(window) {
            return;
        }
        let digests = match &event.fact {
            Fact::SessionClosed { recordings, .. } | Fact::SessionInterrupted { recordings } => {
                recordings.as_slice()
            }
            Fact::RecordingProgressed { recording } => std::slice::from_ref(recording),
            _ => return,
        };
        let granted = event.session.and_then(|session| open.own.get(&session));
        let actor = granted.and_then(|open| open.granted.actor.as_ref());
        let Some(actor) = actor.or(event.actor.as_ref()) else {
            return;
        };
        for digest in digests {
            let key = || (actor.principal.key(), 0, event.time_ms);
            let known = self.recordings.entry(digest.name.clone());
            let (_, length, _) = known.or_insert_with(key);
            *length = (*length).max(digest.length);
        }
    }

    fn usage(self) -> HashMap<String, Arc<PrincipalUsage>> {
        let mut sums: HashMap<String, (u64, i64)> = HashMap::new();
        for (principal, length, time) in self.recordings.into_values() {
            let (bytes, first) = sums.entry(principal).or_insert((0, time));
            *bytes = bytes.saturating_add(length);
            *first = time.min(*first);
        }
        let now = Instant::now();
        let usage = |(bytes, first): (u64, i64)| {
            let age = u64::try_from(self.now_ms.saturating_sub(first)).unwrap_or(0);
            PrincipalUsage {
                bytes: AtomicU64::new(bytes),
                // A machine that has just started counts from then on: longer, not shorter.
                since: now.checked_sub(Duration::from_millis(age)).unwrap_or(now),
            }
        };
        let usages = sums.into_iter();
        usages
            .map(|(principal, sum)| (principal, Arc::new(usage(sum))))
            .collect()
    }
}

impl Usage {
    /// `recorded` is what the log says of the time before: a restart gives nobody a new quota.
    pub(super) fn new(quotas: Quotas, recorded: Recorded) -> Self {
        Self {
            quotas,
            sessions: Mutex::default(),
            principals: Mutex::new(recorded.usage()),
            ended: Mutex::default(),
        }
    }

    /// The session's count, which is made when it is new; `None` once the session ended.
    pub(super) fn session(&self, session: SessionId, principal: &str) -> Option<Arc<SessionUsage>> {
        let mut sessions = lock(&self.sessions);
        if lock(&self.ended).contains(&session) {
            return None;
        }
        let usage = sessions.entry(session).or_insert_with(|| {
            Arc::new(SessionUsage {
                bytes: AtomicU64::new(0),
                numbers: AtomicU32::new(0),
                closed: AtomicBool::new(false),
                principal: self.principal(principal),
                quotas: self.quotas,
            })
        });
        Some(Arc::clone(usage))
    }

    fn principal(&self, key: &str) -> Arc<PrincipalUsage> {
        let fresh = || PrincipalUsage {
            bytes: AtomicU64::new(0),
            since: Instant::now(),
        };
        let mut principals = lock(&self.principals);
        principals.retain(|_, usage| usage.since.elapsed() < WINDOW);
        let usage = principals
            .entry(key.to_owned())
            .or_insert_with(|| Arc::new(fresh()));
        Arc::clone(usage)
    }

    /// Counts bytes of a principal that are of no session here, or refuses them.
    pub(super) fn take(&self, principal: &str, bytes: u64) -> Result<(), EvidenceError> {
        reserve(
            &self.principal(principal).bytes,
            bytes,
            self.quotas.principal,
        )
    }

    /// The session ended, durably.
    pub(super) fn close(&self, session: SessionId) {
        let mut sessions = lock(&self.sessions);
        if let Some(usage) = sessions.remove(&session) {
            usage.closed.store(true, Ordering::Release);
        }
        let mut ended = lock(&self.ended);
        ended.truncate(ENDED - 1);
        ended.push_front(session);
    }
}

impl SessionUsage {
    /// The number of the session's next recording.
    pub(super) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts bytes that are about to be written, or refuses them.
    pub(super) fn take(&self, bytes: u64) -> Result<(), EvidenceError> {
        reserve(&self.bytes, bytes, self.quotas.session)?;
        reserve(&self.principal.bytes, bytes, self.quotas.principal)
    }
}

fn reserve(count: &AtomicU64, bytes: u64, limit: u64) -> Result<(), EvidenceError> {
    let before = count.fetch_add(bytes, Ordering::Relaxed);
    if before.saturating_add(bytes) > limit {
        count.fetch_sub(bytes, Ordering::Relaxed);
        return Err(EvidenceError::Quota(limit));
    }
    Ok(())
}
