//! Why an agent does not serve, and how people hear it.

use postern_proto::gateway::message::{Denied, DenyCode};
use thiserror::Error;

use crate::error::{Error as UserError, Kind};
use crate::identity::IdentityError;
use crate::pipe::PipeError;
use crate::transport::TransportError;
use crate::witness::WitnessError;

/// Why the agent does not serve.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// There is no certificate, or no fresh code.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection broke.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The agent says no.
    #[error("{}", .0.message)]
    Denied(Box<Denied>),
    /// The agent's evidence is not what was seen before.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// The agent's answer contradicts the question.
    #[error("agent `{agent}` answered another question than was asked: {what}")]
    Contradiction {
        /// Its id.
        agent: String,
        /// What does not fit.
        what: &'static str,
    },
}

impl From<GatewayError> for UserError {
    fn from(error: GatewayError) -> Self {
        let message = error.to_string();
        match error {
            GatewayError::Identity(error) => error.into(),
            GatewayError::Transport(error) => Self::unreachable(message).hint(error.hint()),
            GatewayError::Pipe(error) => error.into(),
            GatewayError::Witness(error) => Self::denied(message).hint(error.hint()),
            GatewayError::Contradiction { .. } => {
                Self::failed(message).hint("compare the versions of `postern` and the agent")
            }
            GatewayError::Denied(denied) => refusal(*denied),
        }
    }
}

impl From<PipeError> for UserError {
    fn from(error: PipeError) -> Self {
        let kind = match error {
            PipeError::Lost(_)
            | PipeError::Silent(_)
            | PipeError::Unanswered(_)
            | PipeError::Away(_) => Kind::Unreachable,
            PipeError::Refused(_) => Kind::Denied,
            _ => Kind::Failed,
        };
        Self::new(kind, error.to_string()).hint(error.hint())
    }
}

impl From<TransportError> for UserError {
    fn from(error: TransportError) -> Self {
        GatewayError::from(error).into()
    }
}

/// A denial as people see it.
fn refusal(denied: Denied) -> UserError {
    let mut message = denied.message;
    if !denied.candidates.is_empty() {
        message.push_str(&format!(": {}", denied.candidates.join("; ")));
    }
    if let Some(session) = denied.session {
        message.push_str(&format!(" (session {session})"));
    }
    let kind = match denied.code {
        DenyCode::TargetUnreachable | DenyCode::Draining => Kind::Unreachable,
        _ => Kind::Denied,
    };
    let hint = denied.hint.or_else(|| {
        Some(
            match denied.code {
                DenyCode::UnknownTarget => "postern ls",
                DenyCode::Ambiguous => "name one of them by its id",
                DenyCode::Certificate => "postern login",
                _ => return None,
            }
            .to_owned(),
        )
    });
    UserError {
        kind,
        message,
        hint,
    }
}
