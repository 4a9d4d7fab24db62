//! Driving pipes: one TLS connection each, the machine is `postern_proto::gateway::pipe`.
//!
//! ```text
//! local bytes ─▶ relay ─▶ Wire { machine, decoder, TLS } ─▶ agent
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`mod@open`] | `Open` with early data, `Granted` or `Denied` |
//! | `early` | what the local side says before the answer |
//! | [`wire`] | frames on one connection: writing, reading, acknowledging, heartbeat |
//! | `line` | the next connection when one is lost |
//! | [`outage`] | whether the network is there, for people |
//! | [`mod@relay`] | copying between a wire and something local, with back-pressure both ways |
//!
//! A TLS end without `Close` is a lost network, never an end of file: the pipe goes on on the next
//! connection.

mod early;
pub(crate) mod line;
pub mod open;
pub mod outage;
pub mod relay;
pub mod wire;

use std::io;

use postern_proto::gateway::frame::FrameError;
use postern_proto::gateway::message::{Close, CloseReason, Denied};
use postern_proto::gateway::pipe::Violation;
use thiserror::Error;

pub use early::Early;
pub use open::{Answer, open};
pub use relay::{Outcome, relay};
pub use wire::Wire;

/// Unacknowledged bytes that one pipe keeps (DESIGN.md section 4).
pub const CEILING: usize = 32 * 1024 * 1024;

/// Why a pipe broke.
#[derive(Debug, Error)]
pub enum PipeError {
    /// The connection ended or failed without `Close`.
    #[error("the network connection was lost: {0}")]
    Lost(io::Error),
    /// Nothing arrived for so long that the network must be gone.
    #[error("the network connection was lost: nothing arrived for {0} s")]
    Silent(u64),
    /// The agent broke the protocol.
    #[error("the agent broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// A frame that the protocol does not allow.
    #[error("the agent broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// Another frame than the one that is due.
    #[error("the agent broke the protocol: {0}")]
    Unexpected(&'static str),
    /// No answer to `Open`.
    #[error("the agent did not answer within {0} s")]
    Unanswered(u64),
    /// The agent counted other bytes than arrived.
    #[error("bytes were lost: the agent sent {sent}, {received} arrived")]
    Missing {
        /// The agent's count.
        sent: u64,
        /// Ours.
        received: u64,
    },
    /// The agent does not let the pipe go on.
    #[error("the network connection was lost, and the session cannot be resumed: {}", .0.message)]
    Refused(Box<Denied>),
    /// The network was away for longer than the agent keeps a pipe.
    #[error("the network connection was lost for {0} s, and the agent keeps no session longer")]
    Away(u64),
    /// The local end of the relay failed.
    #[error("the local side failed: {0}")]
    Local(io::Error),
}

impl PipeError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(_) => "connect again; the agent's log tells why, with the session's id",
            Self::Lost(_) | Self::Silent(_) | Self::Away(_) => {
                "check the network and connect again; what ran on the target may still run"
            }
            Self::Unanswered(_) => "try again; if it stays, tell the agent's operator",
            Self::Local(_) => "see what closed it on this computer",
            _ => "compare the versions of `postern` and the agent",
        }
    }
}

/// The sentence for a pipe that the agent ended for a reason of its own; `None` for an ordinary
/// end.
pub fn ending(close: &Close) -> Option<String> {
    let reason = match close.reason {
        CloseReason::Done | CloseReason::Client => return None,
        CloseReason::Target => "the connection to the target broke",
        CloseReason::Policy => "policy no longer allows it",
        CloseReason::Expired => "the grant's time is over",
        CloseReason::Evidence => "the evidence could not be written",
        CloseReason::Quota => "the recording quota is used up",
        CloseReason::Killed => "an operator ended it",
        CloseReason::Draining => "the agent is shutting down",
        CloseReason::Protocol => "the agent saw a breach of the protocol",
        CloseReason::Internal => "the agent failed",
    };
    Some(match &close.message {
        Some(message) if message != reason => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    })
}
