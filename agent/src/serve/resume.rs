//! Pipes that go on on a new connection.
//!
//! ```text
//! task of the new connection          task of the pipe
//!   Resume -> who -> proof -> policy
//!   event durable ── Takeover ──────▶ Lifeline: old connection dropped, offset stated, replay
//! ```

use std::sync::Arc;

use postern_proto::audit::event::{Event, Fact};
use postern_proto::gateway::message::CloseReason;
use postern_proto::gateway::resume::Resume;
use postern_proto::names::SessionId;
use tokio::time::Instant;

use crate::assemble::Core;
use crate::evidence::agent_event;
use crate::identity::VerifiedPrincipal;
use crate::limits::Place;
use crate::pipe::Opening;
use crate::refusal::Refusal;
use crate::session::{Ending, Peer, Session, Slot, Takeover};
use crate::tls::Connection;

/// Hands an authenticated connection to the pipe that it may continue, or says no.
pub(super) async fn resume(
    core: &Arc<Core>,
    peer: &Peer,
    place: Place,
    opening: Opening<Connection>,
    resume: &Resume,
    id: SessionId,
) {
    let slot = match check(core, peer, resume, id).await {
        Ok(slot) => slot,
        Err((id, refusal)) => return opening.deny(&refusal.denied(id)).await,
    };
    let takeover = Box::new(Takeover {
        opening,
        place,
        source: peer.source,
        theirs: resume.received,
        attempt: resume.attempt,
    });
    if let Err((takeover, refusal)) = slot.hand_over(takeover) {
        let denied = refusal.denied(slot.session().id());
        takeover.opening.deny(&denied).await;
    }
}

/// Everything before the takeover; its event is durable. A refusal has been logged.
async fn check(
    core: &Arc<Core>,
    peer: &Peer,
    resume: &Resume,
    fresh: SessionId,
) -> Result<Arc<Slot>, (SessionId, Refusal)> {
    let who = match (core.rules.verify)(&peer.certificate) {
        Ok(who) => who,
        Err(fault) => {
            core.strangers.note(peer.source.ip(), "certificate");
            return Err((fresh, Refusal::Certificate(fault)));
        }
    };
    let attempt = Attempt {
        core,
        peer,
        who,
        resume,
    };
    let Some(slot) = core.resumable.get(resume.session, resume.pipe) else {
        let refusal = Refusal::Resume("no such pipe");
        tracing::info!(session = %resume.session, pipe = resume.pipe, source = %peer.source,
            principal = %attempt.who.principal().arn, "a resume of a pipe that is not here");
        return Err((fresh, refusal));
    };
    match attempt.run(&slot).await {
        Ok(()) => Ok(slot),
        Err((owned, refusal)) => {
            // Whoever does not own the session learns nothing of it, its id included.
            let id = if owned { slot.session().id() } else { fresh };
            attempt.log_refusal(slot.session(), id, &refusal).await;
            Err((id, refusal))
        }
    }
}

/// One `Resume` on its way to a yes or no.
struct Attempt<'a> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    who: VerifiedPrincipal,
    resume: &'a Resume,
}

impl Attempt<'_> {
    /// A refusal says whether it was told to the session's owner.
    async fn run(&self, slot: &Slot) -> Result<(), (bool, Refusal)> {
        let session = slot.session();
        self.prove(slot).map_err(|refusal| (false, refusal))?;
        self.allow(session).map_err(|refusal| (true, refusal))?;
        let resumed = Event {
            session: Some(session.id()),
            // With the certificate of now.
            actor: Some(self.who.actor()),
            source: Some(self.peer.source.to_string()),
            target: Some(session.target().clone()),
            ..agent_event(Fact::PipeResumed {
                pipe: slot.pipe(),
                attempt: self.resume.attempt,
            })
        };
        match self.core.evidence.append(resumed).await {
            Ok(_) => Ok(()),
            Err(error) => Err((true, error.into())),
        }
    }

    /// That it is the owner who asks.
    fn prove(&self, slot: &Slot) -> Result<(), Refusal> {
        let owner = slot.session().grant().request().who.principal();
        if owner != self.who.principal() {
            return Err(Refusal::Resume("the session is somebody else's"));
        }
        let proved = slot.prove(self.resume, self.peer);
        proved.map_err(|fault| {
            tracing::warn!(session = %slot.session().id(), pipe = slot.pipe(), %fault, "resume refused");
            Refusal::Resume("wrong proof, or an attempt that is over")
        })
    }

    /// That the owner still may, from here.
    fn allow(&self, session: &Session) -> Result<(), Refusal> {
        if self.core.drain.is_cancelled() {
            return Err(Refusal::Draining);
        }
        if let Some(ending) = session.ordered() {
            return Err(Refusal::Ended(ending));
        }
        self.core.evidence.admit()?;
        let sources = [self.peer.source.ip()];
        if let Some(objection) = session.objection(&self.core.rules, Some(&self.who), &sources) {
            return Err(self.end(session, objection));
        }
        let key = self.who.principal().key();
        self.core.limits.may_resume(&key, Instant::now())?;
        Ok(())
    }

    /// What policy no longer allows ends, and does not wait for a better network.
    fn end(&self, session: &Session, message: String) -> Refusal {
        let ending = Ending {
            reason: CloseReason::Policy,
            message: Some(message),
        };
        session.end(ending.clone());
        Refusal::Ended(ending)
    }

    async fn log_refusal(&self, session: &Session, id: SessionId, refusal: &Refusal) {
        let (code, reason) = (refusal.code(), refusal.reason());
        let principal = self.who.principal();
        metrics::counter!("postern_denied_total", "code" => refusal.code_name()).increment(1);
        tracing::warn!(session = %session.id(), principal = %principal.arn, source = %self.peer.source,
            ?code, reason, "resume refused");
        if !self
            .core
            .limits
            .may_log_denial(&principal.key(), Instant::now())
        {
            return;
        }
        let denied = Event {
            session: Some(id),
            actor: Some(self.who.actor()),
            source: Some(self.peer.source.to_string()),
            target: Some(session.target().clone()),
            ..agent_event(Fact::SessionDenied {
                access: session.access().clone(),
                code,
                policies: refusal.policies().to_vec(),
                reason: format!("resume of session {}: {reason}", session.id()),
            })
        };
        if let Err(error) = self.core.evidence.append(denied).await {
            tracing::error!(session = %session.id(), %error, "a denial could not be logged");
        }
    }
}
