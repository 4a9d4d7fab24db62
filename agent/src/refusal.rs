//! Every way in which a request is refused, and what it is to others: the `Denied` for the peer,
//! the field of the event, the level of the log line.
//!
//! The peer learns what it may know, the log the rest; the session id ties both.

use postern_proto::gateway::message::{Denied, DenyCode};
use postern_proto::names::{SessionId, TargetName};
use tracing::Level;

use crate::end::Ending;
use crate::evidence::EvidenceError;
use crate::limits::LimitReached;
use crate::policy::Denial;
use crate::rules::NotVerified;

/// Why a request became no session.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The certificate no longer opens anything here.
    Certificate(NotVerified),
    /// The agent is shutting down.
    Draining,
    /// Without evidence nothing opens.
    Evidence(EvidenceError),
    /// A limit is reached.
    Limit(LimitReached),
    /// The inventory does not know it.
    UnknownTarget {
        /// What was asked for.
        name: TargetName,
        /// What to do about it.
        hint: String,
    },
    /// Several targets have that name.
    Ambiguous {
        /// What was asked for.
        name: TargetName,
        /// `id name address` of each.
        candidates: Vec<String>,
    },
    /// Policy says no.
    Policy(Denial),
    /// Policy wants a fresh code.
    StepUp {
        /// The policies that would allow it then.
        policies: Vec<String>,
        /// Hex hash of the `Open` that the approval is for.
        open_hash: String,
    },
    /// A tunnel to a port where sshd listens.
    SshPort(u16),
    /// The session to join is over, is another one's, or the proof is wrong: the peer is not told
    /// which.
    Join(&'static str),
    /// The pipe to resume is over, is another one's, or the proof is wrong: the peer is not told
    /// which.
    Resume(&'static str),
    /// The pipe to resume is its owner's, and its session was ordered to end.
    Ended(Ending),
    /// The target cannot be dialled or does not let the agent in.
    NotReached(NotReached),
    /// The request breaks the protocol.
    Protocol(String),
}

/// A target that did not, or that does not let us in.
#[derive(Debug, Clone)]
pub(crate) struct NotReached {
    pub(crate) code: DenyCode,
    /// For the person.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Refusal {
    /// The kind, for peer and event alike.
    pub(crate) fn code(&self) -> DenyCode {
        match self {
            Self::Certificate(_) => DenyCode::Certificate,
            Self::Draining => DenyCode::Draining,
            Self::Evidence(_) => DenyCode::Evidence,
            Self::Limit(_) => DenyCode::Limit,
            Self::UnknownTarget { .. } => DenyCode::UnknownTarget,
            Self::Ambiguous { .. } => DenyCode::Ambiguous,
            Self::Policy(_)
            | Self::SshPort(_)
            | Self::Join(_)
            | Self::Resume(_)
            | Self::Ended(_) => DenyCode::Policy,
            Self::StepUp { .. } => DenyCode::StepUp,
            Self::NotReached(fault) => fault.code,
            Self::Protocol(_) => DenyCode::Protocol,
        }
    }

    /// The same as one of few fixed words, for metrics.
    pub(crate) fn code_name(&self) -> &'static str {
        match self.code() {
            DenyCode::Policy => "policy",
            DenyCode::StepUp => "step_up",
            DenyCode::Certificate => "certificate",
            DenyCode::UnknownTarget => "unknown_target",
            DenyCode::Ambiguous => "ambiguous",
            DenyCode::ForbiddenAddress => "forbidden_address",
            DenyCode::TargetUnreachable => "target_unreachable",
            DenyCode::HostKeyChanged => "host_key_changed",
            DenyCode::TargetLogin => "target_login",
            DenyCode::Evidence => "evidence",
            DenyCode::Limit => "limit",
            DenyCode::Draining => "draining",
            DenyCode::Protocol => "protocol",
            DenyCode::Internal => "internal",
        }
    }

    /// The policies that denied.
    pub(crate) fn policies(&self) -> &[String] {
        match self {
            Self::Policy(denial) => &denial.policies,
            Self::StepUp { policies, .. } => policies,
            _ => &[],
        }
    }

    /// Why, for operators: the event's field.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Join(detail) | Self::Resume(detail) => (*detail).to_owned(),
            Self::Evidence(error) => error.to_string(),
            other => other.message(),
        }
    }

    /// How loud the log line is.
    pub(crate) fn level(&self) -> Level {
        match self {
            Self::Evidence(_) => Level::ERROR,
            Self::Protocol(_) | Self::Join(_) | Self::Resume(_) => Level::WARN,
            Self::NotReached(fault) if fault.code == DenyCode::HostKeyChanged => Level::WARN,
            _ => Level::INFO,
        }
    }

    /// What the peer is told.
    pub(crate) fn denied(&self, session: SessionId) -> Denied {
        Denied {
            code: self.code(),
            message: self.message(),
            hint: self.hint(),
            session: Some(session),
            open_hash: match self {
                Self::StepUp { open_hash, .. } => Some(open_hash.clone()),
                _ => None,
            },
            candidates: match self {
                Self::Ambiguous { candidates, .. } => candidates.clone(),
                _ => vec![],
            },
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Certificate(fault) => fault.message.clone(),
            Self::Draining => "the agent is shutting down".to_owned(),
            Self::Evidence(EvidenceError::Quota(bytes)) => {
                format!("your recording quota of {bytes} bytes is used up")
            }
            Self::Evidence(_) => "the agent cannot write evidence, so nothing opens".to_owned(),
            Self::Limit(limit) => limit.to_string(),
            Self::UnknownTarget { name, .. } => format!("no target is called `{}`", shown(name)),
            Self::Ambiguous { name, candidates } => {
                format!("{} targets match `{}`", candidates.len(), shown(name))
            }
            Self::Policy(denial) => denial.message.clone(),
            Self::StepUp { .. } => "policy wants a fresh MFA code for this".to_owned(),
            Self::SshPort(port) => format!(
                "port {port} carries SSH, and SSH goes through `connect` or `proxy`, which record it"
            ),
            Self::Join(_) => "there is no such session to join".to_owned(),
            Self::Resume(_) => "the agent has no such session to resume".to_owned(),
            Self::Ended(ending) => match &ending.message {
                Some(message) => format!("the session was ended: {message}"),
                None => "the session was ended".to_owned(),
            },
            Self::NotReached(fault) => fault.message.clone(),
            Self::Protocol(what) => format!("the request breaks the protocol: {what}"),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Certificate(fault) => Some(fault.hint.clone()),
            Self::Draining => Some("try again in a moment".to_owned()),
            Self::Evidence(EvidenceError::Quota(_)) => {
                Some("end a session that records much, or ask for a larger quota".to_owned())
            }
            Self::Evidence(_) => {
                Some("tell the operator of the agent, with the session id".to_owned())
            }
            Self::Limit(_) => Some("close sessions that you no longer need".to_owned()),
            Self::UnknownTarget { hint, .. } => Some(hint.clone()),
            Self::Ambiguous { .. } => Some("use the target's id".to_owned()),
            Self::Policy(denial) => denial.hint.clone(),
            Self::SshPort(_) => Some("postern connect, or ssh through postern proxy".to_owned()),
            Self::NotReached(fault) => fault.hint.clone(),
            Self::StepUp { .. }
            | Self::Join(_)
            | Self::Resume(_)
            | Self::Ended(_)
            | Self::Protocol(_) => None,
        }
    }
}

impl From<EvidenceError> for Refusal {
    fn from(error: EvidenceError) -> Self {
        Self::Evidence(error)
    }
}

impl From<LimitReached> for Refusal {
    fn from(limit: LimitReached) -> Self {
        Self::Limit(limit)
    }
}

impl From<NotReached> for Refusal {
    fn from(fault: NotReached) -> Self {
        Self::NotReached(fault)
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Policy(denial)
    }
}

/// A name from outside, safe to print.
fn shown(name: &TargetName) -> String {
    name.as_str().escape_debug().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_inside_is_not_told_to_the_peer() {
        let failed = Refusal::Evidence(EvidenceError::Failed("/var/x: no space".into()));
        assert!(failed.reason().contains("/var/x"));
        assert!(
            !failed
                .denied(SessionId::from_parts(1, 1))
                .message
                .contains("/var/x")
        );
    }

    #[test]
    fn a_wrong_join_proof_looks_like_a_session_that_does_not_exist() {
        let id = SessionId::from_parts(1, 1);
        assert_eq!(
            Refusal::Join("wrong proof").denied(id),
            Refusal::Join("no such session").denied(id)
        );
    }
}
