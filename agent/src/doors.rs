//! The questions that the core asks and that take time: targets are dialled and logged in to.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use postern_proto::gateway::message::HostKeySeen;
use postern_proto::names::{HostName, LoginUser, SessionId};
use tokio::io::DuplexStream;
use tokio::net::TcpStream;

use crate::ca::ssh::SshExtension;
use crate::end::SshEnd;
use crate::identity::VerifiedPrincipal;
use crate::inventory::Target;
use crate::refusal::NotReached;
use crate::session::Session;

/// One closure per question: who answers is not known here.
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
    /// Whether the session ends with what runs in it.
    pub(crate) once: bool,
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
