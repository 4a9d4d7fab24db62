//! A pipe's place in its session.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_proto::audit::event::Access;
use postern_proto::gateway::message::{CloseReason, Witness};
use postern_proto::names::Assurance;

use super::{Ending, PipeNumber, Session};
use crate::assemble::{Core, Lifetimes};
use crate::end::End;
use crate::refusal::Refusal;

/// A pipe's place in its session. Dropped without [`PipePlace::leave`] (a task that was
/// cancelled), the keeper closes the session.
pub(super) struct PipePlace {
    session: Arc<Session>,
    pub(super) number: PipeNumber,
}

impl PipePlace {
    pub(super) fn take(session: &Arc<Session>, source: SocketAddr) -> Result<Self, Refusal> {
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
    pub(super) async fn leave(self, core: &Core, end: &End) -> Option<Witness> {
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
            Access::Ssh { .. } => std::time::Duration::ZERO,
            Access::Tunnel { .. } if self.grant.request().assurance == Assurance::AwsMfaFresh => {
                lifetimes.detach
            }
            Access::Tunnel { .. } => lifetimes.linger,
        }
    }
}
