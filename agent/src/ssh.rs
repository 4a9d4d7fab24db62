//! SSH through the agent: terminated here, opened again to the target, recorded in between.
//!
//! ```text
//! user's client ══ transport (server) ══ relay ══ transport (client) ══ target's sshd
//!                    user.rs              │             upstream.rs, hostkeys.rs
//!                                         ├─ policy and event before a channel opens
//!                                         └─ recording before a byte passes
//! ```
//!
//! The relay passes channel messages as they came: numbers, windows, replies and their order are
//! the two ends' own. It adds decisions and evidence, and refuses what it does not know.

mod hostkeys;
mod identity;
mod link;
mod message;
mod relay;
mod sftp;
mod transport;
mod upstream;
mod user;

use std::sync::Arc;

use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::session::Session;

pub use crate::end::SshEnd;
pub use hostkeys::{HostKeys, HostKeysError};
pub use identity::{HostIdentity, HostIdentityError};
pub use transport::TransportError;
pub use upstream::{Credential, Upstream, UpstreamError};

use user::LoginError;

/// Serves the SSH client on `stream` (a pipe) for one granted session, until either side leaves,
/// the session must end, or evidence cannot be written. Everything that the target does passes
/// through `session`: decisions and events before a channel opens there, recordings before a byte
/// passes. The SSH user must be the granted login user; no further proof is asked, since the pipe
/// is the proof. With `once` the agent ends SSH when the target has closed the last channel.
pub async fn serve<S>(
    stream: S,
    upstream: Upstream,
    session: Arc<Session>,
    host: HostIdentity,
    once: bool,
) -> SshEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let refused = |reason, message: String| SshEnd {
        exit_status: None,
        up: 0,
        down: 0,
        reason,
        message: Some(message),
    };
    let Some(user) = session.grant().request().user.clone() else {
        return refused(
            CloseReason::Internal,
            "the grant names no login user".to_owned(),
        );
    };
    let mut ending = session.ending();
    let accepted = tokio::select! {
        accepted = user::accept(stream, host, &user, upstream.banner.as_deref()) => accepted,
        order = relay::ordered(&mut ending) => {
            return SshEnd { exit_status: None, up: 0, down: 0, reason: order.reason, message: order.message };
        }
    };
    match accepted {
        Ok(link) => relay::run(link, upstream.link, session, once).await,
        Err(error) => {
            let reason = match &error {
                LoginError::Link(link::LinkError::Transport(TransportError::Disconnected {
                    ..
                }))
                | LoginError::Link(link::LinkError::Io(_) | link::LinkError::Closed)
                | LoginError::Timeout => CloseReason::Client,
                LoginError::Link(_) | LoginError::OtherUser { .. } | LoginError::Methods => {
                    CloseReason::Protocol
                }
            };
            refused(reason, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests;
