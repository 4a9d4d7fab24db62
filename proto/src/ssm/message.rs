//! One binary message: a header of fixed size and a payload.
//!
//! | offset | size | field |
//! |---:|---:|---|
//! | 0 | 4 | header length, 116: it does not count the payload length |
//! | 4 | 32 | message type, ASCII, padded with spaces |
//! | 36 | 4 | schema version, 1 |
//! | 40 | 8 | created, milliseconds since 1970, never 0 |
//! | 48 | 8 | sequence number |
//! | 56 | 8 | flags |
//! | 64 | 16 | message id, its two halves swapped |
//! | 80 | 32 | SHA-256 of the payload as sent |
//! | 112 | 4 | payload type |
//! | 116 | 4 | payload length |
//! | 120 | n | payload |
//!
//! Source of the layout: plugin `message/messageparser.go`, SSM Agent
//! `session/contracts/agentmessage.go`, and the recorded frames (SSM-PROTOCOL.md section 2).

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use thiserror::Error;

use super::payload::PayloadKind;
use crate::wire::{Reader, WireError, Writer};

/// Bytes of a message besides its payload.
pub const OVERHEAD: usize = 120;
/// The longest payload that is taken from the wire: hundreds of times what the peers send
/// (1,024 bytes), a fraction of what the SSM Agent takes (4 MiB).
pub const PAYLOAD_LIMIT: usize = 512 * 1024;
/// What a WebSocket must let through, and no more.
pub const MESSAGE_LIMIT: usize = PAYLOAD_LIMIT + HEADER_LIMIT;
/// The first message of a numbered direction. The SSM Agent sets it, nobody reads it.
pub const FLAG_SYN: u64 = 1;
/// With [`FLAG_SYN`]: a message outside the numbered series.
pub const FLAG_FIN: u64 = 2;

/// The value of the header length field, which leaves out the four bytes of the payload length.
const HEADER_LENGTH: u32 = 116;
/// Longer headers are read (their extra bytes are skipped), to this length.
const HEADER_LIMIT: usize = 4 * 1024;
const KIND_SIZE: usize = 32;
const SCHEMA_VERSION: u32 = 1;

/// A message that cannot be used. It is dropped: a numbered one comes again, as nobody
/// acknowledged it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Too short or too long.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A header length outside 116 to 4,096.
    #[error("header length {0}, 116 expected")]
    HeaderLength(u32),
    /// No message type, or one that is not printable ASCII.
    #[error("the message type is not a name")]
    Kind,
    /// The creation time is 0, which every peer refuses.
    #[error("the creation time is 0")]
    Created,
    /// A negative sequence number.
    #[error("sequence number {0}")]
    Sequence(i64),
    /// The payload is not the one that was sent.
    #[error("the payload does not match its digest")]
    Digest,
}

/// A message id: a UUID, its bytes in the usual order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// A random (version 4) UUID from 16 random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        let mut value = u128::from_be_bytes(random);
        value &= !(0xf << 76) & !(0x3 << 62);
        value |= (0x4 << 76) | (0x2 << 62);
        Self(value.to_be_bytes())
    }

    /// The form in the header: bytes 8 to 16 of the usual form, then 0 to 8. Its own inverse.
    fn swapped(self) -> Self {
        Self(u128::from_be_bytes(self.0).rotate_left(64).to_be_bytes())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Client to SSM Agent, numbered.
    InputStreamData,
    /// SSM Agent to client, numbered.
    OutputStreamData,
    /// One numbered message arrived.
    Acknowledge,
    /// The service ends the session.
    ChannelClosed,
    /// The service says that the other side is there.
    StartPublication,
    /// The service says that the other side is away.
    PausePublication,
    /// SSM Agent to service; clients never see it.
    AgentSessionState,
    /// Any other name, as it stood in the header.
    Other(KindName),
}

/// The name of an unknown message type, padding included.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KindName([u8; KIND_SIZE]);

impl fmt::Debug for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.trim_ascii_end().escape_ascii())
    }
}

impl MessageKind {
    const KNOWN: [(&'static str, Self); 7] = [
        ("input_stream_data", Self::InputStreamData),
        ("output_stream_data", Self::OutputStreamData),
        ("acknowledge", Self::Acknowledge),
        ("channel_closed", Self::ChannelClosed),
        ("start_publication", Self::StartPublication),
        ("pause_publication", Self::PausePublication),
        ("agent_session_state", Self::AgentSessionState),
    ];

    /// The name on the wire; empty for an unknown type.
    pub fn name(self) -> &'static str {
        Self::KNOWN
            .iter()
            .find_map(|(name, kind)| (*kind == self).then_some(*name))
            .unwrap_or_default()
    }

    /// Whether this type has a place in the numbered series.
    pub fn is_numbered(self) -> bool {
        matches!(self, Self::InputStreamData | Self::OutputStreamData)
    }

    fn is_publication(self) -> bool {
        matches!(self, Self::StartPublication | Self::PausePublication)
    }

    fn from_wire(field: [u8; KIND_SIZE]) -> Result<Self, MessageError> {
        let padding = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
        let end = field.iter().rposition(|byte| !padding(byte));
        let start = field.iter().position(|byte| !padding(byte));
        let name = start
            .zip(end)
            .and_then(|(start, end)| field.get(start..=end))
            .filter(|name| name.iter().all(u8::is_ascii_graphic))
            .ok_or(MessageError::Kind)?;
        Ok(Self::KNOWN
            .iter()
            .find(|(known, _)| known.as_bytes() == name)
            .map_or(Self::Other(KindName(field)), |(_, kind)| *kind))
    }

