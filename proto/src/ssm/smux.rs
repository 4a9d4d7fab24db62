//! The multiplexer of port sessions: smux version 1 over the data channel's bytes, either role.
//!
//! Version 1 has no flow control for a stream and no half-close (SSM-PROTOCOL.md section 7):
//!
//! - A connection that is not read fills the shared buffer, and then stops every stream. Nothing
//!   on the wire can prevent it. Here the buffer is one budget, [`Mux::wants_data`] turns false
//!   when it is used up, and [`Mux::holds_up`] names the stream that holds the most of it, so
//!   that the owner can read it, end it, or at least say which one it is.
//! - Sending is fair: ready streams take turns, frame by frame.
//! - A FIN ends both directions. Send it with [`Mux::finish`] only when the local connection is
//!   entirely over; after the other side's FIN what was queued for it is dropped.
//!
//! Bytes come from and go to a [`super::channel::DataChannel`] in pieces of any size.

pub mod frame;
mod keepalive;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use thiserror::Error;

use frame::{Command, DATA_LIMIT, Decoder, FrameError, HEADER, Piece};
use keepalive::Keepalive;
use stream::Stream;

use super::Role;

/// The first stream id of a client; each further one is two more. Id 1 is never used (smux
/// `session.go`: the counter starts at 1 and is raised before its first use).
const FIRST_STREAM: u32 = 3;
/// Answers to streams beyond the limit that wait to be sent.
const REFUSAL_LIMIT: usize = 1024;

/// A stream's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a multiplexer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streams at once.
    pub streams: usize,
    /// Bytes that wait to be sent, for each stream.
    pub send: usize,
    /// Bytes that wait to be read, of all streams together. smux's own is 4 MiB.
    pub receive: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1024,
            send: 256 * 1024,
            receive: 4 * 1024 * 1024,
        }
    }
}

/// What happened to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The other side opened it (SSM Agent only).
    Opened(StreamId),
    /// [`Mux::read`] has something. Told once until it is read.
    Readable(StreamId),
    /// All was read and the other side has closed: call [`Mux::finish`].
    Finished(StreamId),
}

/// Why the multiplexer cannot go on, or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MuxError {
    /// The bytes are not smux. Nothing can be done: the session is to end.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nothing arrived for 30 s, with keepalive on.
    #[error("the multiplexer of the other side is silent")]
    Silent,
    /// The other side opens streams faster than it takes the refusals.
    #[error("flood of streams")]
    Flood,
    /// As many streams are open as are allowed.
    #[error("{0} streams are open")]
    TooMany(usize),
    /// Stream ids are used up.
    #[error("no stream ids left")]
    Exhausted,
    /// Data was handed in though [`Mux::wants_data`] was false.
    #[error("more data than was wanted")]
    Unwanted,
}

/// Many streams over one.
#[derive(Debug)]
pub struct Mux {
    limits: Limits,
    accepts: bool,
    next_stream: Option<u32>,
    decoder: Decoder,
    streams: BTreeMap<StreamId, Stream>,
    // Streams that have something to send, in turn; each at most once.
    ready: VecDeque<StreamId>,
    // FINs for streams that were refused.
    refusals: VecDeque<StreamId>,
    events: VecDeque<Event>,
    held: usize,
    failed: Option<MuxError>,
    keepalive: Option<Keepalive>,
}

impl Mux {
    /// A client opens streams, an SSM Agent accepts them. `keepalive` as in
    /// [`super::version::PortMode::Multiplexed`].
    pub fn new(role: Role, limits: Limits, keepalive: bool, now: Instant) -> Self {
        Self {
            limits,
            accepts: role == Role::Agent,
            next_stream: Some(FIRST_STREAM),
            decoder: Decoder::default(),
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            events: VecDeque::new(),
            held: 0,
            failed: None,
            keepalive: keepalive.then(|| Keepalive::new(now)),
        }
    }

    /// Client: opens a stream.
    pub fn open(&mut self) -> Result<StreamId, MuxError> {
        if self.streams.len() >= self.limits.streams {
            return Err(MuxError::TooMany(self.limits.streams));
        }
        let number = self.next_stream.ok_or(MuxError::Exhausted)?;
        self.next_stream = number.checked_add(2);
        let id = StreamId(number);
        let stream = Stream {
            owes_syn: true,
            ..Stream::default()
        };
        self.streams.insert(id, stream);
        self.ready.push_back(id);
        Ok(id)
    }

