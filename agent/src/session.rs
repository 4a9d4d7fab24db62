//! A session: one grant in use.
//!
//! ```text
//! channel   decided, written down and recorded before it opens
//! registry  the sessions that are open; further pipes find theirs here
//! place     a pipe's place in its session
//! lifeline  the hold of a pipe's task on its connections
//! review    looked at again: does policy still allow it?
//! step_up   which `Open`s wait for a fresh code
//! ```
//!
//! [`Session`] is what the relays (ssh, tunnel) may ask of the session that they serve.

mod channel;
mod lifeline;
mod lifetimes;
mod peer;
mod place;
mod registry;
mod review;
mod state;
mod step_up;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_proto::audit::event::{Access, Actor, Event, EventTarget, Fact};
use postern_proto::gateway::message::{CloseReason, Witness};
use postern_proto::names::SessionId;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::evidence::{Entry, Evidence, EvidenceError, Recording, RecordingKind, agent_event};
use crate::limits::SessionPlace;
use crate::policy::Grant;
use crate::rules::Rules;
use state::State;

pub use crate::end::Ending;
pub use channel::ChannelRefused;
pub(crate) use lifeline::{Change, Lifeline, Resumable, Slot, Takeover};
pub(crate) use lifetimes::Lifetimes;
pub(crate) use peer::Peer;
pub(crate) use place::PipePlace;
pub(crate) use registry::Registry;
pub(crate) use state::PipeNumber;
pub(crate) use step_up::StepUps;

/// How long a remark in a recording may take: its relay waits.
const NOTE: Duration = Duration::from_secs(1);

/// A granted session while it lives; relays hold it in an `Arc`.
pub struct Session {
    id: SessionId,
    grant: Grant,
    /// Who, with the proof of a step-up.
    actor: Actor,
    access: Access,
    target: EventTarget,
    source: SocketAddr,
    started: OffsetDateTime,
    ends_at: OffsetDateTime,
    evidence: Evidence,
    rules: Rules,
    secret: zeroize::Zeroizing<[u8; 32]>,
    /// Of the event that granted it, as last proven.
    witness: Mutex<Witness>,
    ending: watch::Sender<Option<Ending>>,
    notice: watch::Sender<Option<Arc<str>>>,
    up: AtomicU64,
    down: AtomicU64,
    state: State,
    /// Until it is closed.
    place: Mutex<Option<SessionPlace>>,
}

/// What a session is made of.
pub(crate) struct Beginning {
    pub(crate) id: SessionId,
    pub(crate) grant: Grant,
    pub(crate) actor: Actor,
    pub(crate) access: Access,
    pub(crate) target: EventTarget,
    pub(crate) source: SocketAddr,
    pub(crate) ends_at: OffsetDateTime,
    pub(crate) evidence: Evidence,
    pub(crate) rules: Rules,
    pub(crate) witness: Witness,
    pub(crate) secret: zeroize::Zeroizing<[u8; 32]>,
    pub(crate) place: Option<SessionPlace>,
}

