//! Payload types and the JSON bodies of everything but the handshake ([`handshake`]).
//!
//! Read as tolerantly as the peers do (unknown fields are skipped, only what is used must be
//! there), written field for field as they write.

pub mod handshake;
mod opening;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use opening::{OpenDataChannel, SecretText};

use super::message::{MessageId, MessageKind};

/// The longest JSON body that is parsed.
pub const JSON_LIMIT: usize = 64 * 1024;

/// What a payload is. Numbers are the wire's: plugin `message/clientmessage.go`, SSM Agent
/// `session/contracts/agentmessage.go`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadKind {
    /// Messages outside the numbered series.
    None,
    /// Data in either direction.
    Output,
    /// An error text; neither program was seen to send one.
    Error,
    /// [`TerminalSize`].
    Size,
    /// Unused by both programs.
    Parameter,
    /// [`handshake::HandshakeRequest`].
    HandshakeRequest,
    /// [`handshake::HandshakeResponse`].
    HandshakeResponse,
    /// [`handshake::HandshakeComplete`].
    HandshakeComplete,
    /// [`handshake::Challenge`].
    ChallengeRequest,
    /// [`handshake::Challenge`].
    ChallengeResponse,
    /// [`Flag`].
    Flag,
    /// Standard error of a command, where it is kept apart.
    Stderr,
    /// The exit code of a command: see [`exit_code`].
    ExitCode,
    /// Any other number.
    Unknown(u32),
}

impl PayloadKind {
    const KNOWN: [Self; 13] = [
        Self::None,
        Self::Output,
        Self::Error,
        Self::Size,
        Self::Parameter,
        Self::HandshakeRequest,
        Self::HandshakeResponse,
        Self::HandshakeComplete,
        Self::ChallengeRequest,
        Self::ChallengeResponse,
        Self::Flag,
        Self::Stderr,
        Self::ExitCode,
    ];

    pub(super) fn from_wire(number: u32) -> Self {
        usize::try_from(number)
            .ok()
            .and_then(|place| Self::KNOWN.get(place).copied())
            .unwrap_or(Self::Unknown(number))
    }

    pub(super) fn to_wire(self) -> u32 {
        match self {
            Self::Unknown(number) => number,
            known => Self::KNOWN
                .iter()
                .position(|kind| *kind == known)
                .map_or(0, |place| place as u32),
        }
    }
}

/// A payload that is not what its type says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Not the JSON that belongs there.
    #[error("{what}: not the expected JSON")]
    Json {
        /// What was being read.
        what: &'static str,
    },
    /// Longer than [`JSON_LIMIT`].
    #[error("{what}: {length} bytes")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// A flag that is not four bytes.
    #[error("a flag of {0} bytes, 4 expected")]
    Flag(usize),
    /// A text other than `EXIT_CODE: ` and a number.
    #[error("the exit code is not a number")]
    ExitCode,
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, PayloadError> {
    if bytes.len() > JSON_LIMIT {
        let length = bytes.len();
        return Err(PayloadError::TooLong { what, length });
    }
    serde_json::from_slice(bytes).map_err(|_| PayloadError::Json { what })
}

/// JSON of a type whose serialisation cannot fail: plain fields, string keys.
pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// What a receiver uses of an acknowledgement. As with the SSM Agent that is the number alone:
/// the other fields may be missing or wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Acknowledge {
    /// The number of the message that arrived.
    #[serde(rename = "AcknowledgedMessageSequenceNumber")]
    pub sequence: u64,
}

impl Acknowledge {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("acknowledgement", payload)
    }

    /// The payload that acknowledges a numbered message.
    pub fn payload(kind: MessageKind, id: MessageId, sequence: u64) -> Bytes {
        // Built by hand: it goes out once per message received, and no field needs escaping.
        format!(
            "{{\"AcknowledgedMessageType\":\"{}\",\"AcknowledgedMessageId\":\"{id}\",\
             \"AcknowledgedMessageSequenceNumber\":{sequence},\"IsSequentialMessage\":true}}",
            kind.name()
        )
        .into()
    }
}

/// The end of a session, by the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChannelClosed {
    /// `channel_closed`.
    pub message_type: String,
    /// A UUID, other than the message's own.
    pub message_id: String,
    /// The target.
    pub destination_id: String,
    /// The session.
    pub session_id: String,
    /// 1.
    pub schema_version: u32,
    /// Milliseconds since 1970, as text.
    pub created_date: String,
    /// Empty for a normal end, else the text to show. Not sent to SSM Agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl ChannelClosed {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("channel_closed", payload)
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

