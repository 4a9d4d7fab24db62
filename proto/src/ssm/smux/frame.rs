//! Frames of smux version 1: version, command, length and stream id (both little-endian), data.
//!
//! Source: github.com/xtaci/smux 1.5 `frame.go`, and the recorded frames (SSM-PROTOCOL.md
//! section 7).

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes before the data of a frame.
pub const HEADER: usize = 8;
/// The longest data that the Go side puts into a frame; it takes up to 65,535 bytes.
pub const DATA_LIMIT: usize = 32 * 1024;

const VERSION: u8 = 1;

/// What a frame is. Numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Opens a stream.
    Syn = 0,
    /// Closes a stream, in both directions.
    Fin = 1,
    /// Data.
    Psh = 2,
    /// Keepalive.
    Nop = 3,
}

/// A frame after which the bytes mean nothing any more. The multiplexer is broken for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Another version.
    #[error("smux version {0}, 1 expected")]
    Version(u8),
    /// A command that version 1 does not have.
    #[error("unknown smux command {0}")]
    Command(u8),
    /// Data in a frame that has none.
    #[error("smux {command:?} frame with {length} bytes of data")]
    Length {
        /// The command.
        command: Command,
        /// The length in its header.
        length: u16,
    },
}

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A frame without data.
    Control(Command, u32),
    /// Data of a stream, or part of it: a piece is handed out as soon as a byte of it is there.
    Data(u32, Bytes),
}

/// Cuts the byte stream into pieces. Holds less than a header between calls.
#[derive(Debug, Default)]
pub struct Decoder {
    header: BytesMut,
    // The stream and the bytes that are left of the frame under way.
    data: Option<(u32, usize)>,
}

impl Decoder {
    /// The next piece of `received`, or `None` when all of it was taken.
    pub fn next(&mut self, received: &mut Bytes) -> Result<Option<Piece>, FrameError> {
        loop {
            if let Some((stream, left)) = self.data {
                if received.is_empty() {
                    return Ok(None);
                }
                let piece = received.split_to(left.min(received.len()));
                let left = left - piece.len();
                self.data = (left > 0).then_some((stream, left));
                return Ok(Some(Piece::Data(stream, piece)));
            }
            let missing = HEADER.saturating_sub(self.header.len());
            let part = received.split_to(missing.min(received.len()));
            self.header.extend_from_slice(&part);
            let Some(&[version, command, l0, l1, s0, s1, s2, s3]) =
                self.header.first_chunk::<HEADER>()
            else {
                return Ok(None);
            };
            self.header.advance(HEADER);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            let length = u16::from_le_bytes([l0, l1]);
            let stream = u32::from_le_bytes([s0, s1, s2, s3]);
            let command = match command {
                0 => Command::Syn,
                1 => Command::Fin,
                2 => Command::Psh,
                3 => Command::Nop,
                unknown => return Err(FrameError::Command(unknown)),
            };
            match (command, length) {
                (Command::Psh, 0) => {}
                (Command::Psh, length) => self.data = Some((stream, usize::from(length))),
                (command, 0) => return Ok(Some(Piece::Control(command, stream))),
                (command, length) => return Err(FrameError::Length { command, length }),
            }
        }
    }
}

/// Appends the header of a frame whose data, at most [`DATA_LIMIT`] bytes, follows.
pub fn put_header(out: &mut Vec<u8>, command: Command, length: usize, stream: u32) {
    debug_assert!(length <= DATA_LIMIT);
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    out.extend_from_slice(&[VERSION, command as u8]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&stream.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(parts: &[&[u8]]) -> Result<Vec<Piece>, FrameError> {
        let (mut decoder, mut pieces) = (Decoder::default(), Vec::new());
        for part in parts {
            let mut received = Bytes::copy_from_slice(part);
            while let Some(piece) = decoder.next(&mut received)? {
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    #[test]
    fn frames_cut_anywhere_are_the_same_frames() {
        let mut wire = Vec::new();
        put_header(&mut wire, Command::Syn, 0, 3);
        put_header(&mut wire, Command::Psh, 5, 3);
        wire.extend_from_slice(b"hello");
        put_header(&mut wire, Command::Nop, 0, 0);
        put_header(&mut wire, Command::Fin, 0, 3);
        for cut in 0..wire.len() {
            let pieces = decode(&[&wire[..cut], &wire[cut..]]).unwrap();
            let data: Vec<u8> = pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Data(3, bytes) => Some(bytes.to_vec()),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(data, b"hello");
            assert_eq!(pieces.first(), Some(&Piece::Control(Command::Syn, 3)));
            assert_eq!(pieces.last(), Some(&Piece::Control(Command::Fin, 3)));
        }
    }

    #[test]
    fn the_bytes_are_little_endian() {
        let mut wire = Vec::new();
        put_header(&mut wire, Command::Psh, 0x0102, 0x0304_0506);
        assert_eq!(wire, [1, 2, 2, 1, 6, 5, 4, 3]);
    }

    #[test]
    fn other_versions_commands_and_lengths_are_errors() {
        let frame = |bytes: [u8; 8]| decode(&[&bytes]).unwrap_err();
        assert_eq!(frame([2, 0, 0, 0, 3, 0, 0, 0]), FrameError::Version(2));
        assert_eq!(frame([1, 4, 0, 0, 3, 0, 0, 0]), FrameError::Command(4));
        assert_eq!(
            frame([1, 1, 1, 0, 3, 0, 0, 0]),
            FrameError::Length {
                command: Command::Fin,
                length: 1
            }
        );
    }

    #[test]
    fn an_empty_data_frame_is_skipped() {
        assert_eq!(
            decode(&[&[1, 2, 0, 0, 3, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 0]]).unwrap(),
            [Piece::Control(Command::Nop, 0)]
        );
    }
}
