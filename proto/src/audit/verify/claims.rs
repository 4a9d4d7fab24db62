//! What clients claim, apart from what the log's writer saw itself.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Fault, Session, SessionState};
use crate::audit::event::{Claim, Event, Fact};
use crate::names::SessionId;

/// Claimed sessions of one log.
#[derive(Default)]
pub(super) struct Claimed {
    /// Handed over to an agent.
    handed: BTreeMap<SessionId, Handed>,
    /// In a client's own log.
    own: BTreeSet<SessionId>,
    /// Recordings that claims alone state: they may lie in the client's store only.
    stated: BTreeSet<String>,
}

struct Handed {
    first: u64,
    state: SessionState,
    /// Account and id of who claimed it first.
    owner: String,
}

impl Claimed {
    /// Follows one claim; answers with what is wrong about it. Gaps are the client's.
    pub(super) fn take(
        &mut self,
        entry: u64,
        claim: &Claim,
        session: SessionId,
        event: &Event,
    ) -> Option<Fault> {
        let owner = event
            .actor
            .as_ref()
            .map(|actor| actor.principal.key())
            .unwrap_or_default();
        let known = self.handed.entry(session).or_insert_with(|| Handed {
            first: entry,
            state: SessionState::Open,
            owner: owner.clone(),
        });
        if known.owner != owner {
            return Some(Fault::ClaimOfAnother { session, entry });
        }
        match *claim.fact {
            Fact::SessionClosed { .. } => known.state = SessionState::Closed,
            Fact::SessionInterrupted { .. } => known.state = SessionState::Interrupted,
            _ => {}
        }
        None
    }

    /// A session of the client whose log this is.
    pub(super) fn own(&mut self, session: SessionId) {
        self.own.insert(session);
    }

    pub(super) fn is_own(&self, session: SessionId) -> bool {
        self.own.contains(&session)
    }

    /// A claim that was handed over states this recording.
    pub(super) fn states(&mut self, recording: &str) {
        self.stated.insert(recording.to_owned());
    }

    pub(super) fn is_stated(&self, recording: &str) -> bool {
        self.stated.contains(recording)
    }

    pub(super) fn state(&self, session: SessionId) -> Option<SessionState> {
        self.handed.get(&session).map(|handed| handed.state)
    }

    /// Those that were handed over.
    pub(super) fn sessions(&self) -> impl Iterator<Item = Session> {
        self.handed.iter().map(|(id, handed)| Session {
            id: *id,
            granted: handed.first,
            state: handed.state,
        })
    }
}
