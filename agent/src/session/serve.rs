//! One pipe's life as a plain sequence.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_proto::audit::event::{Access, Actor, Event, EventTarget, Fact};
use postern_proto::gateway::message::{
    CloseReason, DenyCode, Granted, GrantedTarget, HexSecret, HostKeySeen, Join, Open, OpenKind,
    Witness, join_proof, open_hash,
};
use postern_proto::names::{Assurance, HostName, SessionId};
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{Beginning, Ending, Lifeline, PipeNumber, Session, resume, unix_ms};
use crate::assemble::{Core, Fresh, Lifetimes, Login, NotFound, SshTarget};
use crate::ca::ssh::SshExtension;
use crate::end::{End, Refusal};
use crate::evidence::{EvidenceError, Recording, RecordingKind};
use crate::identity::VerifiedPrincipal;
use crate::inventory::Target;
use crate::limits::Place;
use crate::pipe::{Asked, OpenError, Opening};
use crate::policy::{Action, Decision, Grant, Request};
use crate::tls::Connection;
use crate::{shell, tunnel};

/// Bytes kept per pipe for a peer that has not acknowledged them.
const CEILING: usize = 32 * 1024 * 1024;

/// Who is at the other end of a connection.
pub(crate) struct Peer {
    /// Kept to be checked again.
    pub(crate) certificate: CertificateDer<'static>,
    /// TLS exporter for [`join_proof`].
    pub(crate) exporter: [u8; 32],
    pub(crate) source: SocketAddr,
}

/// What a granted pipe is connected to.
enum Far {
    Tunnel(TcpStream),
    Ssh(SshTarget),
}

impl Far {
    fn host_key(&self) -> Option<HostKeySeen> {
        match self {
            Self::Tunnel(_) => None,
            Self::Ssh(target) => Some(target.host_key.clone()),
        }
    }
}

/// A target that was dialled and, for `ssh`, lets us in.
struct Reached {
    far: Far,
    /// The address that was checked and dialled.
    address: SocketAddr,
}

/// A request that may be answered with yes.
struct Ready {
    session: Arc<Session>,
    place: PipePlace,
    far: Far,
    /// Of a tunnel's flow; SSH channels begin their own.
    recording: Option<Recording>,
    granted: Granted,
    /// The one in `granted`.
    secret: Zeroizing<[u8; 32]>,
}

/// Serves one authenticated connection: to the end of the pipe that it opens, or until another
/// pipe's task has it.
pub(crate) async fn serve(core: &Arc<Core>, peer: Peer, place: Place, stream: Connection) {
    let mut opening = Opening::new(stream, core.patience.clone());
    let asked = tokio::select! {
        asked = opening.asked() => asked,
        // A spare connection holds nothing that a drain should wait for.
        () = core.drain.cancelled() => Err(OpenError::Left),
    };
    let id = fresh_id();
    let open = match asked {
        Ok(Asked::Open(open)) => open,
        Ok(Asked::Resume(resume)) => {
            return resume::resume(core, &peer, place, opening, &resume, id).await;
        }
        Err(error @ (OpenError::Left | OpenError::Late)) => {
            tracing::debug!(source = %peer.source, %error, "no request");
            return;
        }
        Err(error) => {
            tracing::warn!(source = %peer.source, session = %id, %error, "no request");
            let refusal = Refusal::Protocol(error.to_string());
            return opening.deny(&refusal.denied(id)).await;
        }
    };
    match prepare(core, &peer, &open, id).await {
        Ok(ready) => ready.run(core, place, opening).await,
        Err(refusal) => opening.deny(&refusal.denied(id)).await,
    }
}