/// What the SSM Agent tells the service about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentSessionState {
    /// 1.
    pub schema_version: u32,
    /// `Connected` or `Terminating`.
    pub session_state: String,
    /// The session.
    pub session_id: String,
}

impl AgentSessionState {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("agent_session_state", payload)
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

/// The payload of publication control, which no peer looks at.
pub fn publication(session_id: &str) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Publication<'a> {
        session_id: &'a str,
    }
    to_json(&Publication { session_id })
}

/// The size of the client's terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

impl TerminalSize {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("terminal size", payload)
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

/// A signal of a port session, four bytes (plugin `message/clientmessage.go`). Never encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Client: the local connection ended (basic forwarding).
    DisconnectToPort,
    /// Client: end the session at once.
    TerminateSession,
    /// SSM Agent: a destination could not be reached. Which one is not said.
    ConnectToPortError,
    /// Any other number.
    Unknown(u32),
}

impl Flag {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        let bytes = payload
            .try_into()
            .map_err(|_| PayloadError::Flag(payload.len()))?;
        Ok(match u32::from_be_bytes(bytes) {
            1 => Self::DisconnectToPort,
            2 => Self::TerminateSession,
            3 => Self::ConnectToPortError,
            unknown => Self::Unknown(unknown),
        })
    }

    /// The payload.
    pub fn payload(self) -> Bytes {
        let number: u32 = match self {
            Self::DisconnectToPort => 1,
            Self::TerminateSession => 2,
            Self::ConnectToPortError => 3,
            Self::Unknown(number) => number,
        };
        Bytes::copy_from_slice(&number.to_be_bytes())
    }
}

/// How an exit code begins on the wire (SSM Agent `session/plugins/nonInteractiveCommands`).
const EXIT_CODE: &str = "EXIT_CODE: ";

/// Reads the text of an exit code.
pub fn exit_code(payload: &[u8]) -> Result<i32, PayloadError> {
    std::str::from_utf8(payload)
        .ok()
        .and_then(|text| text.strip_prefix(EXIT_CODE)?.trim_ascii_end().parse().ok())
        .ok_or(PayloadError::ExitCode)
}

/// The text of an exit code.
pub fn exit_code_payload(code: i32) -> Bytes {
    format!("{EXIT_CODE}{code}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_payload_types_are_the_wires() {
        for (number, kind) in [
            (0, PayloadKind::None),
            (1, PayloadKind::Output),
            (5, PayloadKind::HandshakeRequest),
            (10, PayloadKind::Flag),
            (12, PayloadKind::ExitCode),
            (13, PayloadKind::Unknown(13)),
            (u32::MAX, PayloadKind::Unknown(u32::MAX)),
        ] {
            assert_eq!(PayloadKind::from_wire(number), kind);
            assert_eq!(kind.to_wire(), number);
        }
    }

    #[test]
    fn an_acknowledgement_needs_its_number_alone() {
        let bare = br#"{"AcknowledgedMessageSequenceNumber":7,"AcknowledgedMessageId":3}"#;
        assert_eq!(
            Acknowledge::from_payload(bare),
            Ok(Acknowledge { sequence: 7 })
        );
        assert!(Acknowledge::from_payload(b"{}").is_err());
        let negative = br#"{"AcknowledgedMessageSequenceNumber":-1}"#;
        assert!(Acknowledge::from_payload(negative).is_err());
    }

    #[test]
    fn exit_codes_are_texts() {
        assert_eq!(exit_code(b"EXIT_CODE: 5"), Ok(5));
        assert_eq!(exit_code(b"EXIT_CODE: -1\n"), Ok(-1));
        for wrong in [
            &b"EXIT_CODE: "[..],
            b"5",
            b"EXIT_CODE: 99999999999",
            b"\xff",
        ] {
            assert_eq!(exit_code(wrong), Err(PayloadError::ExitCode));
        }
        assert_eq!(exit_code_payload(5), "EXIT_CODE: 5");
    }

    #[test]
    fn a_body_above_the_limit_is_not_parsed() {
        let long = vec![b' '; JSON_LIMIT + 1];
        assert!(matches!(
            TerminalSize::from_payload(&long),
            Err(PayloadError::TooLong { .. })
        ));
    }
}
