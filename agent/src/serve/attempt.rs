//! One `Open` on its way to a yes or no.

use std::sync::Arc;

use postern_proto::audit::event::{Access, Actor, Event, EventTarget, Fact};
use postern_proto::gateway::message::{
    Granted, GrantedTarget, HexSecret, Join, Open, OpenKind, Witness,
};
use postern_proto::names::{Assurance, SessionId};
use time::OffsetDateTime;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Ready;
use super::reach::{Far, Reached};
use crate::assemble::Core;
use crate::doors::Fresh;
use crate::end::End;
use crate::evidence::{EvidenceError, RecordingKind, agent_event};
use crate::identity::VerifiedPrincipal;
use crate::inventory::Target;
use crate::policy::{Decision, Request};
use crate::refusal::Refusal;
use crate::session::{Beginning, Peer, PipePlace, Session};

/// One `Open` on its way to a yes or no.
pub(super) struct Attempt<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) peer: &'a Peer,
    pub(super) open: &'a Open,
    pub(super) who: VerifiedPrincipal,
    pub(super) target: Option<Arc<Target>>,
    pub(super) fresh: Option<Fresh>,
    /// The session's id; with a step-up, the one that the denial named.
    pub(super) id: SessionId,
}

impl Attempt<'_> {
    pub(super) async fn run(&mut self) -> Result<Ready, Refusal> {
        if self.core.drain.is_cancelled() {
            return Err(Refusal::Draining);
        }
        self.core.evidence.admit()?;
        (self.core.rules.admit)(&self.who, self.peer.source.ip())?;
        let target = self.find()?;
        self.target = Some(Arc::clone(&target));
        self.refuse_ssh_port()?;
        match &self.open.join {
            Some(join) => self.join(join, target).await,
            None => self.begin(target).await,
        }
    }

    /// A new session.
    async fn begin(&mut self, target: Arc<Target>) -> Result<Ready, Refusal> {
        let grant = self.decide(&target)?;
        let place = self.core.limits.session(&self.who.principal().key())?;
        let reached = self.reach(&target, grant.request()).await?;
        let event_target = EventTarget {
            id: target.id.clone(),
            name: target.name.clone(),
            address: Some(reached.address.to_string()),
        };
        let ends_at = grant.request().now + self.core.lifetimes.grant;
        let granted = Fact::SessionGranted {
            access: access(&self.open.kind),
            policies: grant.policies().to_vec(),
            ends_at: ends_at.unix_timestamp(),
            host_key: reached.far.host_key(),
            step_up: self.fresh.is_some(),
        };
        // Nothing is granted that is not written down.
        let event = self.event(Some(event_target.clone()), granted);
        let witness = self.core.evidence.append(event).await?;
        let secret = random_secret();
        let session = Session::new(Beginning {
            id: self.id,
            grant,
            actor: self.actor(),
            access: access(&self.open.kind),
            target: event_target,
            source: self.peer.source,
            ends_at,
            evidence: self.core.evidence.clone(),
            rules: self.core.rules.clone(),
            witness: witness.clone(),
            secret: secret.clone(),
            place: Some(place),
        });
        self.core.sessions.insert(Arc::clone(&session));
        self.ready(session, Some(witness), reached, secret).await
    }

    /// A further pipe of an open session. Policy decides again, with the new source address;
    /// what the session's MFA act proved still counts.
    async fn join(&mut self, join: &Join, target: Arc<Target>) -> Result<Ready, Refusal> {
        let session = self
            .core
            .sessions
            .get(join.session)
            .ok_or(Refusal::Join("no such session"))?;
        let granted = session.grant().request();
        if granted.who.principal() != self.who.principal() {
            return Err(Refusal::Join("the session is somebody else's"));
        }
        if !session.is_joined_by(join, self.peer) {
            return Err(Refusal::Join("wrong proof"));
        }
        self.id = session.id();
        let same_target = granted.target.as_ref().is_some_and(|t| t.id == target.id);
        if !same_target || *session.access() != access(&self.open.kind) {
            return Err(Refusal::Protocol(
                "a further pipe must ask for what its session was granted".to_owned(),
            ));
        }
        if session.ordered().is_some() {
            return Err(Refusal::Join("the session is ending"));
        }
        let again = session.grant().again(
            OffsetDateTime::now_utc(),
            self.peer.source.ip(),
            Some(Arc::clone(&target)),
        );
        let again = Request {
            who: self.who.clone(),
            ..again
        };
        match (self.core.rules.decide)(&again) {
            Decision::Allow(_) => {}
            Decision::StepUp { policies } => return Err(self.step_up(policies)),
            Decision::Deny(denial) => return Err(denial.into()),
        }
        let reached = self.reach(&target, &again).await?;
        // The session's own secret never travels again; this one resumes this pipe alone.
        self.ready(session, None, reached, random_secret()).await
    }

    /// Takes a place in the session and begins the pipe's recording. What fails from here on
    /// ends the session: it is granted already.
    async fn ready(
        &self,
        session: Arc<Session>,
        witness: Option<Witness>,
        reached: Reached,
        secret: Zeroizing<[u8; 32]>,
    ) -> Result<Ready, Refusal> {
        let place = PipePlace::take(&session, self.peer.source)?;
        let host_key = reached.far.host_key();
        let prepared = async {
            let recording = async {
                match &reached.far {
                    Far::Ssh(_) => Ok(None),
                    Far::Tunnel(_) => {
                        let destination = reached.address.to_string();
                        let kind = RecordingKind::Flow { destination };
                        session.begin_recording(kind).await.map(Some)
                    }
                }
            };
            // Both to their ends: a recording that began is in the log.
            let (witness, recording) = tokio::join!(self.witness(&session, witness), recording);
            Ok((witness?, recording?))
        };
        let (witness, recording) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                session.end_for(&error);
                let end = session.ordered().map_or(End::Done, End::Ordered);
                place
                    .leave(&self.core.sessions, &self.core.lifetimes, &end)
                    .await;
                return Err(error.into());
            }
        };
        let granted = Granted {
            session: session.id(),
            pipe: place.number(),
            secret: HexSecret::new(&secret),
            detach: self.core.lifetimes.detach.as_secs(),
            ends_at: session.ends_at().unix_timestamp(),
            target: GrantedTarget {
                id: session.target().id.clone(),
                name: session.target().name.clone(),
                address: reached.address.to_string(),
                host_key: host_key.clone(),
            },
            policies: session.grant().policies().to_vec(),
            assurance: session.grant().request().assurance,
            ssh_host_ca: host_key.and_then(|_| self.core.doors.ssh_host_ca.clone()),
            recorded: true,
            evidence: witness,
        };
        Ok(Ready {
            session,
            place,
            far: reached.far,
            recording,
            granted,
            secret,
        })
    }

    /// The proof for the client that the session's event is in the log, and that the log still
    /// begins with what the client knows of it.
    async fn witness(
        &self,
        session: &Session,
        fresh: Option<Witness>,
    ) -> Result<Witness, EvidenceError> {
        let evidence = &self.core.evidence;
        let mut witness = match fresh {
            Some(witness) => witness,
            // The client may know a newer state than that of the session's first pipe.
            None => session.witness().await?,
        };
        if let Some(known) = self.open.known_size {
            evidence.prove_growth(&mut witness, known).await?;
        }
        Ok(witness)
    }

    fn actor(&self) -> Actor {
        let mut actor = self.who.actor();
        if let Some(fresh) = &self.fresh {
            // The proof of this very act stands in the event that it made possible.
            actor.assurance = Assurance::AwsMfaFresh;
            actor.mfa_not_before = fresh.given_at;
            actor.aws_request_ids.clone_from(&fresh.aws_request_ids);
        }
        actor
    }

    fn event(&self, target: Option<EventTarget>, fact: Fact) -> Event {
        Event {
            session: Some(self.id),
            actor: Some(self.actor()),
            source: Some(self.peer.source.to_string()),
            target,
            ..agent_event(fact)
        }
    }

    /// A refusal is an event, unless this principal has had too many.
    pub(super) async fn log_refusal(&self, refusal: &Refusal) {
        let code = refusal.code();
        let reason = refusal.reason();
        let principal = self.who.principal();
        metrics::counter!("postern_denied_total", "code" => refusal.code_name()).increment(1);
        if refusal.level() == tracing::Level::INFO {
            tracing::info!(session = %self.id, principal = %principal.arn, ?code, reason, "denied");
        } else {
            tracing::warn!(session = %self.id, principal = %principal.arn, ?code, reason, "denied");
        }
        if !self
            .core
            .limits
            .may_log_denial(&principal.key(), Instant::now())
        {
            return;
        }
        let target = self.target.as_ref().map(|target| EventTarget {
            id: target.id.clone(),
            name: target.name.clone(),
            address: None,
        });
        let denied = Fact::SessionDenied {
            access: access(&self.open.kind),
            code,
            policies: refusal.policies().to_vec(),
            reason,
        };
        if let Err(error) = self.core.evidence.append(self.event(target, denied)).await {
            tracing::error!(session = %self.id, %error, "a denial could not be logged");
        }
    }
}

fn access(kind: &OpenKind) -> Access {
    match kind {
        OpenKind::Ssh { user } => Access::Ssh { user: user.clone() },
        OpenKind::Tunnel { host, port } => Access::Tunnel {
            host: host.as_ref().map(|host| host.as_str().to_owned()),
            port: *port,
        },
    }
}

fn random_secret() -> Zeroizing<[u8; 32]> {
    Zeroizing::new(rand::random())
}
