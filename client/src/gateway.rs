//! One agent, ready to be asked: certificate, dialling, and what may be done about a denial.
//!
//! A refused certificate is renewed once; a policy that wants a fresh code is answered once; every
//! other no is final. A pipe is handed out only when the evidence that came with it was accepted.

mod error;
mod identity;
mod membership;
mod redial;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use postern_proto::audit::note::Checkpoint;
use postern_proto::gateway::message::{
    Close, Denied, DenyCode, Granted, Open, OpenKind, open_hash,
};
use postern_proto::gateway::resume::Claim;
use postern_proto::names::TargetName;
use tokio::sync::watch;

use crate::config::AgentProfile;
use crate::context::Context;
use crate::error::Error as UserError;
use crate::identity::ClientCertificate;
use crate::pipe::line::Line;
use crate::pipe::outage::{Away, Outages};
use crate::pipe::{self, Answer, Early, PipeError, Wire};
use crate::transport::{Connection, Dialer, TransportError};
use crate::witness::Memory;

pub use error::GatewayError;
pub use identity::Identity;
pub use membership::Membership;

/// What a person asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The target, as typed.
    pub target: TargetName,
    /// What to carry.
    pub kind: OpenKind,
    /// Whether the agent is to end the pipe when the program on it has ended.
    pub once: bool,
}

/// A pipe that runs.
pub struct Opened {
    /// The agent's yes. Its evidence was accepted.
    pub granted: Granted,
    /// The pipe.
    pub wire: Wire<Connection>,
    /// What the evidence in the `Close` is proven against.
    pub seen: Checkpoint,
}

impl Opened {
    /// What further pipes of this session need.
    pub fn membership(&self) -> Membership {
        Membership::of(self)
    }
}

struct Access {
    certificate: ClientCertificate,
    dialer: Dialer,
}

/// One agent with a certificate for it.
pub struct Gateway {
    agent: AgentProfile,
    identity: Arc<dyn Identity>,
    // For renewals on the way, when a terminal may belong to somebody else: asks nobody.
    quiet: Arc<dyn Identity>,
    outages: Outages,
    me: Weak<Self>,
    memory: Memory,
    access: Mutex<Arc<Access>>,
    // Renewals and fresh codes: one at a time, so that nobody is asked twice at once.
    asking: tokio::sync::Semaphore,
}

impl Gateway {
    /// Gets a certificate for the context's first agent. The network is touched only when none is
    /// kept.
    pub async fn of(context: &Context) -> Result<Arc<Self>, UserError> {
        let agent = context.agent()?;
        let quiet = Context {
            may_ask: false,
            mfa_code: None,
            ..context.clone()
        };
        let (identity, quiet) = (Arc::new(context.clone()), Arc::new(quiet));
        Ok(Self::with(agent.clone(), identity, quiet, &context.state).await?)
    }

    /// Gets a certificate from `identity`; newest checkpoints are kept below `state`.
    pub async fn new(
        agent: AgentProfile,
        identity: Arc<dyn Identity>,
        state: &Path,
    ) -> Result<Arc<Self>, GatewayError> {
        let quiet = Arc::clone(&identity);
        Self::with(agent, identity, quiet, state).await
    }

    async fn with(
        agent: AgentProfile,
        identity: Arc<dyn Identity>,
        quiet: Arc<dyn Identity>,
        state: &Path,
    ) -> Result<Arc<Self>, GatewayError> {
        let memory = Memory::new(state, &agent)?;
        let certificate = identity.certified(&agent, None).await?;
        let dialer = Dialer::new(&agent, &certificate)?;
        let access = Mutex::new(Arc::new(Access {
            certificate,
            dialer,
        }));
        Ok(Arc::new_cyclic(|me| Self {
            agent,
            identity,
            quiet,
            outages: Outages::new(),
            me: Weak::clone(me),
            memory,
            access,
            asking: tokio::sync::Semaphore::new(1),
        }))
    }

    /// Tells whether pipes of this agent lost their network.
    pub fn away(&self) -> watch::Receiver<Away> {
        self.outages.watch()
    }

    /// Whether no pipe of this agent lost its connection since `then`.
    pub(crate) fn unbroken_since(&self, then: Instant) -> bool {
        self.outages.none_since(then)
    }

    /// The pinned agent.
    pub fn agent(&self) -> &AgentProfile {
        &self.agent
    }

    /// Opens a session. `early` goes out with the request.
    pub async fn open(
        &self,
        request: &Request,
        early: &mut Early<'_>,
    ) -> Result<Opened, GatewayError> {
        self.open_pipe(request, None, early, None).await
    }

    /// Opens a further pipe of a session, on a connection that is ready or a new one.
    pub async fn join(
        &self,
        request: &Request,
        session: &Membership,
        early: &mut Early<'_>,
        spare: Option<Connection>,
    ) -> Result<Opened, GatewayError> {
        self.open_pipe(request, Some(session), early, spare).await
    }

    /// A connection that may become a pipe within 5 minutes.
    pub async fn spare(&self) -> Result<Connection, TransportError> {
        self.current().dialer.pipe().await
    }

    /// A connection for HTTP requests; a refused certificate shows on its first use.
    pub async fn http(&self) -> Result<Connection, GatewayError> {
        Ok(self.current().dialer.http().await?)
    }

    /// Accepts the evidence in the `Close` of a pipe that was granted with `seen`.
    pub fn check_close(&self, close: &Close, seen: &Checkpoint) -> Result<(), GatewayError> {
        if let Some(evidence) = &close.evidence {
            self.memory.accept(evidence, Some(seen))?;
        }
        Ok(())
    }