impl Ready {
    /// Says yes, relays, and says how it ended.
    async fn run(self, core: &Core, place: Place, opening: Opening<Connection>) {
        let session = &self.session;
        let principal = session.grant.request().who.principal();
        let budget = core.limits.kept(&principal.key());
        tracing::info!(session = %session.id, pipe = self.granted.pipe, principal = %principal.arn,
            target = %session.target.name, address = self.granted.target.address, "granted");
        let mut lifeline = Lifeline::new(core, session, self.place.number, &self.secret, place);
        let (driver, end) = match opening.grant(&self.granted, CEILING, budget).await {
            Err(error) => (None, End::Pipe(error)),
            Ok(driver) => {
                let (driver, end) = match (self.far, &self.recording) {
                    (Far::Tunnel(stream), Some(recording)) => {
                        tunnel::run(driver, stream, session, recording, &mut lifeline).await
                    }
                    (Far::Ssh(target), _) => {
                        shell::run(driver, target, session, &mut lifeline).await
                    }
                    (Far::Tunnel(_), None) => (
                        driver,
                        End::Internal("a tunnel without a recording".to_owned()),
                    ),
                };
                (Some(driver), end)
            }
        };
        if let Some(recording) = &self.recording {
            close_recording(session, recording).await;
        }
        let mut witness = self.place.leave(core, &end).await;
        if let Some(closing) = &mut witness {
            let known = log_size(&self.granted.evidence);
            if core.evidence.prove_growth(closing, known).await.is_err() {
                // Without its proof the client could only refuse it.
                witness = None;
            }
        }
        if let Some(driver) = driver {
            lifeline.close(driver, &end, witness, core).await;
        }
    }
}

/// The size of the log that a checkpoint states: its second line (C2SP tlog-checkpoint).
fn log_size(witness: &Witness) -> u64 {
    let size = witness.checkpoint.lines().nth(1);
    size.and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Everything before yes. A refusal has been logged.
async fn prepare(
    core: &Arc<Core>,
    peer: &Peer,
    open: &Open,
    id: SessionId,
) -> Result<Ready, Refusal> {
    let who = match (core.rules.verify)(&peer.certificate) {
        Ok(who) => who,
        Err(fault) => {
            // Without a valid certificate there is no principal to log.
            core.strangers.note(peer.source.ip(), "certificate");
            return Err(Refusal::Certificate(fault));
        }
    };
    let mut attempt = Attempt {
        core,
        peer,
        open,
        who,
        target: None,
        fresh: None,
        id,
    };
    let refusal = match attempt.run().await {
        Ok(ready) => return Ok(ready),
        Err(refusal) => refusal,
    };
    attempt.log_refusal(&refusal).await;
    Err(refusal)
}

/// One `Open` on its way to a yes or no.
struct Attempt<'a> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    open: &'a Open,
    who: VerifiedPrincipal,
    target: Option<Arc<Target>>,
    fresh: Option<Fresh>,
    /// The session's id; with a step-up, the one that the denial named.
    id: SessionId,
}