impl Session {
    /// The event that granted it is durable: `beginning` holds its witness.
    pub(crate) fn new(beginning: Beginning) -> Arc<Self> {
        Arc::new(Self {
            id: beginning.id,
            started: beginning.grant.request().now,
            grant: beginning.grant,
            actor: beginning.actor,
            access: beginning.access,
            target: beginning.target,
            source: beginning.source,
            ends_at: beginning.ends_at,
            evidence: beginning.evidence,
            rules: beginning.rules,
            secret: beginning.secret,
            witness: Mutex::new(beginning.witness),
            ending: watch::Sender::new(None),
            notice: watch::Sender::new(None),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            state: State::default(),
            place: Mutex::new(beginning.place),
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

    /// What was asked for.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The target, with the address that was dialled first.
    pub(crate) fn target(&self) -> &EventTarget {
        &self.target
    }

    /// When the grant ends.
    pub(crate) fn ends_at(&self) -> OffsetDateTime {
        self.ends_at
    }

    /// The proof, under the newest checkpoint, that the log holds the event that granted it.
    pub(crate) async fn witness(&self) -> Result<Witness, EvidenceError> {
        let known = self.proven().clone();
        let renewed = self.evidence.renew(known).await?;
        self.proven().clone_from(&renewed);
        Ok(renewed)
    }

    fn proven(&self) -> MutexGuard<'_, Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when it has no pipe.
    pub(crate) fn alone_since(&self) -> Option<Instant> {
        self.state.alone_since()
    }

    /// Where it is used from: its pipes' addresses, or the one that it was granted to.
    pub(crate) fn sources(&self) -> Vec<IpAddr> {
        let mut sources = self.state.sources();
        if sources.is_empty() {
            sources.push(self.grant.request().source);
        }
        sources
    }

    /// Closes a recording of this session and remembers its digest for the closing event.
    pub async fn close_recording(&self, recording: &Recording) -> Result<(), EvidenceError> {
        let digest = recording.close().await?;
        if let Some(overflow) = self.state.add_recording(digest) {
            // The closing event has a size: what does not fit gets an event of its own.
            self.log(Fact::RecordingProgressed {
                recording: overflow,
            })
            .await?;
        }
        Ok(())
    }

    /// Writes an event about this session; returns once it is durable.
    pub async fn log(&self, fact: Fact) -> Result<(), EvidenceError> {
        self.evidence.append(self.event(fact)).await.map(drop)
    }

    /// Becomes `Some` when the session must end (policy, time, evidence, quota, kill, drain).
    pub fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// The order to end, once there is one.
    pub(crate) fn ordered(&self) -> Option<Ending> {
        self.ending.borrow().clone()
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

    /// A sentence that the person should see while the session goes on: that its time is nearly
    /// over.
    pub fn notice(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.notice.subscribe()
    }

    /// Tells people at a terminal something that they should know now.
    pub(crate) fn tell(&self, words: &Arc<str>) {
        self.notice.send_replace(Some(Arc::clone(words)));
    }

    /// Orders the end that `error` asks for.
    pub(crate) fn end_for(&self, error: &EvidenceError) {
        let reason = match error {
            EvidenceError::Quota(_) => CloseReason::Quota,
            EvidenceError::Failed(_) | EvidenceError::Space { .. } => CloseReason::Evidence,
        };
        let message = match error {
            EvidenceError::Quota(bytes) => {
                format!("the recording quota of {bytes} bytes is used up")
            }
            _ => "the agent can no longer write evidence".to_owned(),
        };
        self.end(Ending {
            reason,
            message: Some(message),
        });
    }

    /// Begins a recording of this session.
    pub(crate) async fn begin_recording(
        &self,
        kind: RecordingKind,
    ) -> Result<Recording, EvidenceError> {
        let principal = self.grant.request().who.principal().key();
        let recording = self.evidence.begin(self.id, &principal, kind).await?;
        self.state.watch_recording(&recording);
        Ok(recording)
    }

    /// Writes a remark into every recording that is open. One that closes meanwhile does without.
    pub(crate) async fn note(&self, text: String) {
        for recording in self.state.open_recordings() {
            let write = recording.write(Entry::Note(text.clone()));
            match tokio::time::timeout(NOTE, write).await {
                Ok(Ok(())) => {}
                // A store that failed ends its sessions by itself.
                Ok(Err(error)) => tracing::debug!(session = %self.id, %error, "a remark"),
                Err(_) => tracing::warn!(session = %self.id, "a remark was not written in time"),
            }
        }
    }

    /// Counts bytes that were relayed.
    pub(crate) fn add_bytes(&self, up: u64, down: u64) {
        self.up.fetch_add(up, Ordering::Relaxed);
        self.down.fetch_add(down, Ordering::Relaxed);
        metrics::counter!("postern_bytes_total", "direction" => "up").increment(up);
        metrics::counter!("postern_bytes_total", "direction" => "down").increment(down);
    }

    /// Bytes relayed so far: from and to the client.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (
            self.up.load(Ordering::Relaxed),
            self.down.load(Ordering::Relaxed),
        )
    }

    /// The session is closed: what is kept of it for its client counts no longer.
    fn give_place_back(&self) {
        self.place.lock().unwrap_or_else(|e| e.into_inner()).take();
    }

    fn event(&self, fact: Fact) -> Event {
        Event {
            session: Some(self.id),
            actor: Some(self.actor.clone()),
            source: Some(self.source.to_string()),
            target: Some(self.target.clone()),
            ..agent_event(fact)
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.id)
    }
}
