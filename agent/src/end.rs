//! Every way in which a request is refused or a session ends, and what it is to others: the
//! `Denied` or `Close` for the peer, the field of the event, the level of the log line.
//!
//! The peer learns what it may know, the log the rest; the session id ties both.

use std::io;

use postern_proto::gateway::message::{Close, CloseReason, Denied, DenyCode, Witness};
use postern_proto::names::{SessionId, TargetName};
use tracing::Level;

use crate::doors::NotReached;
use crate::evidence::EvidenceError;
use crate::limits::LimitReached;
use crate::pipe::PipeError;
use crate::policy::Denial;
use crate::rules::NotVerified;
use crate::session::Ending;
use crate::ssh::SshEnd;

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

/// How a pipe ended, and with its last pipe a session.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions are done.
    Done,
    /// The SSH server behind it ended.
    Shell(SshEnd),
    /// The client closed it.
    Client(Close),
    /// The pipe broke: the network, or the protocol.
    Pipe(PipeError),
    /// The target's connection broke.
    Target(io::Error),
    /// A tunnel began to carry SSH.
    Ssh,
    /// The session was ordered to end.
    Ordered(Ending),
    /// What serves the pipe failed: the detail is for the log.
    Internal(String),
}

impl End {
    /// The kind, for peer and event alike.
    pub(crate) fn reason(&self) -> CloseReason {
        match self {
            Self::Done => CloseReason::Done,
            Self::Shell(end) => end.reason,
            // A client may say that it is done; any other reason of its own is its decision.
            Self::Client(close) if close.reason == CloseReason::Done => CloseReason::Done,
            Self::Client(_) | Self::Pipe(PipeError::Lost(_)) => CloseReason::Client,
            Self::Pipe(_) => CloseReason::Protocol,
            Self::Target(_) => CloseReason::Target,
            Self::Ssh => CloseReason::Policy,
            Self::Ordered(ending) => ending.reason,
            Self::Internal(_) => CloseReason::Internal,
        }
    }

    /// More about it for operators: the event's field.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::Pipe(error) => Some(error.to_string()),
            Self::Target(error) => Some(error.to_string()),
            Self::Internal(detail) => Some(detail.clone()),
            other => other.message(),
        }
    }

    /// One sentence for the person.
    pub(crate) fn message(&self) -> Option<String> {
        match self {
            Self::Done | Self::Client(_) => None,
            Self::Shell(end) => end.message.clone(),
            Self::Pipe(PipeError::Lost(_)) => None,
            Self::Pipe(error) => Some(error.to_string()),
            Self::Target(_) => Some("the target broke the connection".to_owned()),
            Self::Ssh => {
                Some("a tunnel must not carry SSH; use postern connect or postern proxy".to_owned())
            }
            Self::Ordered(ending) => ending.message.clone(),
            Self::Internal(_) => Some("the agent failed; its log tells why".to_owned()),
        }
    }

    /// How loud the log line is.
    pub(crate) fn level(&self) -> Level {
        match self.reason() {
            CloseReason::Evidence | CloseReason::Internal => Level::ERROR,
            CloseReason::Protocol => Level::WARN,
            _ => Level::INFO,
        }
    }

    /// Exit status of the last command or shell.
    pub(crate) fn exit_status(&self) -> Option<u32> {
        match self {
            Self::Shell(end) => end.exit_status,
            _ => None,
        }
    }

    /// What the peer is told; the pipe fills in the offsets.
    pub(crate) fn close(&self, evidence: Option<Witness>) -> Close {
        Close {
            reason: self.reason(),
            message: self.message(),
            exit_status: self.exit_status(),
            sent: 0,
            received: 0,
            evidence,
        }
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
    fn internal_detail_never_reaches_the_peer() {
        let end = End::Internal("secret path /etc/x".to_owned());
        assert!(!format!("{:?}", end.close(None)).contains("/etc/x"));
        assert_eq!(end.detail().as_deref(), Some("secret path /etc/x"));

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
    fn a_lost_network_is_not_a_protocol_error() {
        let lost = End::Pipe(PipeError::Lost("reset".into()));
        assert_eq!(lost.reason(), CloseReason::Client);
        assert_eq!(
            lost.detail().as_deref(),
            Some("the network was lost: reset")
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