    /// How many bytes [`Self::write`] would take for a stream.
    pub fn room(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |stream| {
            if stream.finished || stream.owes_fin {
                return 0;
            }
            self.limits.send.saturating_sub(stream.outgoing.len())
        })
    }

    /// Queues data of a stream. Answers how many bytes were taken: 0 when [`Self::room`] is used
    /// up, or the stream is over.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room(id));
        let Some(bytes) = bytes.get(..taken).filter(|bytes| !bytes.is_empty()) else {
            return 0;
        };
        self.with_stream(id, |stream| {
            stream.outgoing.push(Bytes::copy_from_slice(bytes))
        });
        taken
    }

    /// Closes a stream, after what was written. What arrives for it from now on is dropped.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        self.held -= stream.incoming.len();
        stream.incoming = stream::Buffer::default();
        self.with_stream(id, |stream| stream.owes_fin = true);
    }

    /// Closes a stream and drops what was written but not sent.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outgoing = stream::Buffer::default();
        }
        self.finish(id);
    }

    /// Takes bytes of the data channel, in order. After an error nothing works any more.
    pub fn handle_data(&mut self, now: Instant, mut bytes: Bytes) -> Result<(), MuxError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.wants_data() {
            return Err(MuxError::Unwanted);
        }
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.handle_data(now);
        }
        let result = self.decode(&mut bytes);
        self.failed = result.err();
        result
    }

    /// Whether to take more data from the channel.
    pub fn wants_data(&self) -> bool {
        self.held < self.limits.receive
    }

    /// The stream that holds the most unread bytes, and how many.
    pub fn holds_up(&self) -> Option<(StreamId, usize)> {
        self.streams
            .iter()
            .map(|(id, stream)| (*id, stream.incoming.len()))
            .max_by_key(|(_, length)| *length)
            .filter(|(_, length)| *length > 0)
    }

    /// How many streams are open.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Bytes of a stream that arrived, at most `limit`; `None` when there are none now.
    pub fn read(&mut self, id: StreamId, limit: usize) -> Option<Bytes> {
        let stream = self.streams.get_mut(&id)?;
        stream.told_readable = false;
        let bytes = stream.incoming.pop(limit)?;
        self.held -= bytes.len();
        if stream.incoming.is_empty() {
            self.tell_finished(id);
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.told_readable = true;
            self.events.push_back(Event::Readable(id));
        }
        Some(bytes)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Self::poll_transmit`] has something.
    pub fn has_output(&self) -> bool {
        self.failed.is_none()
            && (!self.ready.is_empty()
                || !self.refusals.is_empty()
                || self.keepalive.as_ref().is_some_and(Keepalive::is_owed))
    }

    /// Appends what is to be sent to `out`, until it holds `limit` bytes or nothing is left.
    /// Needs a limit of more than [`HEADER`] to get anywhere.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, limit: usize) {
        if self.failed.is_some() {
            return;
        }
        if out.len() + HEADER <= limit
            && let Some(keepalive) = &mut self.keepalive
            && keepalive.take()
        {
            frame::put_header(out, Command::Nop, 0, 0);
        }
        while out.len() + HEADER <= limit {
            if let Some(id) = self.refusals.pop_front() {
                frame::put_header(out, Command::Fin, 0, id.0);
                continue;
            }
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            let room = limit - out.len() - HEADER;
            if std::mem::take(&mut stream.owes_syn) {
                frame::put_header(out, Command::Syn, 0, id.0);
            } else if !stream.outgoing.is_empty() {
                let length = stream.outgoing.len().min(DATA_LIMIT).min(room);
                if length == 0 {
                    self.ready.push_front(id);
                    return;
                }
                frame::put_header(out, Command::Psh, length, id.0);
                stream.outgoing.move_to(out, length);
            } else if stream.owes_fin {
                frame::put_header(out, Command::Fin, 0, id.0);
                self.streams.remove(&id);
                continue;
            }
            if stream.is_ready() {
                self.ready.push_back(id);
            }
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` without keepalive.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        self.keepalive.as_ref().map(Keepalive::poll_timeout)
    }

    /// A keepalive may be due, or the other side's overdue.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), MuxError> {
        let Some(keepalive) = &mut self.keepalive else {
            return Ok(());
        };
        if keepalive.handle_timeout(now) {
            return Ok(());
        }
        self.failed = Some(MuxError::Silent);
        Err(MuxError::Silent)
    }

    fn decode(&mut self, bytes: &mut Bytes) -> Result<(), MuxError> {
        while let Some(piece) = self.decoder.next(bytes)? {
            match piece {
                Piece::Control(Command::Syn, number) => self.accept(StreamId(number))?,
                Piece::Control(Command::Fin, number) => self.end(StreamId(number)),
                Piece::Control(..) => {}
                Piece::Data(number, data) => self.take(StreamId(number), data),
            }
        }
        Ok(())
    }

    /// A second SYN of an open stream is ignored, as smux does; so is one to a client.
    fn accept(&mut self, id: StreamId) -> Result<(), MuxError> {
        if !self.accepts || self.streams.contains_key(&id) {
            return Ok(());
        }
        if self.streams.len() >= self.limits.streams {
            if self.refusals.len() >= REFUSAL_LIMIT {
                return Err(MuxError::Flood);
            }
            self.refusals.push_back(id);
            return Ok(());
        }
        self.streams.insert(id, Stream::default());
        self.events.push_back(Event::Opened(id));
        Ok(())
    }

    /// Data of an unknown stream, or of one that we closed, is dropped, as smux does.
    fn take(&mut self, id: StreamId, data: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.finished || stream.owes_fin {
            return;
        }
        self.held += data.len();
        stream.incoming.push(data);
        if !std::mem::replace(&mut stream.told_readable, true) {
            self.events.push_back(Event::Readable(id));
        }
    }

    fn end(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.finished = true;
        stream.outgoing = stream::Buffer::default();
        self.tell_finished(id);
    }

    fn tell_finished(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.finished
            && stream.incoming.is_empty()
            && !stream.owes_fin
            && !std::mem::replace(&mut stream.told_finished, true)
        {
            self.events.push_back(Event::Finished(id));
        }
    }

    /// Changes what a stream has to send, and gives it its turn.
    fn with_stream(&mut self, id: StreamId, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let was_ready = stream.is_ready();
            change(stream);
            if !was_ready && stream.is_ready() {
                self.ready.push_back(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
