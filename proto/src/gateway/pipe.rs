//! One resumable byte stream as a pure machine, the same for both ends.
//!
//! Bytes are counted in each direction from the first after `Granted` (early data included). A
//! side keeps the frames that the other has not acknowledged, by reference to the buffers they
//! were read into, up to a ceiling: at the ceiling [`Pipe::room`] is 0 and the caller stops
//! reading its source. The driver feeds [`Piece`]s in and writes what
//! [`Pipe::poll_transmit`] gives out.
//!
//! When the connection is lost, [`Pipe::cut`] forgets what belonged to it and [`Pipe::resume`]
//! begins again at the byte that the other side has not got. Bytes that arrived are delivered by
//! their receiver whatever happens to the connection, so they count as acknowledged then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::buffers;
use super::frame::{self, FrameKind, HEADER, Piece};
use super::message::Close;

/// Taken bytes after which an `Ack` goes out at once.
const ACK_BYTES: u64 = 64 * 1024;
/// How long taken bytes may wait for their `Ack`.
const ACK_DELAY: Duration = Duration::from_millis(25);
/// Unsent control frames above which a peer is flooding us.
const CONTROL_QUEUE: usize = 64;

/// A peer that breaks the protocol of a running pipe.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// A frame that has no place on a running pipe.
    #[error("{0:?} frame on a running pipe")]
    Unexpected(FrameKind),
    /// A body that is not what its type says.
    #[error("malformed {0:?} frame")]
    Malformed(FrameKind),
    /// Bytes acknowledged that were never sent, or fewer than before.
    #[error("acknowledged up to {acked}, sent {sent}")]
    Ack {
        /// The peer's claim.
        acked: u64,
        /// What we sent.
        sent: u64,
    },
    /// An end of file at an offset other than what arrived.
    #[error("end of file at {stated}, {received} bytes arrived")]
    Eof {
        /// The offset in the frame.
        stated: u64,
        /// The bytes that arrived.
        received: u64,
    },
    /// Data after the end of file.
    #[error("data after the end of file")]
    DataAfterEof,
    /// More unanswered control frames than a working peer causes.
    #[error("flood of control frames")]
    Flood,
    /// A resume at an offset that cannot be: acknowledged before it, or never sent.
    #[error("resumes at {stated}, not within {acked} and {sent}")]
    Resume {
        /// The peer's claim.
        stated: u64,
        /// What it acknowledged before.
        acked: u64,
        /// What we sent.
        sent: u64,
    },
}

/// What arrived, for the driver's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the stream, in order. Call [`Pipe::consume`] once they are handed on.
    Data(Bytes),
    /// The peer sends no more.
    Eof,
    /// The pipe is over, as the peer says.
    Closed(Close),
    /// The `Pong` to our `Ping`, with its 8 bytes.
    Pong(u64),
}

/// One end of a pipe after `Granted`.
#[derive(Debug)]
pub struct Pipe {
    // Sending: `sent` counts bytes framed, `transmitted` those given to the driver, `acked` those
    // that the peer took. `replay` holds the frames above `acked`, of which the last `unsent` were
    // not yet given out; `skip` bytes of its first frame are acknowledged already.
    sent: u64,
    transmitted: u64,
    acked: u64,
    replay: VecDeque<Bytes>,
    unsent: usize,
    skip: u64,
    ceiling: usize,
    eof_sent: bool,
    close: Option<Close>,
    // Receiving: `received` >= `consumed`, and `told` is what the peer knows to be safe: what was
    // consumed, or what had arrived at the last resume.
    received: u64,
    consumed: u64,
    told: u64,
    ack_due: Option<Instant>,
    eof_received: bool,
    // The peer cannot know that its end of file arrived before the connection was cut.
    eof_again: bool,
    control: VecDeque<Bytes>,
    // Between `cut` and `resume`: nothing is given out.
    parked: bool,
}

