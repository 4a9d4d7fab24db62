//! Puts the parts together: what the core asks of each, and which one answers.
//!
//! The core (server, pipes, sessions, tunnels, HTTP) knows the other parts by the questions in
//! [`Rules`] and [`Doors`] alone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postern_proto::gateway::message::{DenyCode, HostKeySeen};
use postern_proto::names::{HostName, LoginUser, SessionId, TargetId, TargetName};
use rustls::pki_types::CertificateDer;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ca::ssh::SshExtension;
use crate::evidence::Evidence;
use crate::identity::{EnrollEnd, VerifiedPrincipal};
use crate::inventory::Target;
use crate::limits::Limits;
use crate::pipe::Patience;
use crate::policy::{Decision, Denial, Explanation, Request};
use crate::session::{Registry, Resumable, Session, StepUps};
use crate::socket::Socket;
use crate::ssh::SshEnd;
use crate::strangers::Strangers;
use crate::tls::BoundedInput;

type Ask<Question, Answer> = Arc<dyn Fn(&Question) -> Answer + Send + Sync>;

/// The questions that are answered from memory.
#[derive(Clone)]
pub(crate) struct Rules {
    /// Whose certificate it is, checked now.
    pub(crate) verify: Ask<CertificateDer<'static>, Result<VerifiedPrincipal, NotVerified>>,
    /// Whether policy bars the principal or the certificate altogether.
    pub(crate) admit: Arc<dyn Fn(&VerifiedPrincipal, IpAddr) -> Result<(), Denial> + Send + Sync>,
    /// Policy's answer now.
    pub(crate) decide: Ask<Request, Decision>,
    /// Whether policy could allow it now, on some port and host.
    pub(crate) possible: Ask<Request, bool>,
    /// The target that a person means.
    pub(crate) lookup: Ask<TargetName, Result<Arc<Target>, NotFound>>,
    /// A target as it is now.
    pub(crate) target: Ask<TargetId, Option<Arc<Target>>>,
    /// Whether sshd listens there, on any target of the inventory.
    pub(crate) is_ssh_port: Arc<dyn Fn(u16) -> bool + Send + Sync>,
    /// Targets that all filters leave, sorted by name.
    pub(crate) list: Ask<[String], Vec<Arc<Target>>>,
    /// Why the inventory may be old.
    pub(crate) inventory_trouble: Arc<dyn Fn() -> Option<Arc<str>> + Send + Sync>,
    /// Policy's answer with its reasons.
    pub(crate) explain: Ask<Request, Explanation>,
    /// Login users that policies name and allow.
    pub(crate) login_users: Ask<Request, Vec<String>>,
    /// Counts up when policy or inventory changed.
    pub(crate) changes: watch::Receiver<u64>,
}

