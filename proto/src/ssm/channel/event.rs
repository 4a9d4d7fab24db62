//! What a data channel tells its owner, and how it ends.

use bytes::Bytes;
use thiserror::Error;

use crate::ssm::payload::handshake::Properties;
use crate::ssm::payload::{Flag, TerminalSize};
use crate::ssm::version::PortMode;

/// What happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Client: the session is to be encrypted. Get a data key from KMS, then call
    /// [`DataChannel::provide_key`](super::DataChannel::provide_key) or
    /// [`DataChannel::refuse_key`](super::DataChannel::refuse_key).
    KeyNeeded(KeyRequest),
    /// SSM Agent: decrypt the client's data key, then call
    /// [`DataChannel::provide_key`](super::DataChannel::provide_key).
    KeyOffered(KeyOffer),
    /// Data may be written from now on.
    Opened(Opened),
    /// Bytes of the stream; a command's standard output.
    Data(Bytes),
    /// A command's standard error, where it is kept apart.
    Stderr(Bytes),
    /// A command's exit code. Text of the peer's decision alone: a shell has none.
    Exit(i32),
    /// An error text of the peer.
    Error(Bytes),
    /// SSM Agent: the client's terminal has this size.
    Resized(TerminalSize),
    /// A flag of a port session.
    Flag(Flag),
    /// The last event.
    Closed(Closed),
}

impl Event {
    /// The bytes that it keeps in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Data(bytes) | Self::Stderr(bytes) | Self::Error(bytes) => bytes.len(),
                _ => 0,
            }
    }
}

/// What to ask KMS for: `GenerateDataKey` of 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// Id, ARN or alias of the key, as the SSM Agent names it.
    pub key_id: String,
    /// Also goes into the encryption context, where there is one.
    pub challenge: Option<String>,
}

/// What to have KMS decrypt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOffer {
    /// The data key's ciphertext.
    pub ciphertext: Vec<u8>,
    /// The challenge, when the client says that it is in the encryption context.
    pub challenge: Option<String>,
}

/// The encryption context of a session's data key (plugin `encryption/encrypter.go`). `target` is
/// the one given to StartSession, which must be the SSM Agent's instance id.
pub fn encryption_context<'a>(
    session_id: &'a str,
    target: &'a str,
    challenge: Option<&'a str>,
) -> Vec<(&'static str, &'a str)> {
    let mut context = vec![
        ("aws:ssm:SessionId", session_id),
        ("aws:ssm:TargetId", target),
    ];
    context.extend(challenge.map(|challenge| ("aws:ssm:RandomChallenge", challenge)));
    context
}

/// A session that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What kind.
    pub session: Session,
    /// How to understand its bytes, for port sessions.
    pub port: Option<PortMode>,
    /// The other side's version; `None` without a handshake.
    pub peer_version: Option<String>,
    /// Text of the SSM Agent to show when not empty.
    pub notice: String,
    /// Whether data is encrypted with a KMS data key.
    pub is_encrypted: bool,
}

/// The kinds of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// A shell or a command with a terminal: there was no handshake to say which.
    Unnamed,
    /// `Standard_Stream`: a shell.
    StandardStream,
    /// `InteractiveCommands`: a command with a terminal.
    InteractiveCommands,
    /// `NonInteractiveCommands`: a command without one.
    NonInteractiveCommands,
    /// `Port`.
    Port(Properties),
}

impl Session {
    pub(super) fn from_wire(name: &str, properties: Option<Properties>) -> Option<Self> {
        Some(match name {
            "Standard_Stream" => Self::StandardStream,
            "InteractiveCommands" => Self::InteractiveCommands,
            "NonInteractiveCommands" => Self::NonInteractiveCommands,
            "Port" => Self::Port(properties.unwrap_or_default()),
            _ => return None,
        })
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Unnamed | Self::StandardStream => "Standard_Stream",
            Self::InteractiveCommands => "InteractiveCommands",
            Self::NonInteractiveCommands => "NonInteractiveCommands",
            Self::Port(_) => "Port",
        }
    }

    /// Port sessions negotiate a key and never use it.
    pub(super) fn encrypts_data(&self) -> bool {
        !matches!(self, Self::Port(_))
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Who ended it, and why.
    pub reason: CloseReason,
    /// Whether data is known to be missing: later messages had arrived, an earlier one had not.
    pub is_incomplete: bool,
}

/// Why a session ended. Texts are the peer's: show them as data.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// The service ended it: normally when the text is empty.
    #[error("the session ended{}", reason(.0))]
    Service(String),
    /// SSM Agent: the client could not do what the handshake asked for.
    #[error("the client did not do {action} (status {status}): {error}")]
    ActionFailed {
        /// The action.
        action: String,
        /// Its status.
        status: i64,
        /// The client's reason.
        error: String,
    },
    /// The other side did not finish the handshake in time.
    #[error("no session within the time limit")]
    HandshakeTimeout,
    /// What is sent is not acknowledged and nothing arrives, for the time in the configuration.
    #[error("the other side does not answer any more")]
    Silent,
    /// Data that was not encrypted with the session's key, or a failed challenge.
    #[error("the other side does not hold the session's key")]
    Encryption,
    /// The other side broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Violation(&'static str),
}

fn reason(output: &str) -> String {
    match output.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
