//! Facing the user: the agent's host key, and a login that was decided before.

use std::time::Duration;

use postern_proto::names::LoginUser;
use postern_proto::wire::{Reader, WireError, Writer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::HostIdentity;
use super::link::{Link, LinkError};
use super::message;
use super::transport::{Transport, TransportError, message as transport_message};

/// Version exchange, key exchange and login together. A person is not asked anything meanwhile.
const DEADLINE: Duration = Duration::from_secs(30);

/// Requests for other methods before the connection ends.
const MAX_ATTEMPTS: usize = 6;

/// Longest user, service or method name that is read.
const MAX_NAME: usize = 1024;

/// Why a user's SSH client did not get in.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// The connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It took too long.
    #[error("the SSH client did not log in within {} seconds", DEADLINE.as_secs())]
    Timeout,
    /// Another user than the one that was granted.
    #[error("the SSH user must be {granted}, as granted")]
    OtherUser {
        /// Who may log in.
        granted: LoginUser,
    },
    /// The client insists on other methods.
    #[error("the SSH client does not use the method `none`")]
    Methods,
}

impl From<TransportError> for LoginError {
    fn from(error: TransportError) -> Self {
        Self::Link(error.into())
    }
}

impl From<WireError> for LoginError {
    fn from(error: WireError) -> Self {
        TransportError::from(error).into()
    }
}

/// Takes an SSH client in as `granted` and shows it `banner`.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: HostIdentity,
    granted: &LoginUser,
    banner: Option<&str>,
) -> Result<Link<S>, LoginError> {
    let mut link = Link::new(stream, Transport::server(host)?);
    match tokio::time::timeout(DEADLINE, login(&mut link, granted, banner)).await {
        Ok(Ok(())) => Ok(link),
        Ok(Err(error)) => {
            if let LoginError::OtherUser { .. } | LoginError::Methods = error {
                link.transport
                    .disconnect(message::ILLEGAL_USER, &error.to_string())?;
                // The client may be gone already; the first error is the one to report.
                let _ = tokio::time::timeout(Duration::from_secs(2), link.flush()).await;
            }
            Err(error)
        }
        Err(_) => Err(LoginError::Timeout),
    }
}

async fn login<S: AsyncRead + AsyncWrite + Unpin>(
    link: &mut Link<S>,
    granted: &LoginUser,
    banner: Option<&str>,
) -> Result<(), LoginError> {
    link.exchange_keys().await?;
    let accepted = Writer::new()
        .u8(transport_message::SERVICE_ACCEPT)
        .vec32(b"ssh-userauth")
        .finish();
    // There is one service to ask for. Our own client need not wait for the answer, which travels
    // with the new keys: a round trip less. Others may not expect it before they asked.
    let foreseen = link.transport.peer_is_postern();
    if foreseen {
        link.transport.send(&accepted)?;
    }
    let request = link.receive().await?;
    let mut reader = Reader::new(&request);
    let kind = reader.u8("message")?;
    if kind != transport_message::SERVICE_REQUEST
        || reader.vec32("service", MAX_NAME)? != b"ssh-userauth"
    {
        return Err(TransportError::Unexpected(kind).into());
    }
    if !foreseen {
        link.transport.send(&accepted)?;
    }
    for _ in 0..MAX_ATTEMPTS {
        let request = link.receive().await?;
        let mut reader = Reader::new(&request);
        let kind = reader.u8("message")?;
        if kind != message::USERAUTH_REQUEST {
            return Err(TransportError::Unexpected(kind).into());
        }
        let user = reader.vec32("user", MAX_NAME)?;
        let service = reader.vec32("service", MAX_NAME)?;
        let method = reader.vec32("method", MAX_NAME)?;
        // The decision was for one user: another one, even once, ends the pipe.
        if user != granted.as_str().as_bytes() {
            return Err(LoginError::OtherUser {
                granted: granted.clone(),
            });
        }
        if service == b"ssh-connection" && method == b"none" {
            if let Some(banner) = banner {
                let banner = Writer::new()
                    .u8(message::USERAUTH_BANNER)
                    .vec32(banner.as_bytes())
                    .vec32(b"")
                    .finish();
                link.transport.send(&banner)?;
            }
            link.transport.send(&[message::USERAUTH_SUCCESS])?;
            link.transport.authenticated();
            return Ok(());
        }
        let refused = Writer::new()
            .u8(message::USERAUTH_FAILURE)
            .vec32(b"none")
            .u8(0)
            .finish();
        link.transport.send(&refused)?;
    }
    Err(LoginError::Methods)
}
