//! Frames: type (1 byte), length (3 bytes, big-endian), body.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes before a body.
pub const HEADER: usize = 4;
/// The longest `Data` body: with its header it fills four TLS records of 16 KiB.
pub const DATA_LIMIT: usize = 4 * 16 * 1024 - HEADER;
/// The longest body of every other frame.
pub const CONTROL_LIMIT: usize = 16 * 1024;

/// What a frame is. Numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// The one request of a pipe: JSON [`super::message::Open`].
    Open = 1,
    /// The answer that opens: JSON [`super::message::Granted`].
    Granted = 2,
    /// The answer that does not: JSON [`super::message::Denied`].
    Denied = 3,
    /// Bytes of the stream.
    Data = 4,
    /// No more data in this direction; the body is the final offset (8 bytes).
    Eof = 5,
    /// All bytes below this offset (8 bytes) were taken by the reader.
    Ack = 6,
    /// Asks for a `Pong` with the same 8 bytes.
    Ping = 7,
    /// Answers a `Ping`.
    Pong = 8,
    /// The end of the pipe: JSON [`super::message::Close`].
    Close = 9,
    /// Continues a pipe on a new connection: JSON [`super::resume::Resume`].
    Resume = 10,
    /// The answer that does: JSON [`super::resume::Resumed`].
    Resumed = 11,
}

impl FrameKind {
    fn from_wire(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Open,
            2 => Self::Granted,
            3 => Self::Denied,
            4 => Self::Data,
            5 => Self::Eof,
            6 => Self::Ack,
            7 => Self::Ping,
            8 => Self::Pong,
            9 => Self::Close,
            10 => Self::Resume,
            11 => Self::Resumed,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }

    fn limit(self) -> usize {
        match self {
            Self::Data => DATA_LIMIT,
            _ => CONTROL_LIMIT,
        }
    }
}

/// A frame that the protocol does not allow. The connection ends: nothing after it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A type that this version does not know.
    #[error("unknown frame type {0}")]
    UnknownKind(u8),
    /// A length above the limit of its type.
    #[error("{kind:?} frame of {length} bytes, at most {limit} allowed")]
    TooLong {
        /// The type of the frame.
        kind: FrameKind,
        /// The length in its header.
        length: usize,
        /// The limit of its type.
        limit: usize,
    },
}

/// What the decoder found: a whole control frame, or as much of a `Data` frame as has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the stream, without copying.
    Data(Bytes),
    /// Any other frame, whole.
    Frame(FrameKind, Bytes),
}

/// Cuts received bytes into pieces. `Data` streams: a piece is handed out as soon as a byte of it
/// is there.
#[derive(Debug, Default)]
pub struct Decoder {
    data_left: usize,
}

impl Decoder {
    /// The next piece of `received`, or `None` when more bytes are needed. Memory: a caller that
    /// stops reading once `received` holds [`HEADER`] + [`CONTROL_LIMIT`] bytes always gets on.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Piece>, FrameError> {
        loop {
            if self.data_left > 0 {
                if received.is_empty() {
                    return Ok(None);
                }
                let length = self.data_left.min(received.len());
                self.data_left -= length;
                return Ok(Some(Piece::Data(received.split_to(length).freeze())));
            }
            let Some(&[kind, high, middle, low]) = received.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let kind = FrameKind::from_wire(kind)?;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > kind.limit() {
                return Err(FrameError::TooLong {
                    kind,
                    length,
                    limit: kind.limit(),
                });
            }
            if kind == FrameKind::Data {
                received.advance(HEADER);
                self.data_left = length;
                continue;
            }
            if received.len() < HEADER + length {
                return Ok(None);
            }
            received.advance(HEADER);
            return Ok(Some(Piece::Frame(kind, received.split_to(length).freeze())));
        }
    }
}

/// The header of a frame whose body is `length` bytes, at most the limit of its kind.
fn header(kind: FrameKind, length: usize) -> [u8; HEADER] {
    debug_assert!(length <= kind.limit());
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    [kind as u8, high, middle, low]
}

