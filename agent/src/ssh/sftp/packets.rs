//! Cutting a byte stream into SFTP messages without holding their content.

use super::messages::kind;
use super::{MAX_HANDLE, SftpError};

/// Longest message: OpenSSH's limit is 256 KiB, others go a little further.
const MAX_MESSAGE: usize = 1024 * 1024;

/// Longest message that is held whole: two names and attributes.
const MAX_HELD: usize = 32 * 1024;

/// A part of the stream.
pub(super) enum Piece<'a> {
    /// A message, up to its content or the part that does not matter.
    Message(&'a [u8]),
    /// Some of the content of the last message.
    Content(&'a [u8]),
}

/// One direction of an SFTP stream.
#[derive(Default)]
pub(super) struct Packets {
    /// The length field while it is incomplete, then the start of the message.
    head: Vec<u8>,
    state: State,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Length,
    /// The message has so many bytes; its start is being collected.
    Head { total: usize },
    /// So many bytes follow: content, or what does not matter.
    Rest { left: usize, content: bool },
}

impl Packets {
    /// Hands the pieces of `data` to `on_piece`.
    pub(super) fn feed(
        &mut self,
        mut data: &[u8],
        mut on_piece: impl FnMut(Piece<'_>) -> Result<(), SftpError>,
    ) -> Result<(), SftpError> {
        loop {
            match self.state {
                State::Length => {
                    if !self.collect(&mut data, 4) {
                        return Ok(());
                    }
                    let length = self.head.first_chunk::<4>().copied().unwrap_or_default();
                    let total = u32::from_be_bytes(length) as usize;
                    if total == 0 || total > MAX_MESSAGE {
                        return Err(SftpError::TooLong(total));
                    }
                    self.head.clear();
                    self.state = State::Head { total };
                }
                State::Head { total } => {
                    let wanted = wanted(&self.head, total)?;
                    if !self.collect(&mut data, wanted) {
                        return Ok(());
                    }
                    // A longer start may tell that more of it is needed.
                    if self::wanted(&self.head, total)? > self.head.len() {
                        continue;
                    }
                    on_piece(Piece::Message(&self.head))?;
                    let content = matches!(self.head.first(), Some(&(kind::WRITE | kind::DATA)));
                    let left = total - self.head.len();
                    self.head.clear();
                    self.state = match left {
                        0 => State::Length,
                        left => State::Rest { left, content },
                    };
                }
                State::Rest { left, content } => {
                    if data.is_empty() {
                        return Ok(());
                    }
                    let (piece, rest) = data.split_at(left.min(data.len()));
                    data = rest;
                    if content {
                        on_piece(Piece::Content(piece))?;
                    }
                    self.state = match left - piece.len() {
                        0 => State::Length,
                        left => State::Rest { left, content },
                    };
                }
            }
        }
    }

    /// Takes from `data` until `wanted` bytes are there.
    fn collect(&mut self, data: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.head.len());
        let (taken, rest) = data.split_at(missing.min(data.len()));
        self.head.extend_from_slice(taken);
        *data = rest;
        self.head.len() >= wanted
    }
}

/// How much of a message must be held, as far as its start tells.
fn wanted(head: &[u8], total: usize) -> Result<usize, SftpError> {
    let Some(&message_kind) = head.first() else {
        return Ok(1);
    };
    let wanted = match message_kind {
        // Type, id, handle, offset, length of the content.
        kind::WRITE => match head.get(5..).and_then(|rest| rest.first_chunk::<4>()) {
            None => 9,
            Some(length) => match u32::from_be_bytes(*length) as usize {
                length if length > MAX_HANDLE => return Err(SftpError::TooLong(length)),
                length => 9 + length + 8 + 4,
            },
        },
        // Type, id, length of the content.
        kind::DATA => 9,
        // Names, attributes and other answers whose fields do not matter: type and id.
        104 | 105 | 201 => 5,
        _ if total > MAX_HELD => return Err(SftpError::TooLong(total)),
        _ => total,
    };
    if wanted > total && !matches!(message_kind, 104 | 105 | 201) {
        return Err(SftpError::TooLong(total));
    }
    Ok(wanted.min(total))
}
