//! Facing the target: its host key, and logging in with a key that exists for seconds.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_proto::gateway::message::{DenyCode, HostKeySeen};
use postern_proto::names::LoginUser;
use postern_proto::wire::{Reader, Writer};
use russh::keys::{Certificate, PrivateKey};
use thiserror::Error;
use tokio::net::TcpStream;

use super::hostkeys::{HostKeys, HostKeysError};
use super::link::{Link, LinkError};
use super::message;
use super::transport::{Transport, TransportError, message as transport_message};
use super::transport::{printable, signing};
use crate::inventory::Target;

/// Version exchange, key exchange and login together.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a target may say before the login, in bytes (shown to the person).
const MAX_BANNER: usize = 16 * 1024;

/// What the agent logs in with. Does not print; the key is wiped when dropped.
pub struct Credential {
    key: PrivateKey,
    certificate: Option<Certificate>,
}

impl Credential {
    /// A key that the target knows by itself: EC2 Instance Connect was given it.
    pub fn key(key: PrivateKey) -> Self {
        Self {
            key,
            certificate: None,
        }
    }

    /// A key with a certificate of the SSH user CA.
    pub fn certified(key: PrivateKey, certificate: Certificate) -> Self {
        Self {
            key,
            certificate: Some(certificate),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// Why the agent is not logged in at the target.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// The connection or what came over it.
    #[error("the SSH connection to {target} failed: {why}")]
    Connection {
        /// The target's name.
        target: String,
        /// What happened.
        why: String,
    },
    /// It took too long.
    #[error("{target} did not finish the SSH handshake within {} seconds", within.as_secs())]
    Timeout {
        /// The target's name.
        target: String,
        /// How long it was given.
        within: Duration,
    },
    /// The host key is another one than before.
    #[error("the host key of {target} changed: it was {pinned}, now it is {seen}")]
    HostKeyChanged {
        /// The target's name.
        target: String,
        /// What identified it before.
        pinned: String,
        /// What it shows now.
        seen: String,
    },
    /// A certificate of the host CA that does not hold.
    #[error("the host certificate of {target} was refused: {why}")]
    HostCertificate {
        /// The target's name.
        target: String,
        /// Why.
        why: String,
    },
    /// The known host keys cannot be read or written.
    #[error("the host key cannot be checked: {0}")]
    HostKeys(#[from] HostKeysError),
    /// The target did not let the agent log in.
    #[error("{target} refused the login as {user}")]
    LoginRefused {
        /// The target's name.
        target: String,
        /// The login user.
        user: LoginUser,
        /// Whether a certificate was shown, or a bare key.
        certificate: bool,
    },
}

impl UpstreamError {
    /// A connection that failed because of what the target said.
    pub(super) fn broken(target: &str, why: impl fmt::Display) -> Self {
        Self::Connection {
            target: target.to_owned(),
            why: why.to_string(),
        }
    }

    /// The kind that the client is told.
    pub fn code(&self) -> DenyCode {
        match self {
            Self::Connection { .. } | Self::Timeout { .. } => DenyCode::TargetUnreachable,
            Self::HostKeyChanged { .. } | Self::HostCertificate { .. } => DenyCode::HostKeyChanged,
            Self::HostKeys(_) => DenyCode::Internal,
            Self::LoginRefused { .. } => DenyCode::TargetLogin,
        }
    }

    /// What can be done about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connection { target, .. } => Some(format!(
                "is the service on {target} an OpenSSH server (6.5 or newer)?"
            )),
            Self::Timeout { target, .. } => Some(format!("is the sshd of {target} overloaded?")),
            Self::HostKeyChanged { target, .. } => Some(format!(
                "if {target} was rebuilt, let an operator of the agent forget its old key; \
                 if not, somebody may be in between"
            )),
            Self::HostCertificate { target, .. } => Some(format!(
                "sign the host key of {target} again, with its name, id or address as principal"
            )),
            Self::HostKeys(_) => Some("an operator of the agent must look at its state".to_owned()),
            Self::LoginRefused {
                target,
                user,
                certificate: true,
            } => Some(format!(
                "on {target}, put the agent's SSH user CA into the file that `TrustedUserCAKeys` \
                 names in sshd_config, and check that the user `{user}` exists and may log in \
                 (AllowUsers, AuthorizedPrincipalsFile)"
            )),
            Self::LoginRefused { target, user, .. } => Some(format!(
                "on {target}, check that `ec2-instance-connect` is installed and that the user \
                 `{user}` exists and may log in"
            )),
        }
    }
}

/// An authenticated SSH connection to a target.
pub struct Upstream {
    pub(super) link: Link<TcpStream>,
    pub(super) banner: Option<String>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstream(…)")
    }
}

impl Upstream {
    /// Speaks SSH over `tcp` to `target`: checks its host key against `host_keys` and logs in as
    /// `user`. Bounded in time (20 s) and memory whatever the target does. Nothing but the login
    /// has happened at the target when this returns.
    pub async fn connect(
        tcp: TcpStream,
        target: &Target,
        user: &LoginUser,
        credential: Credential,
        host_keys: &HostKeys,
    ) -> Result<(Self, HostKeySeen), UpstreamError> {
        Self::connect_within(DEADLINE, tcp, target, user, credential, host_keys).await
    }

