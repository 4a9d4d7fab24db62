//! How long sessions live, and wait.

use std::time::Duration;

use postern_proto::audit::event::Access;
use postern_proto::names::Assurance;

use super::Session;

/// Lifetimes, as they are configured.
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

impl Session {
    /// How long the session may be without a pipe. An SSH session is over with its pipe; a tunnel
    /// waits for the next connection that `forward` accepts.
    pub(crate) fn linger(&self, lifetimes: &Lifetimes) -> Duration {
        match self.access {
            Access::Ssh { .. } | Access::Shell => Duration::ZERO,
            Access::Tunnel { .. } if self.grant.request().assurance == Assurance::AwsMfaFresh => {
                lifetimes.detach
            }
            Access::Tunnel { .. } => lifetimes.linger,
        }
    }
}