/// A control frame. `None` when the body is above [`CONTROL_LIMIT`].
pub fn control(kind: FrameKind, body: &[u8]) -> Option<Bytes> {
    if body.len() > CONTROL_LIMIT {
        return None;
    }
    let mut frame = BytesMut::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&header(kind, body.len()));
    frame.extend_from_slice(body);
    Some(frame.freeze())
}

/// Turns a buffer whose first [`HEADER`] bytes are free into a `Data` frame, without copying: a
/// reader reads behind the free bytes. `None` when there is no body or more than [`DATA_LIMIT`].
pub fn data(mut buffer: BytesMut) -> Option<Bytes> {
    let length = buffer.len().checked_sub(HEADER)?;
    if length == 0 || length > DATA_LIMIT {
        return None;
    }
    let head = buffer.first_chunk_mut::<HEADER>()?;
    *head = header(FrameKind::Data, length);
    Some(buffer.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<Piece>, FrameError> {
        let mut decoder = Decoder::default();
        let mut received = BytesMut::from(bytes);
        let mut pieces = Vec::new();
        while let Some(piece) = decoder.next(&mut received)? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    #[test]
    fn data_streams_before_its_frame_is_whole() {
        let pieces = decode(&[4, 0, 0, 5, b'a', b'b']).unwrap();
        assert_eq!(pieces, [Piece::Data(Bytes::from_static(b"ab"))]);
    }

    #[test]
    fn a_frame_cut_anywhere_decodes_to_the_same_bytes() {
        let mut wire = BytesMut::new();
        wire.extend_from_slice(&control(FrameKind::Ping, b"12345678").unwrap());
        wire.extend_from_slice(&data(BytesMut::from(&b"\0\0\0\0hello"[..])).unwrap());
        wire.extend_from_slice(&control(FrameKind::Eof, &5u64.to_be_bytes()).unwrap());
        for cut in 0..wire.len() {
            let mut decoder = Decoder::default();
            let mut received = BytesMut::new();
            let (mut stream, mut frames) = (Vec::new(), Vec::new());
            for part in [&wire[..cut], &wire[cut..]] {
                received.extend_from_slice(part);
                while let Some(piece) = decoder.next(&mut received).unwrap() {
                    match piece {
                        Piece::Data(bytes) => stream.extend_from_slice(&bytes),
                        Piece::Frame(kind, _) => frames.push(kind),
                    }
                }
            }
            assert_eq!(stream, b"hello", "cut at {cut}");
            assert_eq!(frames, [FrameKind::Ping, FrameKind::Eof], "cut at {cut}");
        }
    }

    #[test]
    fn a_longer_frame_than_allowed_is_refused_from_its_header_alone() {
        let limit = CONTROL_LIMIT;
        assert_eq!(
            decode(&[1, 0, 0x40, 1]),
            Err(FrameError::TooLong {
                kind: FrameKind::Open,
                length: 0x4001,
                limit
            })
        );
        assert_eq!(
            decode(&[4, 0, 0xff, 0xfd]),
            Err(FrameError::TooLong {
                kind: FrameKind::Data,
                length: 0xfffd,
                limit: DATA_LIMIT
            })
        );
    }

    #[test]
    fn unknown_types_are_errors() {
        assert_eq!(decode(&[0, 0, 0, 0]), Err(FrameError::UnknownKind(0)));
        assert_eq!(decode(&[99, 0, 0, 0]), Err(FrameError::UnknownKind(99)));
    }

    #[test]
    fn an_empty_data_frame_is_skipped() {
        let pieces = decode(&[4, 0, 0, 0, 7, 0, 0, 1, b'x']).unwrap();
        assert_eq!(
            pieces,
            [Piece::Frame(FrameKind::Ping, Bytes::from_static(b"x"))]
        );
    }
}
