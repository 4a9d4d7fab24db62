//! Ceilings that keep one client from starving the rest.
//!
//! Everything that counts holds a value of this module; dropping it counts down.

mod places;
mod unproved;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pipe::{Budget, Share};
use places::{Connection, Unproved, network};
use unproved::Strangers;

pub(crate) use places::{Arrival, Parked, Place, SessionPlace};

/// Denials of one principal that become events at once, and how long one more takes.
const DENIAL_BURST: f64 = 30.0;
const DENIAL_REFILL: Duration = Duration::from_secs(2);

/// Resumes of one principal at once, and how long one more takes: each is an event. A network that
/// comes back brings all pipes of a `forward` together.
const RESUME_BURST: f64 = 512.0;
const RESUME_REFILL: Duration = Duration::from_millis(200);

/// Bytes kept for peers that have not acknowledged them: of all pipes, and of one principal's.
const KEPT: usize = 1024 * 1024 * 1024;
const KEPT_OF_PRINCIPAL: usize = 256 * 1024 * 1024;

/// The ceilings.
#[derive(Debug, Clone)]
pub(crate) struct Ceilings {
    pub(crate) connections: usize,
    pub(crate) unauthenticated: usize,
    pub(crate) unauthenticated_per_address: usize,
    pub(crate) enrollments: usize,
    pub(crate) enrollments_per_address: usize,
    pub(crate) pipes_per_principal: usize,
    pub(crate) sessions_per_principal: usize,
}

/// A ceiling is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum LimitReached {
    #[error("the agent has no room for another connection")]
    Connections,
    #[error("too many connections that have not proved who they are")]
    Unauthenticated,
    #[error("too many enrolments at one time")]
    Enrollments,
    #[error("you have {0} connections open, which is the limit")]
    Pipes(usize),
    #[error("you have {0} sessions open, which is the limit")]
    Sessions(usize),
    #[error("you have {0} connections that wait to be resumed, which is the limit")]
    Parked(usize),
    #[error("too many resumes in a short time")]
    Resumes,
}

/// Counts for one agent. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    ceilings: Arc<Ceilings>,
    counts: Arc<Mutex<Counts>>,
    // Told when an enrolment is over.
    enrolled: Arc<Notify>,
    kept: Share,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    strangers: Strangers,
    enrolling: Strangers,
    principals: HashMap<String, Principal>,
}

#[derive(Debug)]
struct Principal {
    pipes: usize,
    parked: usize,
    sessions: usize,
    denials: Bucket,
    resumes: Bucket,
    kept: Share,
}

/// So many at once, and one more each so often.
#[derive(Debug)]
struct Bucket {
    left: f64,
    burst: f64,
    refill: Duration,
    refilled: Instant,
}

impl Bucket {
    fn full(burst: f64, refill: Duration) -> Self {
        Self {
            left: burst,
            burst,
            refill,
            refilled: Instant::now(),
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.left = (self.left + passed / self.refill.as_secs_f64()).min(self.burst);
        self.refilled = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }

    fn is_full(&self, now: Instant) -> bool {
        let whole = self.refill.mul_f64(self.burst);
        now.saturating_duration_since(self.refilled) >= whole
    }
}

impl Limits {
    pub(crate) fn new(ceilings: Ceilings) -> Self {
        Self {
            ceilings: Arc::new(ceilings),
            counts: Arc::default(),
            enrolled: Arc::default(),
            kept: Share::new(KEPT),
        }
    }

    /// A connection was accepted. It may be told to leave before it proved anything, so that
    /// others find a place.
    pub(crate) fn arrive(&self, address: IpAddr) -> Result<Arrival, LimitReached> {
        let address = network(address);
        let mut counts = self.counts();
        if counts.connections >= self.ceilings.connections {
            return Err(LimitReached::Connections);
        }
        if counts.strangers.of(address) >= self.ceilings.unauthenticated_per_address
            || !counts
                .strangers
                .make_room(address, self.ceilings.unauthenticated, 0)
        {
            return Err(LimitReached::Unauthenticated);
        }
        counts.connections += 1;
        let (number, leave) = counts.strangers.add(address);
        Ok(Arrival {
            connection: Connection(self.clone()),
            _unproved: Unproved(self.clone(), number),
            leave,
        })
    }

    /// Takes a place for an enrolment, if one is free or the address with most of them can spare
    /// one. The number of the place, and what tells its holder to go.
    fn enroll(&self, address: IpAddr) -> Option<(u64, CancellationToken)> {
        let (all, one) = (
            self.ceilings.enrollments,
            self.ceilings.enrollments_per_address,
        );
        let mut counts = self.counts();
        let enrolling = &mut counts.enrolling;
        // Enrolments take seconds: people who come from many places wait, and push nobody out, nor a
        // few who share an address.
        let spared = one / 2;
        let taken = enrolling.of(address) < one && enrolling.make_room(address, all, spared);
        taken.then(|| enrolling.add(address))
    }

    /// A session of `principal` is about to open.
    pub(crate) fn session(&self, principal: &str) -> Result<SessionPlace, LimitReached> {
        let limit = self.ceilings.sessions_per_principal;
        let mut counts = self.counts();
        let entry = counts.principal(principal);
        if entry.sessions >= limit {
            return Err(LimitReached::Sessions(limit));
        }
        entry.sessions += 1;
        Ok(SessionPlace(self.clone(), principal.to_owned()))
    }

    /// What a pipe of `principal` may keep for a peer that has not acknowledged it.
    pub(crate) fn kept(&self, principal: &str) -> Budget {
        let principal = self.counts().principal(principal).kept.clone();
        Budget::new(self.kept.clone(), principal)
    }

    /// Whether one more denial of `principal` is worth an event, so that nobody fills the log by
    /// being refused.
    pub(crate) fn may_log_denial(&self, principal: &str, now: Instant) -> bool {
        self.counts().principal(principal).denials.take(now)
    }

    /// Whether `principal` may resume one more pipe now.
    pub(crate) fn may_resume(&self, principal: &str, now: Instant) -> Result<(), LimitReached> {
        let may = self.counts().principal(principal).resumes.take(now);
        may.then_some(()).ok_or(LimitReached::Resumes)
    }

    /// Forgets principals that hold nothing and whose denials are refilled.
    pub(crate) fn sweep(&self, now: Instant) {
        self.counts().principals.retain(|_, entry| {
            let holds = entry.pipes > 0 || entry.parked > 0 || entry.sessions > 0;
            holds || !entry.denials.is_full(now) || !entry.resumes.is_full(now)
        });
    }

    /// Connections at this moment: all, and those not authenticated.
    pub(crate) fn connections(&self) -> (usize, usize) {
        let counts = self.counts();
        (counts.connections, counts.strangers.len())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters stay plausible whatever panicked while they were held.
        self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Counts {
    fn principal(&mut self, key: &str) -> &mut Principal {
        self.principals
            .entry(key.to_owned())
            .or_insert_with(|| Principal {
                pipes: 0,
                parked: 0,
                sessions: 0,
                denials: Bucket::full(DENIAL_BURST, DENIAL_REFILL),
                resumes: Bucket::full(RESUME_BURST, RESUME_REFILL),
                kept: Share::new(KEPT_OF_PRINCIPAL),
            })
    }
}

#[cfg(test)]
mod tests;
