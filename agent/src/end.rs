//! Every way in which a pipe or session ends, and what it is to others: the `Close` for the peer,
//! the field of the event, the level of the log line.
//!
//! The peer learns what it may know, the log the rest; the session id ties both.

use std::io;

use postern_proto::gateway::message::{Close, CloseReason, Witness};
use tracing::Level;

use crate::pipe::{Finish, PipeError};

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

/// Why a session must end, with a sentence for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The kind.
    pub reason: CloseReason,
    /// The sentence.
    pub message: Option<String>,
}

/// How an SSH connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshEnd {
    /// Status of the last command or shell that ended; 128 + n when signal n ended it.
    pub exit_status: Option<u32>,
    /// Bytes of channel data from the client.
    pub up: u64,
    /// Bytes of channel data to the client.
    pub down: u64,
    /// Why it ended.
    pub reason: CloseReason,
    /// One sentence about it, where there is more to say.
    pub message: Option<String>,
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

impl From<Finish> for End {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Done => Self::Done,
            Finish::Closed(close) => Self::Client(close),
            Finish::Target(error) => Self::Target(error),
            Finish::Pipe(error) => Self::Pipe(error),
            Finish::Ssh => Self::Ssh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_detail_never_reaches_the_peer() {
        let end = End::Internal("secret path /etc/x".to_owned());
        assert!(!format!("{:?}", end.close(None)).contains("/etc/x"));
        assert_eq!(end.detail().as_deref(), Some("secret path /etc/x"));
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
}