    pub(super) async fn connect_within(
        deadline: Duration,
        tcp: TcpStream,
        target: &Target,
        user: &LoginUser,
        credential: Credential,
        host_keys: &HostKeys,
    ) -> Result<(Self, HostKeySeen), UpstreamError> {
        let connecting = connect(tcp, target, user, credential, host_keys);
        tokio::time::timeout(deadline, connecting)
            .await
            .unwrap_or_else(|_| {
                Err(UpstreamError::Timeout {
                    target: target.name.clone(),
                    within: deadline,
                })
            })
    }
}

async fn connect(
    tcp: TcpStream,
    target: &Target,
    user: &LoginUser,
    credential: Credential,
    host_keys: &HostKeys,
) -> Result<(Upstream, HostKeySeen), UpstreamError> {
    let failed = |error: LinkError| UpstreamError::broken(&target.name, error);
    let broken = |error: TransportError| UpstreamError::broken(&target.name, error);
    keep_alive(&tcp).map_err(|error| failed(error.into()))?;
    let transport = Transport::client(host_keys.algorithms(&target.id)).map_err(broken)?;
    let mut link = Link::new(tcp, transport);
    link.exchange_keys().await.map_err(failed)?;
    let shown = link.transport.host_key().cloned();
    let shown = shown.ok_or_else(|| UpstreamError::broken(&target.name, "no host key"))?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX, |since| since.as_secs());
    let seen = host_keys.check(target, &shown, now).await?;

    // Both at once: the answer to the first is known.
    let service = Writer::new()
        .u8(transport_message::SERVICE_REQUEST)
        .vec32(b"ssh-userauth")
        .finish();
    link.transport.send(&service).map_err(broken)?;
    let request = login_request(&credential, user, link.transport.session()).map_err(broken)?;
    link.transport.send(&request).map_err(broken)?;
    let banner = login_answer(&mut link).await.map_err(failed)?;
    let Some(banner) = banner else {
        return Err(UpstreamError::LoginRefused {
            target: target.name.clone(),
            user: user.clone(),
            certificate: credential.certificate.is_some(),
        });
    };
    link.transport.authenticated();
    let banner = (!banner.is_empty()).then_some(banner);
    Ok((Upstream { link, banner }, seen))
}

/// `publickey` with its signature at once (RFC 4252 section 7).
fn login_request(
    credential: &Credential,
    user: &LoginUser,
    session: &[u8],
) -> Result<Vec<u8>, TransportError> {
    let unreadable = |_| TransportError::Crypto;
    let plain = signing::algorithm_of(&credential.key);
    let (algorithm, blob) = match &credential.certificate {
        Some(certificate) => (
            signing::certificate_type(&plain),
            certificate.to_bytes().map_err(unreadable)?,
        ),
        None => (
            plain,
            credential.key.public_key().to_bytes().map_err(unreadable)?,
        ),
    };
    let request = Writer::new()
        .u8(message::USERAUTH_REQUEST)
        .vec32(user.as_str().as_bytes())
        .vec32(b"ssh-connection")
        .vec32(b"publickey")
        .u8(1)
        .vec32(algorithm.as_bytes())
        .vec32(&blob)
        .finish();
    let signed = Writer::new().vec32(session).raw(&request).finish();
    let signature = signing::sign(&credential.key, &signed)?;
    Ok(Writer::new().raw(&request).vec32(&signature).finish())
}

/// The target's banner when it let us in, `None` when it did not.
async fn login_answer(link: &mut Link<TcpStream>) -> Result<Option<String>, LinkError> {
    let mut banner = String::new();
    loop {
        let answer = link.receive().await?;
        let mut reader = Reader::new(&answer);
        match reader.u8("message").map_err(TransportError::from)? {
            transport_message::SERVICE_ACCEPT => {}
            message::USERAUTH_SUCCESS => return Ok(Some(banner)),
            message::USERAUTH_FAILURE => return Ok(None),
            message::USERAUTH_BANNER => {
                let text = reader
                    .vec32("banner", MAX_BANNER)
                    .map_err(TransportError::from)?;
                if banner.len() + text.len() <= MAX_BANNER {
                    let text = String::from_utf8_lossy(text);
                    banner.extend(text.chars().filter(|c| !c.is_control() || *c == '\n'));
                }
            }
            other => return Err(TransportError::Unexpected(other).into()),
        }
    }
}

/// Lets the kernel find a dead target: first question after a minute, dead after two.
fn keep_alive(tcp: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(tcp, 4)?;
    sockopt::set_tcp_user_timeout(tcp, 120_000)?;
    Ok(())
}

/// What a target said when it ended the connection, for the person.
pub(super) fn goodbye(target: &str, error: &TransportError) -> String {
    match error {
        TransportError::Disconnected { message, .. } => {
            format!(
                "{target} ended the connection: {}",
                printable(message.as_bytes(), 200)
            )
        }
        other => format!("the connection to {target} broke: {other}"),
    }
}
