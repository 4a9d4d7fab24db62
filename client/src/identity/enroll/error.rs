//! Why an enrolment failed, and what a person can do.

use postern_proto::enroll::RefuseCode;
use postern_proto::names::AgentId;

use crate::identity::sign::SignError;
use crate::identity::sts::clock;

/// Why an agent did not enrol us, or why we did not let it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// No connection.
    #[error("agent `{agent}` at {address} cannot be reached: {cause}")]
    Unreachable {
        /// Which.
        agent: AgentId,
        /// Where.
        address: String,
        /// Why not.
        cause: String,
    },
    /// It cannot prove to be the pinned agent.
    #[error("{address} is not the agent `{agent}` that is pinned: {cause}")]
    Untrusted {
        /// Which was expected.
        agent: AgentId,
        /// Where.
        address: String,
        /// What is wrong with its certificate.
        cause: String,
    },
    /// It asks us to sign for something else than what is pinned.
    #[error(
        "agent `{agent}` asks for a signature for {what} `{asked}`, but `{pinned}` is pinned: \
         nothing was signed"
    )]
    Pinned {
        /// Which agent.
        agent: AgentId,
        /// Id, role or STS host.
        what: &'static str,
        /// What it wants.
        asked: String,
        /// What the profile says.
        pinned: String,
    },
    /// It breaks the protocol.
    #[error("agent `{agent}` does not speak the enrolment protocol: {cause}")]
    Protocol {
        /// Which.
        agent: AgentId,
        /// What it did.
        cause: String,
    },
    /// It said no.
    #[error("agent `{agent}` refused the enrolment: {message}{}", told_clock(*skew))]
    Refused {
        /// Which.
        agent: AgentId,
        /// What kind of no.
        code: RefuseCode,
        /// Its sentence.
        message: String,
        /// Its advice.
        hint: Option<String>,
        /// Seconds that this computer's clock is ahead of the agent's, where that matters.
        skew: Option<i64>,
    },
    /// Our own side.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The pinned CA.
    #[error("the pinned CA of agent `{agent}` cannot be used: {cause}")]
    Ca {
        /// Which.
        agent: AgentId,
        /// Why.
        cause: String,
    },
}

impl EnrolError {
    /// Whether a new login may help.
    pub fn wants_login(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code.wants_login())
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => {
                Some("check the network and the agent's address in the configuration".to_owned())
            }
            Self::Untrusted { .. } => Some(
                "do not go on before you know why; a renewed CA must come from whoever runs the \
                 agent"
                    .to_owned(),
            ),
            Self::Pinned { what, .. } => Some(format!(
                "if whoever runs the agent changed its {what}, change the configuration; else \
                 somebody tries to misuse your session"
            )),
            Self::Refused {
                code: RefuseCode::Clock,
                ..
            } => Some("set the clock right (time synchronisation)".to_owned()),
            Self::Refused { hint, code, .. } => hint
                .clone()
                .or_else(|| code.wants_login().then(|| "postern login".to_owned())),
            Self::Protocol { .. } | Self::Sign(_) | Self::Ca { .. } => None,
        }
    }
}

fn told_clock(skew: Option<i64>) -> String {
    skew.map_or_else(String::new, |skew| {
        format!("; {} of the agent's", clock(skew))
    })
}
