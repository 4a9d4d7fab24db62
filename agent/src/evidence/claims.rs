//! What clients claim: entries of their own logs, about sessions on routes without an agent. The
//! log takes each once, in its order, from whom it is about, and only so much of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_proto::audit::event::{Claim, Event, Fact, RecordingDigest};
use postern_proto::names::{AgentId, SessionId};
use postern_proto::recording::RecordingName;

use super::event::now_ms;
use super::health::lock;

/// Bytes of claims that one principal may have written in [`WINDOW`].
pub(super) const QUOTA: u64 = 64 * 1024 * 1024;
const WINDOW: Duration = Duration::from_hours(24);
/// Logs of one principal: one for each machine, and for each key that a machine lost.
const LOGS: usize = 64;
/// Sessions of one principal that have no end.
const OPEN: usize = 1024;
/// Ended sessions that are remembered, with their owners.
const ENDED: usize = 65_536;
/// Recordings that may still be handed over, of all principals.
const EXPECTED: usize = 4096;

/// Why a claim is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimError {
    /// The session is one of the agent's own.
    #[error("session {0} is the agent's own: nothing can be claimed of it")]
    OfAgent(SessionId),
    /// Somebody else claimed that session.
    #[error("session {0} is not yours to claim")]
    OfAnother(SessionId),
    /// The session's beginning was not claimed, or its end was.
    #[error("session {0} is not open: its beginning is claimed first, and its end once")]
    NotOpen(SessionId),
    /// A limit of this principal.
    #[error("{0}")]
    Limit(&'static str),
    /// Another request of this log, or about this session, is being written.
    #[error("another claim of this log or session is being written")]
    Busy,
    /// The wrapped event would not fit into one entry.
    #[error("the claim does not fit into an entry of the log")]
    TooLong,
}

/// What the log says of claims, and who may add what.
#[derive(Default)]
pub(super) struct Claims(Mutex<State>);

#[derive(Default)]
struct State {
    /// By principal and log: the next entry, and whether one is being written.
    logs: HashMap<(String, AgentId), Cursor>,
    /// What is being written, by its session, which it may begin or end: by whom, and its bytes.
    writing: HashMap<SessionId, (String, u64)>,
    /// Sessions without an end, with their owners.
    open: HashMap<SessionId, String>,
    ended: HashMap<SessionId, String>,
    ended_order: VecDeque<SessionId>,
    /// Recordings that a claim states as complete.
    expected: HashMap<RecordingName, Expected>,
    expected_order: VecDeque<RecordingName>,
    /// Bytes by principal, and when their count began.
    bytes: HashMap<String, (i64, u64)>,
}

#[derive(Default)]
struct Cursor {
    next: u64,
    busy: bool,
}

/// A recording as its owner's closing claim states it.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) owner: String,
    pub(super) digest: RecordingDigest,
}

/// An entry that is admitted and not written yet: nobody else writes for its log, or about its
/// session, meanwhile. It counts once [`Claims::follow`] took it.
pub(super) struct Turn {
    claims: Arc<Claims>,
    key: (String, AgentId),
    session: SessionId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.claims.0);
        state.writing.remove(&self.session);
        if let Some(cursor) = state.logs.get_mut(&self.key) {
            cursor.busy = false;
        }
    }
}

