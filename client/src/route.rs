//! Which way to a target: through the agent, or through SSM.
//!
//! `auto` takes the agent where one is configured, answers and knows the target, else SSM if the
//! target is online there. A denial never falls through to the other way: whoever said no meant
//! the person, not the road. One line on stderr says which way it was and why; for the agent, which
//! is the ordinary way, only with `-v`.

use std::sync::Arc;

use postern_proto::gateway::message::DenyCode;
use postern_proto::names::TargetName;

use crate::cli::Via;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::gateway::{Gateway, GatewayError};
use crate::ssh::SshError;
use crate::ssm::Ssm;
use crate::ssm::target::{self, Node};
use crate::transport::TransportError;

/// The way that was taken, with what was opened at its beginning.
pub enum Way<T> {
    /// Through the agent.
    Bastion(T),
    /// Through SSM, to this node. The caller ends it with [`Ssm::settle`].
    Ssm(Arc<Ssm>, Node),
}

/// Why the agent did not open the target.
#[derive(Debug)]
pub struct Refusal {
    /// For the person.
    pub error: Error,
    /// Whether another way may be tried: the agent is away, or the target is none of its.
    pub leaves_open: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            error,
            leaves_open: false,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        let leaves_open = match &error {
            // Somebody else at the agent's address is no reason to go around it.
            GatewayError::Transport(
                TransportError::Unreachable { .. } | TransportError::TimedOut { .. },
            ) => true,
            GatewayError::Denied(denied) => matches!(
                denied.code,
                DenyCode::UnknownTarget | DenyCode::TargetUnreachable
            ),
            _ => false,
        };
        Self {
            error: error.into(),
            leaves_open,
        }
    }
}

impl From<SshError> for Refusal {
    fn from(error: SshError) -> Self {
        match error {
            SshError::Gateway(error) => error.into(),
            other => Error::from(other).into(),
        }
    }
}

/// Opens `target` by `bastion`, which is given the agent, or finds it at SSM.
pub async fn open<T>(
    context: &Context,
    via: Option<Via>,
    target: &TargetName,
    bastion: impl AsyncFnOnce(&Arc<Gateway>) -> Result<T, Refusal>,
) -> Result<Way<T>, Error> {
    let via = via.unwrap_or(context.via);
    if via == Via::Ssm {
        return find(context, target).await;
    }
    if via == Via::Auto && context.agents.is_empty() {
        let found = find(context, target).await?;
        context.printer.note("through SSM: no agent is configured");
        return Ok(found);
    }
    let gateway = Gateway::of(context).await?;
    let refusal = match bastion(&gateway).await {
        Ok(opened) => {
            if via == Via::Auto {
                // The ordinary way is no news: `ssh` says nothing about it either.
                let line = format!("through agent `{}`: it answers", gateway.agent().id);
                context.printer.detail(line);
            }
            return Ok(Way::Bastion(opened));
        }
        Err(refusal) => refusal,
    };
    if via == Via::Bastion || !refusal.leaves_open {
        return Err(refusal.error);
    }
    match find(context, target).await {
        Ok(found) => {
            context
                .printer
                .note(format!("through SSM: {}", refusal.error.message));
            Ok(found)
        }
        Err(error) => {
            context
                .printer
                .note(format!("SSM is no way either: {}", error.message));
            Err(refusal.error)
        }
    }
}

/// Finds a target at SSM.
async fn find<T>(context: &Context, target: &TargetName) -> Result<Way<T>, Error> {
    let ssm = Ssm::of(context)?;
    let node = target::find(&ssm, target.as_str()).await?;
    Ok(Way::Ssm(ssm, node))
}

/// Refuses what only the agent carries.
pub fn only_bastion(what: &str) -> Error {
    Error::new(Kind::Usage, format!("the SSM route does not carry {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(code: DenyCode) -> Refusal {
        GatewayError::Denied(Box::new(postern_proto::gateway::message::Denied {
            code,
            message: "no".to_owned(),
            hint: None,
            session: None,
            open_hash: None,
            candidates: Vec::new(),
        }))
        .into()
    }

    #[test]
    fn a_denial_never_falls_through() {
        for code in [
            DenyCode::Policy,
            DenyCode::StepUp,
            DenyCode::Certificate,
            DenyCode::Ambiguous,
            DenyCode::ForbiddenAddress,
            DenyCode::HostKeyChanged,
            DenyCode::TargetLogin,
            DenyCode::Evidence,
            DenyCode::Limit,
            DenyCode::Draining,
            DenyCode::Protocol,
            DenyCode::Internal,
        ] {
            assert!(!denied(code).leaves_open, "{code:?}");
        }
        assert!(denied(DenyCode::UnknownTarget).leaves_open);
        assert!(denied(DenyCode::TargetUnreachable).leaves_open);
    }
}