impl Pipe {
    /// A fresh pipe that keeps at most `ceiling` unacknowledged bytes.
    pub fn new(ceiling: usize) -> Self {
        Self {
            sent: 0,
            transmitted: 0,
            acked: 0,
            replay: VecDeque::new(),
            unsent: 0,
            skip: 0,
            ceiling,
            eof_sent: false,
            close: None,
            received: 0,
            consumed: 0,
            told: 0,
            ack_due: None,
            eof_received: false,
            eof_again: false,
            control: VecDeque::new(),
            parked: false,
        }
    }

    /// The connection is gone, and frames that it had not delivered with it. Until
    /// [`Pipe::resume`] nothing is given out; what is sent meanwhile is kept, within
    /// [`Pipe::room`].
    pub fn cut(&mut self) {
        self.control.clear();
        self.ack_due = None;
        self.unsent = self.replay.len();
        self.parked = true;
    }

    /// Goes on on a new connection, whose peer has got the first `theirs` bytes of ours and was
    /// told [`Pipe::received`]. All after them is given out again, an end of file and a close too.
    pub fn resume(&mut self, theirs: u64) -> Result<(), Violation> {
        if theirs < self.acked || theirs > self.transmitted {
            return Err(Violation::Resume {
                stated: theirs,
                acked: self.acked,
                sent: self.transmitted,
            });
        }
        self.cut();
        self.acknowledge(theirs)?;
        self.trim();
        self.unsent = self.replay.len();
        self.transmitted = theirs;
        self.told = self.received;
        self.eof_again = self.eof_received;
        self.parked = false;
        if self.eof_sent {
            self.say_eof();
        }
        self.say_close();
        Ok(())
    }

    /// How many more bytes may be sent before the peer acknowledges some.
    pub fn room(&self) -> usize {
        let held = usize::try_from(self.sent - self.acked).unwrap_or(usize::MAX);
        self.ceiling.saturating_sub(held)
    }

    /// Bytes framed for the peer.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that arrived from the peer.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the peer took all that was sent.
    pub fn is_acknowledged(&self) -> bool {
        self.acked == self.sent
    }

    /// Whether both directions ended.
    pub fn is_done(&self) -> bool {
        self.eof_sent && self.eof_received
    }

    /// Sends a frame made by [`frame::data`]. Callers ask [`Pipe::room`] first; one frame may
    /// overshoot it. After [`Pipe::send_eof`] it is dropped.
    pub fn send(&mut self, frame: Bytes) {
        let length = frame.len().saturating_sub(HEADER);
        if self.eof_sent || length == 0 {
            return;
        }
        self.sent += length as u64;
        self.unsent += 1;
        self.replay.push_back(frame);
    }

    /// No more data from this side.
    pub fn send_eof(&mut self) {
        if !self.eof_sent {
            self.eof_sent = true;
            self.say_eof();
        }
    }

    /// The end of the pipe. The offsets of `close` are filled in here.
    pub fn send_close(&mut self, close: Close) {
        self.close = Some(close);
        self.say_close();
    }

    /// Asks the peer for a sign of life.
    pub fn send_ping(&mut self, token: u64) {
        if !self.parked {
            self.control
                .extend(frame::control(FrameKind::Ping, &token.to_be_bytes()));
        }
    }

    /// Gives a sign of life that wants no answer.
    pub fn send_sign(&mut self) {
        if !self.parked && self.control.is_empty() {
            self.control
                .extend(frame::control(FrameKind::Pong, &[0; 8]));
        }
    }

    // Behind the data: the control queue waits for `unsent` frames (see poll_transmit).
    fn say_eof(&mut self) {
        if !self.parked {
            self.control
                .extend(frame::control(FrameKind::Eof, &self.sent.to_be_bytes()));
        }
    }

    fn say_close(&mut self) {
        if !self.parked
            && let Some(close) = &mut self.close
        {
            close.sent = self.sent;
            close.received = self.received;
            let body = serde_json::to_vec(close).unwrap_or_default();
            self.control.extend(frame::control(FrameKind::Close, &body));
        }
    }

