//! A pipe's place in its session.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_proto::gateway::message::{CloseReason, Witness};
use postern_proto::names::Assurance;

use super::{Ending, Lifetimes, PipeNumber, Registry, Session};
use crate::end::End;
use crate::refusal::Refusal;

/// A pipe's place in its session. Dropped without [`PipePlace::leave`] (a task that was
/// cancelled), the keeper closes the session.
pub(crate) struct PipePlace {
    session: Arc<Session>,
    number: PipeNumber,
}

impl PipePlace {
    /// A further pipe of `session`, from `source`.
    pub(crate) fn take(session: &Arc<Session>, source: SocketAddr) -> Result<Self, Refusal> {
        let number = session
            .state
            .add_pipe(source.ip())
            .ok_or(Refusal::Join("the session is over or has too many pipes"))?;
        Ok(Self {
            session: Arc::clone(session),
            number,
        })
    }

    /// Its number there.
    pub(crate) fn number(&self) -> PipeNumber {
        self.number
    }

    /// The pipe is over. Closes the session when it was the last and nothing may follow it.
    pub(crate) async fn leave(
        self,
        sessions: &Registry,
        lifetimes: &Lifetimes,
        end: &End,
    ) -> Option<Witness> {
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
        let over = over || self.session.linger(lifetimes).is_zero();
        if last && over {
            sessions.close(&self.session, end).await
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