impl Rules {
    /// Whether a tunnel to this port would carry SSH past its recording.
    pub(crate) fn carries_ssh(&self, port: u16) -> bool {
        port == 22 || (self.is_ssh_port)(port)
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

/// A certificate opens nothing here.
#[derive(Debug, Clone)]
pub(crate) struct NotVerified {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// A name is not one target.
#[derive(Debug, Clone)]
pub(crate) enum NotFound {
    Unknown {
        /// What to do about it.
        hint: String,
    },
    /// `id name address` of each.
    Ambiguous(Vec<String>),
}

/// A fresh MFA act for one `Open`.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    /// Seconds since 1970 when the code was given.
    pub(crate) given_at: i64,
    /// Ids of the STS requests that attested it.
    pub(crate) aws_request_ids: Vec<String>,
}

/// Uses up an approval: who, hash of the `Open`, the session that the denial named.
pub(crate) type TakeApproval =
    Arc<dyn Fn(&VerifiedPrincipal, &[u8; 32], SessionId) -> Option<Fresh> + Send + Sync>;

/// A target that answered.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    /// The address that was checked and dialled.
    pub(crate) address: SocketAddr,
}

/// A target that did not, or that does not let us in.
#[derive(Debug, Clone)]
pub(crate) struct NotReached {
    pub(crate) code: DenyCode,
    /// For the person.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

/// Dials a target, or a host behind it, at a port. Checks every address and keeps a deadline.
pub(crate) type Dial = Arc<
    dyn Fn(Arc<Target>, Option<HostName>, u16) -> BoxFuture<'static, Result<Dialled, NotReached>>
        + Send
        + Sync,
>;

/// What logging in to a target needs.
pub(crate) struct Login {
    pub(crate) session: SessionId,
    pub(crate) who: VerifiedPrincipal,
    pub(crate) target: Arc<Target>,
    pub(crate) user: LoginUser,
    /// What the target is told to permit.
    pub(crate) extensions: Vec<SshExtension>,
}

/// A target's sshd that let us in.
pub(crate) struct SshTarget {
    pub(crate) host_key: HostKeySeen,
    /// Serves the client's SSH from the stream; ends with it.
    pub(crate) serve:
        Box<dyn FnOnce(DuplexStream, Arc<Session>) -> BoxFuture<'static, SshEnd> + Send + Sync>,
}

/// Logs in over a connection to a target.
pub(crate) type SshLogin = Arc<
    dyn Fn(TcpStream, Login) -> BoxFuture<'static, Result<SshTarget, NotReached>> + Send + Sync,
>;

/// Tells what a part suffers from, without a name of a principal or target.
pub(crate) type Trouble = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The questions that take time.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) dial: Dial,
    pub(crate) ssh: SshLogin,
    pub(crate) approval: TakeApproval,
    /// What the other parts suffer from.
    pub(crate) troubles: Vec<Trouble>,
    /// The agent's SSH host CA, an OpenSSH public key line.
    pub(crate) ssh_host_ca: Option<String>,
}

/// Serves one enrolment; the stream's input stays bounded.
pub(crate) type EnrollServe = Arc<
    dyn Fn(TlsStream<BoundedInput<Socket>>, SocketAddr) -> BoxFuture<'static, EnrollEnd>
        + Send
        + Sync,
>;

/// Lifetimes.
#[derive(Debug, Clone)]
pub(crate) struct Lifetimes {
    /// Of a grant.
    pub(crate) grant: Duration,
    /// How long a pipe that lost its connection waits for the next; and a session that cost a
    /// code for a further pipe.
    pub(crate) detach: Duration,
    /// The same for other tunnels: opening anew costs nobody anything.
    pub(crate) linger: Duration,
}

/// What all connections of an agent share.
pub(crate) struct Core {
    pub(crate) evidence: Evidence,
    pub(crate) rules: Rules,
    pub(crate) doors: Doors,
    pub(crate) limits: Limits,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) patience: Patience,
    pub(crate) sessions: Registry,
    pub(crate) resumable: Resumable,
    pub(crate) step_ups: StepUps,
    pub(crate) strangers: Strangers,
    /// Everything that runs for a connection or a session.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when nothing new may open.
    pub(crate) drain: CancellationToken,
}

impl Core {
    pub(crate) fn new(
        evidence: Evidence,
        rules: Rules,
        doors: Doors,
        limits: Limits,
        lifetimes: Lifetimes,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new(Self {
            evidence,
            rules,
            doors,
            limits,
            lifetimes,
            patience,
            sessions: Registry::default(),
            resumable: Resumable::default(),
            step_ups: StepUps::default(),
            strangers: Strangers::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
        })
    }

    /// Why no session may start now, or enrolment is closed: for `/readyz`.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.drain.is_cancelled() {
            troubles.push("shutting down".to_owned());
        }
        if let Err(error) = self.evidence.admit() {
            troubles.push(format!("evidence: {error}"));
        }
        troubles.extend(self.doors.troubles.iter().filter_map(|trouble| trouble()));
        troubles
    }

    /// How long `session` may be without a pipe.
    pub(crate) fn linger(&self, session: &Session) -> Duration {
        session.linger(&self.lifetimes)
    }

    /// Housekeeping.
    pub(crate) fn each_minute(self: &Arc<Self>) {
        self.limits.sweep(Instant::now());
        let core = Arc::clone(self);
        self.tasks
            .spawn(async move { core.strangers.report(&core.evidence).await });
    }
}