    /// Takes what the decoder found.
    pub fn handle(&mut self, piece: Piece) -> Result<Option<Event>, Violation> {
        match piece {
            Piece::Data(bytes) if self.eof_received => {
                drop(bytes);
                Err(Violation::DataAfterEof)
            }
            Piece::Data(bytes) => {
                self.received += bytes.len() as u64;
                Ok(Some(Event::Data(bytes)))
            }
            Piece::Frame(FrameKind::Ack, body) => {
                self.acknowledge(number(FrameKind::Ack, &body)?)?;
                Ok(None)
            }
            Piece::Frame(FrameKind::Eof, body) => {
                let stated = number(FrameKind::Eof, &body)?;
                if self.eof_again && stated == self.received {
                    self.eof_again = false;
                    return Ok(None);
                }
                if stated != self.received || self.eof_received {
                    return Err(Violation::Eof {
                        stated,
                        received: self.received,
                    });
                }
                self.eof_received = true;
                Ok(Some(Event::Eof))
            }
            Piece::Frame(FrameKind::Ping, body) => {
                number(FrameKind::Ping, &body)?;
                if self.control.len() >= CONTROL_QUEUE {
                    return Err(Violation::Flood);
                }
                self.control.extend(frame::control(FrameKind::Pong, &body));
                Ok(None)
            }
            Piece::Frame(FrameKind::Pong, body) => {
                Ok(Some(Event::Pong(number(FrameKind::Pong, &body)?)))
            }
            Piece::Frame(FrameKind::Close, body) => serde_json::from_slice(&body)
                .map(|close| Some(Event::Closed(close)))
                .map_err(|_| Violation::Malformed(FrameKind::Close)),
            Piece::Frame(kind, _) => Err(Violation::Unexpected(kind)),
        }
    }

    /// The owner handed on `length` received bytes: they may be acknowledged.
    pub fn consume(&mut self, length: usize, now: Instant) {
        self.consumed = (self.consumed + length as u64).min(self.received);
        if self.consumed > self.told && self.ack_due.is_none() {
            self.ack_due = Some(now + ACK_DELAY);
        }
    }

    /// When [`Pipe::poll_transmit`] must be called again though nothing happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ack_due
    }

    /// The next bytes to write, or `None` when all is written. Acknowledgements come before
    /// data; end of file and close come after all data.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.parked {
            return None;
        }
        let owed = self.consumed.saturating_sub(self.told);
        if owed >= ACK_BYTES || self.ack_due.is_some_and(|due| due <= now) {
            self.ack_due = None;
            self.told = self.consumed;
            return frame::control(FrameKind::Ack, &self.told.to_be_bytes());
        }
        if let Some(frame) = self.replay.len().checked_sub(self.unsent).and_then(|next| {
            // `None` past the last frame: all is given out.
            self.replay.get(next).cloned()
        }) {
            self.unsent -= 1;
            self.transmitted += (frame.len() - HEADER) as u64;
            return Some(frame);
        }
        self.control.pop_front()
    }

    fn acknowledge(&mut self, acked: u64) -> Result<(), Violation> {
        if acked > self.transmitted || acked < self.acked {
            return Err(Violation::Ack {
                acked,
                sent: self.transmitted,
            });
        }
        self.skip += acked - self.acked;
        self.acked = acked;
        while let Some(first) = self.replay.front() {
            let length = (first.len() - HEADER) as u64;
            if self.skip < length {
                break;
            }
            self.skip -= length;
            if let Some(frame) = self.replay.pop_front() {
                buffers::recycle(frame);
            }
        }
        Ok(())
    }

    /// Makes the first kept frame begin at the first byte that is not acknowledged.
    fn trim(&mut self) {
        let skip = usize::try_from(std::mem::take(&mut self.skip)).unwrap_or(usize::MAX);
        if skip == 0 {
            return;
        }
        if let Some(first) = self.replay.front_mut() {
            let rest = first.get(HEADER + skip..).unwrap_or_default();
            let mut buffer = BytesMut::with_capacity(HEADER + rest.len());
            buffer.resize(HEADER, 0);
            buffer.extend_from_slice(rest);
            // Shorter than a frame that was one, and not empty: `skip` is less than its body.
            if let Some(frame) = frame::data(buffer) {
                *first = frame;
            }
        }
    }
}

fn number(kind: FrameKind, body: &[u8]) -> Result<u64, Violation> {
    body.try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| Violation::Malformed(kind))
}

#[cfg(test)]
mod tests;
