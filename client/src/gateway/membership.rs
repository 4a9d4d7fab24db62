//! What further pipes of a session need.

use postern_proto::audit::note::Checkpoint;
use postern_proto::gateway::message::{HexSecret, Join, Witness, join_proof};
use postern_proto::names::SessionId;

use super::Opened;
use super::redial::exporter;
use crate::transport::Connection;

/// Names a session that is open, to open further pipes of it.
#[derive(Clone)]
pub struct Membership {
    session: SessionId,
    secret: HexSecret,
    evidence: Witness,
    seen: Checkpoint,
}

impl Membership {
    /// Of the pipe that opened the session.
    pub(super) fn of(opened: &Opened) -> Self {
        Self {
            session: opened.granted.session,
            secret: opened.granted.secret.clone(),
            evidence: opened.granted.evidence.clone(),
            seen: opened.seen.clone(),
        }
    }

    /// What the evidence that it rests on was accepted as.
    pub(super) fn seen(&self) -> &Checkpoint {
        &self.seen
    }

    /// The session.
    pub fn id(&self) -> SessionId {
        self.session
    }

    /// A further pipe brought newer evidence of the same event.
    pub(crate) fn renew(&mut self, opened: &Opened) {
        self.evidence.clone_from(&opened.granted.evidence);
        self.seen.clone_from(&opened.seen);
    }

    /// Whether `evidence` states what was accepted already. A consistency proof says how it was
    /// reached, and from the same state there is none.
    pub(super) fn rests_on(&self, evidence: &Witness) -> bool {
        self.evidence.checkpoint == evidence.checkpoint
            && self.evidence.leaf == evidence.leaf
            && self.evidence.leaf_hash == evidence.leaf_hash
    }

    /// Shows on `connection` that the session is ours; `None` when its secret is none.
    pub(super) fn prove(&self, connection: &Connection) -> Option<Join> {
        let exporter = exporter(connection)?;
        let secret = self.secret.bytes()?;
        Some(Join {
            session: self.session,
            proof: join_proof(&secret, &exporter, self.session),
        })
    }
}