impl Attempt<'_> {
    async fn run(&mut self) -> Result<Ready, Refusal> {
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
            secret: random_secret(),
            place: Some(place),
        });
        self.core.sessions.insert(Arc::clone(&session));
        let secret = session.secret.clone();
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
        let granted = session.grant.request();
        if granted.who.principal() != self.who.principal() {
            return Err(Refusal::Join("the session is somebody else's"));
        }
        let proof = join_proof(&session.secret, &self.peer.exporter, session.id);
        if !bool::from(proof.as_bytes().ct_eq(join.proof.as_bytes())) {
            return Err(Refusal::Join("wrong proof"));
        }
        self.id = session.id;
        let same_target = granted.target.as_ref().is_some_and(|t| t.id == target.id);
        if !same_target || session.access != access(&self.open.kind) {
            return Err(Refusal::Protocol(
                "a further pipe must ask for what its session was granted".to_owned(),
            ));
        }
        if session.ending.borrow().is_some() {
            return Err(Refusal::Join("the session is ending"));
        }
        let again = session.grant.again(
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
            let witness = self.witness(&session, witness).await?;
            let recording = match &reached.far {
                Far::Ssh(_) => None,
                Far::Tunnel(_) => {
                    let destination = reached.address.to_string();
                    let kind = RecordingKind::Flow { destination };
                    Some(session.begin_recording(kind).await?)
                }
            };
            Ok((witness, recording))
        };
        let (witness, recording) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                session.end_for(&error);
                let ending = session.ending.borrow().clone();
                let end = ending.map_or(End::Done, End::Ordered);
                place.leave(self.core, &end).await;
                return Err(error.into());
            }
        };
        let granted = Granted {
            session: session.id,
            pipe: place.number,
            secret: HexSecret::new(&secret),
            detach: self.core.lifetimes.detach.as_secs(),
            ends_at: session.ends_at.unix_timestamp(),
            target: GrantedTarget {
                id: session.target.id.clone(),
                name: session.target.name.clone(),
                address: reached.address.to_string(),
                host_key: host_key.clone(),
            },
            policies: session.grant.policies().to_vec(),
            assurance: session.grant.request().assurance,
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
            None => evidence.renew(&session.witness).await?,
        };
        if let Some(known) = self.open.known_size {
            evidence.prove_growth(&mut witness, known).await?;
        }
        Ok(witness)
    }

    fn find(&self) -> Result<Arc<Target>, Refusal> {
        let name = &self.open.target;
        (self.core.rules.lookup)(name).map_err(|fault| match fault {
            NotFound::Unknown { hint } => Refusal::UnknownTarget {
                name: name.clone(),
                hint,
            },
            NotFound::Ambiguous(candidates) => Refusal::Ambiguous {
                name: name.clone(),
                candidates,
            },
        })
    }

    fn refuse_ssh_port(&self) -> Result<(), Refusal> {
        match &self.open.kind {
            OpenKind::Tunnel { port: 0, .. } => {
                Err(Refusal::Protocol("there is no port 0".to_owned()))
            }
            OpenKind::Tunnel { port, .. } if self.core.rules.carries_ssh(*port) => {
                Err(Refusal::SshPort(*port))
            }
            _ => Ok(()),
        }
    }

    fn decide(&mut self, target: &Arc<Target>) -> Result<Grant, Refusal> {
        let hash = open_hash(self.open);
        if let Some(session) = self.open.approved
            && self
                .core
                .step_ups
                .take(session, self.who.key_hash(), &hash, Instant::now())
            && let Some(fresh) = (self.core.doors.approval)(&self.who, &hash, session)
        {
            self.fresh = Some(fresh);
            self.id = session;
        }
        let (assurance, mfa_not_before) = match &self.fresh {
            Some(fresh) => (Assurance::AwsMfaFresh, fresh.given_at),
            None => (self.who.assurance(), self.who.mfa_not_before()),
        };
        let (action, user, port, host) = match &self.open.kind {
            OpenKind::Ssh { user } => (Action::Connect, Some(user.clone()), None, None),
            OpenKind::Tunnel { host, port } => {
                let host = host.as_ref().map(|host| host.as_str().to_owned());
                (Action::Tunnel, None, Some(*port), host)
            }
        };
        let request = Request {
            who: self.who.clone(),
            action,
            target: Some(Arc::clone(target)),
            source: self.peer.source.ip(),
            user,
            port,
            host,
            assurance,
            mfa_not_before,
            now: OffsetDateTime::now_utc(),
        };
        match (self.core.rules.decide)(&request) {
            Decision::Allow(grant) => Ok(grant),
            Decision::StepUp { policies } => Err(self.step_up(policies)),
            Decision::Deny(denial) => Err(denial.into()),
        }
    }

    fn step_up(&self, policies: Vec<String>) -> Refusal {
        let hash = open_hash(self.open);
        self.core
            .step_ups
            .wait(self.id, *self.who.key_hash(), hash, Instant::now());
        Refusal::StepUp {
            policies,
            open_hash: hex::encode(hash),
        }
    }

    /// Dials, and for `ssh` logs in at the target over the connection, for what was `allowed`.
    async fn reach(&self, target: &Arc<Target>, allowed: &Request) -> Result<Reached, Refusal> {
        let (host, port): (Option<HostName>, u16) = match &self.open.kind {
            OpenKind::Ssh { .. } => (None, target.ssh_port),
            OpenKind::Tunnel { host, port } => (host.clone(), *port),
        };
        let dialled = (self.core.doors.dial)(Arc::clone(target), host, port).await?;
        if let Err(error) = dialled.stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let far = match &self.open.kind {
            OpenKind::Tunnel { .. } => Far::Tunnel(dialled.stream),
            OpenKind::Ssh { user } => {
                let login = Login {
                    session: self.id,
                    who: self.who.clone(),
                    target: Arc::clone(target),
                    user: user.clone(),
                    extensions: self.extensions(allowed),
                };
                Far::Ssh((self.core.doors.ssh)(dialled.stream, login).await?)
            }
        };
        Ok(Reached {
            far,
            address: dialled.address,
        })
    }

    /// What the target may be told to permit in a session that was `allowed`. Each channel is
    /// decided again when it opens; what policy would refuse on every port, the target refuses too.
    fn extensions(&self, allowed: &Request) -> Vec<SshExtension> {
        let possible = |action| {
            (self.core.rules.possible)(&Request {
                action,
                ..allowed.clone()
            })
        };
        let mut extensions = vec![SshExtension::Pty];
        if possible(Action::Tunnel) || possible(Action::Reverse) {
            extensions.push(SshExtension::PortForwarding);
        }
        if possible(Action::ForwardAgent) {
            extensions.push(SshExtension::AgentForwarding);
        }
        extensions
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
            time_ms: unix_ms(OffsetDateTime::now_utc()),
            session: Some(self.id),
            actor: Some(self.actor()),
            source: Some(self.peer.source.to_string()),
            target,
            fact,
        }
    }

    async fn log_refusal(&self, refusal: &Refusal) {
        let code = refusal.code();
        let reason = refusal.reason();
        let principal = self.who.principal();
        metrics::counter!("postern_denied_total", "code" => code_name(code)).increment(1);
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

/// A pipe's place in its session. Dropped without [`PipePlace::leave`] (a task that was
/// cancelled), the keeper closes the session.
struct PipePlace {
    session: Arc<Session>,
    number: PipeNumber,
}

impl PipePlace {
    fn take(session: &Arc<Session>, source: SocketAddr) -> Result<Self, Refusal> {
        let number = session
            .state
            .add_pipe(source.ip())
            .ok_or(Refusal::Join("the session is over or has too many pipes"))?;
        Ok(Self {
            session: Arc::clone(session),
            number,
        })
    }

    /// The pipe is over. Closes the session when it was the last and nothing may follow it.
    async fn leave(self, core: &Core, end: &End) -> Option<Witness> {
        if matches!(end, End::Ssh) {
            // A tunnel that was used for what it must not carry is over as a whole.
            self.session.end(Ending {
                reason: end.reason(),
                message: end.message(),
            });
        }
        let last = self.session.state.remove_pipe(self.number);
        let over = match end {
            End::Ordered(_) | End::Ssh => true,
            // One connection of a forward given up does not cost the person another code.
            End::Client(close) if close.reason == CloseReason::Client => {
                self.session.grant.request().assurance != Assurance::AwsMfaFresh
            }
            _ => false,
        };
        let over = over || self.session.linger(&core.lifetimes).is_zero();
        if last && over {
            core.sessions.close(&self.session, end).await
        } else {
            None
        }
    }
}

impl Drop for PipePlace {
    fn drop(&mut self) {
        self.session.state.remove_pipe(self.number);
    }
}

impl Session {
    /// How long the session may be without a pipe. An SSH session is over with its pipe; a tunnel
    /// waits for the next connection that `forward` accepts.
    pub(crate) fn linger(&self, lifetimes: &Lifetimes) -> std::time::Duration {
        match self.access {
            Access::Ssh { .. } | Access::Shell => std::time::Duration::ZERO,
            Access::Tunnel { .. } if self.grant.request().assurance == Assurance::AwsMfaFresh => {
                lifetimes.detach
            }
            Access::Tunnel { .. } => lifetimes.linger,
        }
    }
}

async fn close_recording(session: &Session, recording: &Recording) {
    if let Err(error) = session.close_recording(recording).await {
        tracing::error!(session = %session.id, %error, "a recording could not be closed");
        session.end_for(&error);
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

fn fresh_id() -> SessionId {
    let now = unix_ms(OffsetDateTime::now_utc());
    SessionId::of_agent(u64::try_from(now).unwrap_or(0), rand::random())
}

fn random_secret() -> Zeroizing<[u8; 32]> {
    Zeroizing::new(rand::random())
}

pub(super) fn code_name(code: DenyCode) -> &'static str {
    match code {
        DenyCode::Policy => "policy",
        DenyCode::StepUp => "step_up",
        DenyCode::Certificate => "certificate",
        DenyCode::UnknownTarget => "unknown_target",
        DenyCode::Ambiguous => "ambiguous",
        DenyCode::ForbiddenAddress => "forbidden_address",
        DenyCode::TargetUnreachable => "target_unreachable",
        DenyCode::HostKeyChanged => "host_key_changed",
        DenyCode::TargetLogin => "target_login",
        DenyCode::Evidence => "evidence",
        DenyCode::Limit => "limit",
        DenyCode::Draining => "draining",
        DenyCode::Protocol => "protocol",
        DenyCode::Internal => "internal",
    }
}
