//! Messages of user authentication (RFC 4252) and of channels (RFC 4254): numbers, fields, and
//! the few that we make ourselves. The others pass as they came.

use bytes::Bytes;
use postern_proto::wire::{Reader, WireError, Writer};

pub(super) const USERAUTH_REQUEST: u8 = 50;
pub(super) const USERAUTH_FAILURE: u8 = 51;
pub(super) const USERAUTH_SUCCESS: u8 = 52;
pub(super) const USERAUTH_BANNER: u8 = 53;
pub(super) const GLOBAL_REQUEST: u8 = 80;
pub(super) const REQUEST_SUCCESS: u8 = 81;
pub(super) const REQUEST_FAILURE: u8 = 82;
pub(super) const CHANNEL_OPEN: u8 = 90;
pub(super) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
pub(super) const CHANNEL_OPEN_FAILURE: u8 = 92;
pub(super) const CHANNEL_WINDOW_ADJUST: u8 = 93;
pub(super) const CHANNEL_DATA: u8 = 94;
pub(super) const CHANNEL_EXTENDED_DATA: u8 = 95;
pub(super) const CHANNEL_EOF: u8 = 96;
pub(super) const CHANNEL_CLOSE: u8 = 97;
pub(super) const CHANNEL_REQUEST: u8 = 98;
pub(super) const CHANNEL_SUCCESS: u8 = 99;
pub(super) const CHANNEL_FAILURE: u8 = 100;

/// Reasons for a channel that does not open (RFC 4254 section 5.1).
pub(super) const PROHIBITED: u32 = 1;
pub(super) const UNKNOWN_TYPE: u32 = 3;
pub(super) const SHORTAGE: u32 = 4;

/// Reasons for a disconnect (RFC 4253 section 11.1).
pub(super) const PROTOCOL_ERROR: u32 = 2;
pub(super) const CONNECTION_LOST: u32 = 10;
pub(super) const BY_APPLICATION: u32 = 11;
pub(super) const ILLEGAL_USER: u32 = 15;

/// Data of this type is stderr.
pub(super) const STDERR: u32 = 1;

/// Longest name of a request, channel type or host that is read.
const MAX_NAME: usize = 1024;

/// Longest command line or other text: a packet's.
const MAX_TEXT: usize = 256 * 1024;

/// Bytes of a program's window that are kept back for words of our own, where there are many times
/// as many.
const SPARE: u32 = 2 * 1024;

/// Largest packet that we let one peer promise the other to take: what we hold at once depends
/// on it. OpenSSH's own is 32 KiB.
const MAX_PACKET: u32 = 64 * 1024;

/// `CHANNEL_OPEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) kind: String,
    pub(super) sender: u32,
    pub(super) window: u32,
    /// The message with its packet size limited to ours.
    pub(super) passed: Bytes,
    /// Where the window stands in it.
    window_at: usize,
    /// Destination of a TCP forward: address and port.
    pub(super) destination: Option<(String, u32)>,
}

impl Open {
    pub(super) fn parse(payload: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        reader.u8("message")?;
        let kind = text(reader.vec32("channel type", MAX_NAME)?);
        let sender = reader.u32("sender")?;
        let window = reader.u32("window")?;
        let at = payload.len() - reader.left();
        let window_at = at - 4;
        reader.u32("packet size")?;
        let destination = match kind.as_str() {
            "direct-tcpip" | "forwarded-tcpip" => {
                let host = text(reader.vec32("host", MAX_NAME)?);
                Some((host, reader.u32("port")?))
            }
            _ => None,
        };
        Ok(Self {
            kind,
            sender,
            window,
            passed: limit(payload, at),
            window_at,
            destination,
        })
    }

    /// Keeps some of the window back: what passes does not promise it. Returns how much.
    pub(super) fn keep_spare(&mut self) -> u32 {
        if self.window < 4 * SPARE {
            return 0;
        }
        self.window -= SPARE;
        self.passed = replace(&self.passed, self.window_at, self.window);
        SPARE
    }
}

/// `CHANNEL_OPEN_CONFIRMATION`.
pub(super) struct Confirmation {
    pub(super) recipient: u32,
    pub(super) sender: u32,
    /// The message with its packet size limited to ours.
    pub(super) passed: Bytes,
}

impl Confirmation {
    pub(super) fn parse(payload: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        reader.u8("message")?;
        let recipient = reader.u32("recipient")?;
        let sender = reader.u32("sender")?;
        reader.u32("window")?;
        Ok(Self {
            recipient,
            sender,
            passed: limit(payload, 13),
        })
    }
}

/// Lowers the packet size that stands at `at`.
fn limit(payload: &Bytes, at: usize) -> Bytes {
    let size = payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
    match size.map(|bytes| u32::from_be_bytes(*bytes)) {
        Some(size) if size > MAX_PACKET => replace(payload, at, MAX_PACKET),
        _ => payload.clone(),
    }
}

/// The message with another number at `at`.
fn replace(payload: &Bytes, at: usize, number: u32) -> Bytes {
    let mut changed = payload.to_vec();
    if let Some(field) = changed.get_mut(at..at + 4) {
        field.copy_from_slice(&number.to_be_bytes());
    }
    changed.into()
}

