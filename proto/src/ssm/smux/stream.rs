//! One stream: what waits to be sent and what waits to be read.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Bytes in order, in pieces.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
    }

    /// The first piece, or as much of it as `limit` allows.
    pub(super) fn pop(&mut self, limit: usize) -> Option<Bytes> {
        let first = self.pieces.front_mut()?;
        let piece = if first.len() <= limit {
            self.pieces.pop_front()?
        } else {
            first.split_to(limit)
        };
        self.length -= piece.len();
        (!piece.is_empty()).then_some(piece)
    }

    /// Moves up to `limit` bytes to the end of `out`.
    pub(super) fn move_to(&mut self, out: &mut Vec<u8>, limit: usize) {
        let mut left = limit.min(self.length);
        while left > 0 {
            let Some(first) = self.pieces.front_mut() else {
                return;
            };
            let length = left.min(first.len());
            out.extend_from_slice(first.get(..length).unwrap_or_default());
            first.advance(length);
            if first.is_empty() {
                self.pieces.pop_front();
            }
            self.length -= length;
            left -= length;
        }
    }
}

/// A stream that at least one side still uses.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// To send, up to the multiplexer's limit.
    pub(super) outgoing: Buffer,
    /// Whether a SYN goes before it.
    pub(super) owes_syn: bool,
    /// We close: a FIN follows what waits to be sent.
    pub(super) owes_fin: bool,
    /// Arrived, not read yet.
    pub(super) incoming: Buffer,
    /// Whether `Readable` was told and nothing read since.
    pub(super) told_readable: bool,
    /// The other side's FIN arrived: after `incoming` nothing follows, and nothing that we send
    /// is looked at.
    pub(super) finished: bool,
    /// Whether that was told.
    pub(super) told_finished: bool,
}

impl Stream {
    /// Whether it has anything to send.
    pub(super) fn is_ready(&self) -> bool {
        self.owes_syn || self.owes_fin || !self.outgoing.is_empty()
    }
}