impl Claims {
    /// Follows the log by one of its entries of `bytes`, at start and while it grows.
    pub(super) fn follow(&self, event: &Event, bytes: u64) {
        let (Fact::Claimed(claim), Some(session), Some(actor)) =
            (&event.fact, event.session, &event.actor)
        else {
            return;
        };
        let owner = actor.principal.key();
        let mut state = lock(&self.0);
        state.count(&owner, event.time_ms, bytes);
        let key = (owner.clone(), claim.log.clone());
        let cursor = state.logs.entry(key).or_default();
        cursor.next = cursor.next.max(claim.entry.saturating_add(1));
        match &*claim.fact {
            Fact::SessionClaimed { .. } => {
                state.open.insert(session, owner.clone());
            }
            Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } => {
                state.end(session, owner.clone());
            }
            _ => {}
        }
        for digest in claim.fact.recordings() {
            if let (true, Ok(name)) = (digest.complete, digest.name.parse()) {
                state.expect(name, &owner, digest);
            }
        }
    }

    /// Admits an entry; `Ok(None)` when the log has it already.
    pub(super) fn admit(
        self: &Arc<Self>,
        owner: &str,
        session: SessionId,
        claim: &Claim,
        bytes: u64,
    ) -> Result<Option<Turn>, ClaimError> {
        if !session.is_of_client() {
            return Err(ClaimError::OfAgent(session));
        }
        let key = (owner.to_owned(), claim.log.clone());
        let mut state = lock(&self.0);
        match state.logs.get(&key) {
            Some(cursor) if cursor.busy => return Err(ClaimError::Busy),
            Some(cursor) if claim.entry < cursor.next => return Ok(None),
            Some(_) => {}
            None => {
                let logs = state.logs.keys().filter(|(of, _)| of == owner).count();
                if logs >= LOGS {
                    return Err(ClaimError::Limit("you have too many logs at this agent"));
                }
            }
        }
        if state.writing.contains_key(&session) {
            return Err(ClaimError::Busy);
        }
        state.session(owner, session, &claim.fact)?;
        if state.used(owner, now_ms()).saturating_add(bytes) > QUOTA {
            return Err(ClaimError::Limit(
                "your quota of claims for one day is used up",
            ));
        }
        state.logs.entry(key.clone()).or_default().busy = true;
        state.writing.insert(session, (owner.to_owned(), bytes));
        Ok(Some(Turn {
            claims: Arc::clone(self),
            key,
            session,
        }))
    }

    /// What is expected of a recording, by whoever claimed it.
    pub(super) fn expected(&self, name: RecordingName) -> Option<Expected> {
        lock(&self.0).expected.get(&name).cloned()
    }
}

impl State {
    fn session(&self, owner: &str, session: SessionId, fact: &Fact) -> Result<(), ClaimError> {
        let known = self.open.get(&session).or_else(|| self.ended.get(&session));
        if known.is_some_and(|known| known != owner) {
            return Err(ClaimError::OfAnother(session));
        }
        let begins = matches!(fact, Fact::SessionClaimed { .. });
        let is_open = self.open.contains_key(&session);
        if begins == is_open || (begins && known.is_some()) {
            return Err(ClaimError::NotOpen(session));
        }
        let open = || self.open.values().filter(|of| *of == owner).count();
        if begins && open() >= OPEN {
            return Err(ClaimError::Limit(
                "too many of your claimed sessions have no end",
            ));
        }
        Ok(())
    }

    fn end(&mut self, session: SessionId, owner: String) {
        self.open.remove(&session);
        if self.ended.insert(session, owner).is_none() {
            self.ended_order.push_back(session);
        }
        while self.ended_order.len() > ENDED {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
    }

    fn expect(&mut self, name: RecordingName, owner: &str, digest: &RecordingDigest) {
        let expected = Expected {
            owner: owner.to_owned(),
            digest: digest.clone(),
        };
        if self.expected.insert(name, expected).is_none() {
            self.expected_order.push_back(name);
        }
        while self.expected_order.len() > EXPECTED {
            if let Some(oldest) = self.expected_order.pop_front() {
                self.expected.remove(&oldest);
            }
        }
    }

    fn count(&mut self, owner: &str, time_ms: i64, bytes: u64) {
        let window = i64::try_from(WINDOW.as_millis()).unwrap_or(i64::MAX);
        self.bytes
            .retain(|_, (since, _)| time_ms.saturating_sub(*since) < window);
        let (_, used) = self.bytes.entry(owner.to_owned()).or_insert((time_ms, 0));
        *used = used.saturating_add(bytes);
    }

    fn used(&self, owner: &str, now_ms: i64) -> u64 {
        let window = i64::try_from(WINDOW.as_millis()).unwrap_or(i64::MAX);
        let written = match self.bytes.get(owner) {
            Some((since, used)) if now_ms.saturating_sub(*since) < window => *used,
            _ => 0,
        };
        let writing = self.writing.values().filter(|(of, _)| of == owner);
        writing.fold(written, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// Recordings that somebody hands over at this moment.
#[derive(Default)]
pub(super) struct Uploads(Mutex<HashSet<RecordingName>>);

/// The right to add to one.
pub(super) struct Upload {
    uploads: Arc<Uploads>,
    name: RecordingName,
}

impl Uploads {
    pub(super) fn begin(self: &Arc<Self>, name: RecordingName) -> Option<Upload> {
        lock(&self.0).insert(name).then(|| Upload {
            uploads: Arc::clone(self),
            name,
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        lock(&self.uploads.0).remove(&self.name);
    }
}