/// `CHANNEL_REQUEST` or `GLOBAL_REQUEST` (which has no recipient).
pub(super) struct Request<'a> {
    pub(super) name: &'a [u8],
    pub(super) want_reply: bool,
    /// The fields that depend on the name.
    pub(super) fields: Reader<'a>,
}

impl<'a> Request<'a> {
    /// Reads from behind the recipient.
    pub(super) fn parse(mut reader: Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            name: reader.vec32("request", MAX_NAME)?,
            want_reply: reader.u8("want reply")? != 0,
            fields: reader,
        })
    }
}

/// A reader behind message number and recipient, and the recipient.
pub(super) fn recipient(payload: &[u8]) -> Result<(u32, Reader<'_>), WireError> {
    let mut reader = Reader::new(payload);
    reader.u8("message")?;
    let recipient = reader.u32("recipient")?;
    Ok((recipient, reader))
}

/// The bytes that a data message carries: the end of its payload, shared with it.
pub(super) fn data(payload: &Bytes, mut reader: Reader<'_>) -> Result<Bytes, WireError> {
    let length = reader.vec32("data", MAX_TEXT)?.len();
    reader.finish()?;
    Ok(payload.slice(payload.len() - length..))
}

/// A text field as evidence shows it. What passes to the other side is the original.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The next text field of a request.
pub(super) fn text_field(reader: &mut Reader<'_>) -> Result<String, WireError> {
    reader.vec32("text", MAX_TEXT).map(text)
}

pub(super) fn open_failure(recipient: u32, reason: u32, description: &str) -> Vec<u8> {
    Writer::new()
        .u8(CHANNEL_OPEN_FAILURE)
        .u32(recipient)
        .u32(reason)
        .vec32(description.as_bytes())
        .vec32(b"en")
        .finish()
}

pub(super) fn window_adjust(recipient: u32, bytes: u32) -> Vec<u8> {
    Writer::new()
        .u8(CHANNEL_WINDOW_ADJUST)
        .u32(recipient)
        .u32(bytes)
        .finish()
}

/// A message of nothing but number and recipient.
pub(super) fn plain(kind: u8, recipient: u32) -> Vec<u8> {
    Writer::new().u8(kind).u32(recipient).finish()
}

/// Text on the standard error of a channel.
pub(super) fn stderr(recipient: u32, text: &str) -> Vec<u8> {
    Writer::new()
        .u8(CHANNEL_EXTENDED_DATA)
        .u32(recipient)
        .u32(STDERR)
        .vec32(text.as_bytes())
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(kind: &str, packet: u32, rest: &[u8]) -> Bytes {
        Writer::new()
            .u8(CHANNEL_OPEN)
            .vec32(kind.as_bytes())
            .u32(7)
            .u32(2_097_152)
            .u32(packet)
            .raw(rest)
            .finish()
            .into()
    }

    #[test]
    fn an_open_passes_as_it_came_unless_it_promises_huge_packets() {
        let small = open("session", 32 * 1024, b"");
        assert_eq!(Open::parse(&small).unwrap().passed, small);
        let huge = open("session", u32::MAX, b"");
        let limited = open("session", MAX_PACKET, b"");
        assert_eq!(Open::parse(&huge).unwrap().passed, limited);
    }

    #[test]
    fn of_a_large_window_some_is_kept_back() {
        let mut plenty = Open::parse(&open("session", 1024, b"rest")).unwrap();
        assert_eq!(plenty.keep_spare(), SPARE);
        let passed = Open::parse(&plenty.passed).unwrap();
        assert_eq!(passed.window, 2_097_152 - SPARE);
        assert_eq!(
            (passed.sender, passed.passed.len()),
            (7, plenty.passed.len())
        );
        let mut little = Open {
            window: 4 * SPARE - 1,
            ..plenty
        };
        let before = little.passed.clone();
        assert_eq!((little.keep_spare(), little.passed), (0, before));
    }

    #[test]
    fn the_destination_of_a_forward_is_read() {
        let rest = Writer::new()
            .vec32(b"db.internal")
            .u32(5432)
            .vec32(b"127.0.0.1")
            .u32(9)
            .finish();
        let parsed = Open::parse(&open("direct-tcpip", 1024, &rest)).unwrap();
        assert_eq!(parsed.destination, Some(("db.internal".to_owned(), 5432)));
        for length in 0..rest.len() - 17 {
            assert!(Open::parse(&open("direct-tcpip", 1024, &rest[..length])).is_err());
        }
    }

    #[test]
    fn data_is_what_its_length_says_and_nothing_more() {
        let message: Bytes = Writer::new().u8(94).u32(3).vec32(b"abc").finish().into();
        let (channel, reader) = recipient(&message).unwrap();
        assert_eq!(channel, 3);
        assert_eq!(data(&message, reader).unwrap(), &b"abc"[..]);
        let longer: Bytes = Writer::new()
            .u8(94)
            .u32(3)
            .vec32(b"abc")
            .u8(0)
            .finish()
            .into();
        let (_, reader) = recipient(&longer).unwrap();
        assert!(data(&longer, reader).is_err());
    }
}
