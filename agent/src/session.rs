//! A session's life: what the relays (ssh, tunnel) may ask of the session that they serve.

use std::sync::Arc;

use postern_proto::audit::event::{Channel, Fact};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::SessionId;
use tokio::sync::watch;

use crate::evidence::{Evidence, EvidenceError, Recording, RecordingKind};
use crate::policy::{Denial, Grant};

/// Why a session must end, with a sentence for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The kind.
    pub reason: CloseReason,
    /// The sentence.
    pub message: Option<String>,
}

/// A granted session while it lives; relays hold it in an `Arc`. Placeholder for the parts that
/// the session module owns: decisions inside the session, evidence, and the order to end.
pub struct Session {
    id: SessionId,
    grant: Grant,
    evidence: Evidence,
    ending: watch::Sender<Option<Ending>>,
}

impl Session {
    /// For the owner of the session (and tests of the relays).
    pub fn new(id: SessionId, grant: Grant, evidence: Evidence) -> Arc<Self> {
        Arc::new(Self {
            id,
            grant,
            evidence,
            ending: watch::Sender::new(None),
        })
    }

    /// The one id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The decision that opened it.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Asks policy about a channel of this session (direct forwards: `tunnel`, listeners:
    /// `reverse`, agent: `forward_agent`; shells, commands and subsystems are the grant's own
    /// `connect`), writes the event either way (durable), and begins the recording where one is
    /// due. `Err` is told to the peer as a refused channel.
    pub async fn open_channel(
        &self,
        channel: Channel,
        recording: Option<RecordingKind>,
    ) -> Result<Option<Recording>, ChannelRefused> {
        let _ = channel;
        match recording {
            None => Ok(None),
            Some(kind) => {
                let principal = self.grant.request().who.principal().key();
                Ok(Some(self.evidence.begin(self.id, &principal, kind).await?))
            }
        }
    }

    /// Closes a recording of this session and remembers its digest for the closing event.
    pub async fn close_recording(&self, recording: &Recording) -> Result<(), EvidenceError> {
        recording.close().await.map(drop)
    }

    /// Writes an event about this session.
    pub async fn log(&self, fact: Fact) -> Result<(), EvidenceError> {
        let _ = fact;
        Ok(())
    }

    /// Becomes `Some` when the session must end (policy, time, evidence, quota, kill, drain).
    pub fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// Orders the end; the first order stands.
    pub fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(ending);
            }
            first
        });
    }
}

/// Why a channel did not open.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelRefused {
    /// Policy says no.
    #[error("{}", .0.message)]
    Denied(Denial),
    /// Without evidence nothing opens.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}