    fn to_wire(self) -> [u8; KIND_SIZE] {
        if let Self::Other(KindName(field)) = self {
            return field;
        }
        let mut field = [b' '; KIND_SIZE];
        for (place, byte) in field.iter_mut().zip(self.name().bytes()) {
            *place = byte;
        }
        field
    }
}

/// A message of the data channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// Always 1 so far.
    pub schema_version: u32,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Its place in the series of its direction; 0 for messages outside of one.
    pub sequence: u64,
    /// [`FLAG_SYN`], [`FLAG_FIN`].
    pub flags: u64,
    /// Its id.
    pub id: MessageId,
    /// What its payload is.
    pub payload_kind: PayloadKind,
    /// The payload, encrypted where the session is.
    pub payload: Bytes,
}

impl Message {
    /// A message outside the numbered series, as the peers send them.
    pub fn unnumbered(kind: MessageKind, id: MessageId, created: u64, payload: Bytes) -> Self {
        Self {
            kind,
            schema_version: SCHEMA_VERSION,
            created: created.max(1),
            sequence: 0,
            flags: FLAG_SYN | FLAG_FIN,
            id,
            payload_kind: PayloadKind::None,
            payload,
        }
    }

    /// A message of a numbered series.
    pub fn numbered(
        kind: MessageKind,
        sequence: u64,
        id: MessageId,
        created: u64,
        payload_kind: PayloadKind,
        payload: Bytes,
    ) -> Self {
        let first = kind == MessageKind::OutputStreamData && sequence == 0;
        Self {
            kind,
            schema_version: SCHEMA_VERSION,
            created: created.max(1),
            sequence,
            flags: if first { FLAG_SYN } else { 0 },
            id,
            payload_kind,
            payload,
        }
    }

    /// Reads one WebSocket message. As with the peers the payload is all that follows the header,
    /// whatever its length field says; the digest decides. Publication control is taken with any
    /// header, because the plugin lets it be malformed.
    pub fn decode(frame: &Bytes) -> Result<Self, MessageError> {
        if frame.len() > MESSAGE_LIMIT {
            return Err(MessageError::Wire(WireError::TooLong {
                field: "message",
                length: frame.len(),
                limit: MESSAGE_LIMIT,
            }));
        }
        let mut reader = Reader::new(frame);
        let header_length = reader.u32("header length")?;
        let kind = MessageKind::from_wire(reader.array("message type")?)?;
        match Self::decode_rest(frame, reader, header_length, kind) {
            Err(_) if kind.is_publication() => Ok(Self {
                kind,
                schema_version: SCHEMA_VERSION,
                created: 1,
                sequence: 0,
                flags: 0,
                id: MessageId([0; 16]),
                payload_kind: PayloadKind::None,
                payload: Bytes::new(),
            }),
            decoded => decoded,
        }
    }

    fn decode_rest(
        frame: &Bytes,
        mut reader: Reader<'_>,
        header_length: u32,
        kind: MessageKind,
    ) -> Result<Self, MessageError> {
        let extra = header_length
            .checked_sub(HEADER_LENGTH)
            .map(|extra| extra as usize)
            .filter(|extra| *extra <= HEADER_LIMIT - OVERHEAD)
            .ok_or(MessageError::HeaderLength(header_length))?;
        let schema_version = reader.u32("schema version")?;
        let created = reader.u64("created")?;
        let sequence = reader.u64("sequence number")?.cast_signed();
        let flags = reader.u64("flags")?;
        let id = MessageId(reader.array("message id")?).swapped();
        let stated: [u8; 32] = reader.array("payload digest")?;
        let payload_kind = PayloadKind::from_wire(reader.u32("payload type")?);
        reader.u32("payload length")?;
        reader.take("header", extra)?;
        let payload = frame.slice_ref(reader.rest());
        if payload.len() > PAYLOAD_LIMIT {
            return Err(MessageError::Wire(WireError::TooLong {
                field: "payload",
                length: payload.len(),
                limit: PAYLOAD_LIMIT,
            }));
        }
        if created == 0 {
            return Err(MessageError::Created);
        }
        if !payload.is_empty() && digest(&SHA256, &payload).as_ref() != stated {
            return Err(MessageError::Digest);
        }
        Ok(Self {
            kind,
            schema_version,
            created,
            sequence: u64::try_from(sequence).map_err(|_| MessageError::Sequence(sequence))?,
            flags,
            id,
            payload_kind,
            payload,
        })
    }

    /// The WebSocket message. A payload above 4 GiB, which nobody makes, would state a wrong
    /// length.
    pub fn encode(&self) -> Bytes {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        Writer::with_capacity(OVERHEAD + self.payload.len())
            .u32(HEADER_LENGTH)
            .raw(&self.kind.to_wire())
            .u32(self.schema_version)
            .u64(self.created)
            .u64(self.sequence)
            .u64(self.flags)
            .raw(&self.id.swapped().0)
            .raw(digest(&SHA256, &self.payload).as_ref())
            .u32(self.payload_kind.to_wire())
            .u32(length)
            .raw(&self.payload)
            .finish()
            .into()
    }
}

#[cfg(test)]
mod tests;
