//! The sessions that are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use postern_proto::audit::event::{Access, Fact};
use postern_proto::gateway::message::Witness;
use postern_proto::names::SessionId;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use super::{Ending, Session};
use crate::end::End;

/// How long a closing event may take before the peer is told without it.
const CLOSING: Duration = Duration::from_secs(5);

/// All sessions of an agent that are open.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<HashMap<SessionId, Arc<Session>>>);

/// A session as `postern session ls` shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionSummary {
    pub(crate) id: SessionId,
    /// `account/user id`.
    pub(crate) principal: String,
    pub(crate) arn: String,
    pub(crate) target: String,
    pub(crate) target_name: String,
    pub(crate) address: Option<String>,
    pub(crate) access: Access,
    pub(crate) source: String,
    /// RFC 3339.
    pub(crate) started: String,
    /// RFC 3339.
    pub(crate) ends: String,
    pub(crate) pipes: usize,
    /// Bytes from the client.
    pub(crate) up: u64,
    /// Bytes to the client.
    pub(crate) down: u64,
}

impl Registry {
    /// A session that was granted.
    pub(crate) fn insert(&self, session: Arc<Session>) {
        self.lock().insert(session.id(), session);
    }

    /// An open session.
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.lock().get(&id).cloned()
    }

    /// All open sessions, in order of their ids: oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut sessions: Vec<_> = self.lock().values().cloned().collect();
        sessions.sort_unstable_by_key(|session| session.id());
        sessions
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Orders a session to end. One without a pipe, which would say how it ended, is closed here.
    pub(crate) async fn end_one(&self, session: &Session, ending: Ending) {
        session.end(ending);
        if session.state.alone_since().is_some() {
            let end = session.ordered().map_or(End::Done, End::Ordered);
            self.close(session, &end).await;
        }
    }

    /// Tells the people of every session.
    pub(crate) fn tell_all(&self, words: &Arc<str>) {
        for session in self.all() {
            session.tell(words);
        }
    }

    /// Orders every session to end.
    pub(crate) fn end_all(&self, ending: &Ending) {
        for session in self.all() {
            session.end(ending.clone());
        }
    }

    /// Writes the closing event and forgets the session. `None` when that cannot be written, or
    /// somebody else does it.
    pub(crate) async fn close(&self, session: &Session, end: &End) -> Option<Witness> {
        let recordings = session.state.close()?;
        let (up, down) = session.bytes();
        let duration = OffsetDateTime::now_utc() - session.started;
        let closed = Fact::SessionClosed {
            reason: end.reason(),
            message: end.detail(),
            exit_status: end.exit_status(),
            up,
            down,
            duration_ms: i64::try_from(duration.whole_milliseconds()).unwrap_or(i64::MAX),
            recordings,
        };
        let id = session.id();
        let reason = end.reason();
        let detail = end.detail();
        match end.level() {
            tracing::Level::ERROR => {
                tracing::error!(session = %id, ?reason, detail, up, down, "session closed");
            }
            tracing::Level::WARN => {
                tracing::warn!(session = %id, ?reason, detail, up, down, "session closed");
            }
            _ => tracing::info!(session = %id, ?reason, detail, up, down, "session closed"),
        }
        let appended = timeout(CLOSING, session.evidence.append(session.event(closed))).await;
        self.lock().remove(&id);
        session.give_place_back();
        match appended {
            Ok(Ok(witness)) => Some(witness),
            Ok(Err(error)) => {
                tracing::error!(session = %id, %error, "the closing event could not be written");
                None
            }
            Err(_) => {
                tracing::error!(session = %id, "the closing event was not written in time");
                None
            }
        }
    }

    /// Writes the closing events of sessions that nobody serves any more.
    pub(crate) async fn close_all(&self) {
        for session in self.all() {
            let end = session.ordered().map_or(End::Done, End::Ordered);
            self.close(&session, &end).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
        // A map of handles: nothing in it can be half done.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Session {
    /// For lists.
    pub(crate) fn summary(&self) -> SessionSummary {
        let principal = self.grant.request().who.principal();
        let (up, down) = self.bytes();
        SessionSummary {
            id: self.id,
            principal: principal.key(),
            arn: principal.arn.clone(),
            target: self.target.id.to_string(),
            target_name: self.target.name.clone(),
            address: self.target.address.clone(),
            access: self.access.clone(),
            source: self.source.to_string(),
            started: self.started.format(&Rfc3339).unwrap_or_default(),
            ends: self.ends_at.format(&Rfc3339).unwrap_or_default(),
            pipes: self.state.pipes(),
            up,
            down,
        }
    }
}