    async fn open_pipe(
        &self,
        request: &Request,
        session: Option<&Membership>,
        early: &mut Early<'_>,
        mut spare: Option<Connection>,
    ) -> Result<Opened, GatewayError> {
        let mut open = Open {
            target: request.target.clone(),
            kind: request.kind.clone(),
            join: None,
            approved: None,
            known_size: None,
            once: request.once,
            client: concat!("postern ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let (mut renewed, mut fresh) = (false, false);
        loop {
            let access = self.current();
            let known = self.memory.newest()?;
            open.known_size = known.as_ref().map(|known| known.size);
            let was_spare = spare.is_some();
            let connection = match spare.take() {
                Some(connection) => Ok(connection),
                None => access.dialer.pipe().await,
            };
            let answer = match connection {
                Ok(connection) => {
                    self.ask(&access, connection, &mut open, session, early)
                        .await
                }
                Err(error) => Err(error.into()),
            };
            match answer {
                Ok(Answer::Granted(granted, wire)) => {
                    if session.is_some_and(|session| session.id() != granted.session) {
                        return Err(self.contradiction("the pipe is of another session"));
                    }
                    return self.accept(*granted, wire, known.as_ref(), request, session);
                }
                Ok(Answer::Denied(denied)) => match denied.code {
                    DenyCode::Certificate if !renewed => {
                        renewed = true;
                        self.renew(&access).await?;
                    }
                    DenyCode::StepUp if !fresh => {
                        fresh = true;
                        self.step_up(&access, &denied, &mut open).await?;
                    }
                    _ => return Err(GatewayError::Denied(denied)),
                },
                // A spare may have died since it was last heard of.
                Err(GatewayError::Transport(_) | GatewayError::Pipe(PipeError::Lost(_)))
                    if was_spare => {}
                Err(GatewayError::Transport(error))
                    if error.wants_new_certificate() && !renewed =>
                {
                    renewed = true;
                    self.renew(&access).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask(
        &self,
        access: &Access,
        connection: Connection,
        open: &mut Open,
        session: Option<&Membership>,
        early: &mut Early<'_>,
    ) -> Result<Answer<Connection>, GatewayError> {
        open.join =
            match session {
                Some(session) => {
                    let proof = session.prove(&connection);
                    Some(proof.ok_or_else(|| {
                        self.contradiction("the session's secret is not 32 bytes")
                    })?)
                }
                None => None,
            };
        pipe::open(connection, open, early)
            .await
            .map_err(|error| match error {
                // With TLS 1.3 a refused certificate shows here.
                PipeError::Lost(error)
                    if error
                        .get_ref()
                        .is_some_and(|inner| inner.is::<rustls::Error>()) =>
                {
                    access.dialer.explain(&error).into()
                }
                other => other.into(),
            })
    }

    fn accept(
        &self,
        granted: Granted,
        mut wire: Wire<Connection>,
        known: Option<&Checkpoint>,
        request: &Request,
        session: Option<&Membership>,
    ) -> Result<Opened, GatewayError> {
        if matches!(request.kind, OpenKind::Ssh { .. }) && granted.ssh_host_ca.is_none() {
            return Err(self.contradiction("an SSH session without a host CA"));
        }
        let seen = match session {
            // A further pipe rests on the event of its session's grant, which was accepted.
            Some(session) if session.rests_on(&granted.evidence) => session.seen().clone(),
            _ => self.memory.accept(&granted.evidence, known)?,
        };
        if let Some(line) = self.line(&granted) {
            wire.set_line(line);
        }
        Ok(Opened {
            granted,
            wire,
            seen,
        })
    }

    /// How the pipe gets its next connection; `None` when the agent keeps none without.
    fn line(&self, granted: &Granted) -> Option<Line<Connection>> {
        let (redial, secret) = (self.me.upgrade()?, granted.secret.bytes()?);
        let claim = Claim::new(&secret, granted.session, granted.pipe);
        let detach = Duration::from_secs(granted.detach);
        (!detach.is_zero()).then(|| Line::new(redial, claim, detach, self.outages.clone()))
    }

    fn contradiction(&self, what: &'static str) -> GatewayError {
        GatewayError::Contradiction {
            agent: self.agent.id.to_string(),
            what,
        }
    }

    async fn step_up(
        &self,
        access: &Access,
        denied: &Denied,
        open: &mut Open,
    ) -> Result<(), GatewayError> {
        // The approval must be for what we asked, not for what somebody would like approved.
        if denied.open_hash.as_deref() != Some(hex::encode(open_hash(open)).as_str()) {
            return Err(self.contradiction("it wants a fresh code for another request"));
        }
        let _turn = self.asking.acquire().await;
        self.identity
            .step_up(&self.agent, &access.certificate, denied)
            .await?;
        open.approved = denied.session;
        Ok(())
    }

    /// Replaces a certificate that HTTP refused.
    pub(crate) async fn renew_current(&self) -> Result<(), GatewayError> {
        self.renew(&self.current()).await
    }

    async fn renew(&self, refused: &Arc<Access>) -> Result<(), GatewayError> {
        self.renew_by(&*self.identity, refused).await
    }

    async fn renew_by(
        &self,
        identity: &dyn Identity,
        refused: &Arc<Access>,
    ) -> Result<(), GatewayError> {
        let _turn = self.asking.acquire().await;
        if !Arc::ptr_eq(refused, &self.current()) {
            return Ok(()); // another pipe renewed it meanwhile
        }
        let certificate = identity
            .certified(&self.agent, Some(&refused.certificate))
            .await?;
        let dialer = Dialer::new(&self.agent, &certificate)?;
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Access {
            certificate,
            dialer,
        });
        Ok(())
    }

    fn current(&self) -> Arc<Access> {
        Arc::clone(&self.access.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
