//! Many connections over one port session: each holds a [`Stream`], one carrier moves the bytes.
//!
//! ```text
//! local connection ─ Stream ─┐
//! local connection ─ Stream ─┼─ Mux ─ carrier ─ Session ─ SSM Agent
//! local connection ─ Stream ─┘
//! ```
//!
//! What the protocol forces (smux version 1 has no flow control for a stream, and no half-close):
//!
//! - Towards us, a session may hold [`HELD`] bytes that local programs have not taken. Below that
//!   a slow one holds up nobody. Above it nothing more is taken for any stream of this session
//!   until it reads or hangs up; who it is, is told ([`Streams::space`]). Other sessions of the
//!   pool go on, and new connections avoid a full one.
//! - Towards the target, the SSM Agent takes 4 MiB for all streams of a session, then waits for
//!   the destination that does not read. That is the same stall; nothing tells us which it is.
//! - A stream ends both ways at once: see [`super::relay`].
//!
//! Sending is fair, frame by frame, and bounded for each stream by [`QUEUED`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::Role;
use postern_proto::ssm::smux::frame::HEADER;
use postern_proto::ssm::smux::{Event, Limits, Mux, MuxError, StreamId};
use tokio::sync::Notify;

use crate::error::Error;

/// Bytes that wait for local programs, of all streams of a session together.
pub(super) const HELD: usize = 16 * 1024 * 1024;
/// Bytes that wait to be sent, of one stream.
const QUEUED: usize = 128 * 1024;
/// Streams of a session at once.
const STREAMS: usize = 1024;
/// Bytes handed to a local program at once.
const READ: usize = 64 * 1024;
/// How long a full buffer is borne before somebody is told who holds it.
const HOLD_UP: Duration = Duration::from_secs(5);

/// Nothing that is written gets anywhere any more; the reading side has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deaf;

/// All streams of one session. Clones share them.
#[derive(Clone)]
pub(super) struct Streams(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something waits to be sent.
    output: Notify,
    /// There is room again for what arrives.
    space: Notify,
    /// Everything was sent.
    drained: Notify,
}

struct State {
    mux: Mux,
    entries: BTreeMap<StreamId, Entry>,
    /// Destinations that refused: the flag does not say of which stream.
    refusals: usize,
    over: Option<Error>,
}

struct Entry {
    peer: SocketAddr,
    arrived: Arc<Notify>,
    moved: Arc<Notify>,
    /// Whether the writer waits for room.
    is_blocked: bool,
    /// Whether any byte arrived.
    is_heard: bool,
    /// The destination's end was told and all before it read.
    is_finished: bool,
    /// The destination refused the connection.
    is_refused: bool,
    /// Why it was given up though its session goes on.
    given_up: Option<Error>,
}

/// Who holds up a session, and with how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HoldUp {
    /// The local program's address.
    pub(super) peer: SocketAddr,
    /// Bytes that it has not taken.
    pub(super) bytes: usize,
    /// Streams that wait for it.
    pub(super) others: usize,
}

impl Streams {
    /// For a session that has just opened. `keepalive` as its handshake says.
    pub(super) fn new(keepalive: bool, now: Instant) -> Self {
        let limits = Limits {
            streams: STREAMS,
            send: QUEUED,
            receive: HELD,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                mux: Mux::new(Role::Client, limits, keepalive, now),
                entries: BTreeMap::new(),
                refusals: 0,
                over: None,
            }),
            output: Notify::new(),
            space: Notify::new(),
            drained: Notify::new(),
        }))
    }

    /// A stream to the session's destination, for the connection of `peer`.
    pub(super) fn open(&self, peer: SocketAddr) -> Result<Stream, Error> {
        let mut state = self.lock();
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        let opened = state.mux.open();
        let id = opened.map_err(|error| Error::failed(error.to_string()))?;
        let (arrived, moved) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let entry = Entry {
            peer,
            arrived: Arc::clone(&arrived),
            moved: Arc::clone(&moved),
            is_blocked: false,
            is_heard: false,
            is_finished: false,
            is_refused: false,
            given_up: None,
        };
        state.entries.insert(id, entry);
        drop(state);
        self.0.output.notify_one();
        Ok(Stream {
            streams: self.clone(),
            id,
            arrived,
            moved,
        })
    }

    /// How many connections hold a stream.
    pub(super) fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether a slow local program holds up everything.
    pub(super) fn is_full(&self) -> bool {
        !self.lock().mux.wants_data()
    }

    /// Why the session is over, if it is.
    pub(super) fn over(&self) -> Option<Error> {
        self.lock().over.clone()
    }

    /// Carrier: waits for something to send. Cancel-safe.
    pub(super) async fn has_output(&self) {
        while !self.lock().mux.has_output() {
            self.0.output.notified().await;
        }
    }

    /// Carrier: what is to be sent now, at most `limit` bytes, which must be more than a header.
    pub(super) fn output(&self, limit: usize) -> Vec<u8> {
        debug_assert!(limit > HEADER);
        let mut out = Vec::with_capacity(limit);
        let mut state = self.lock();
        state.mux.poll_transmit(&mut out, limit);
        state.wake_writers();
        if !state.mux.has_output() {
            self.0.drained.notify_one();
        }
        out
    }

    /// Waits until nothing waits to be sent, for the end of it all.
    pub(super) async fn drained(&self) {
        loop {
            {
                let state = self.lock();
                if !state.mux.has_output() || state.over.is_some() {
                    return;
                }
            }
            self.0.drained.notified().await;
        }
    }

    /// Carrier: bytes of the session, in order. An error is the end of the session.
    pub(super) fn handle_data(&self, now: Instant, bytes: Bytes) -> Result<(), MuxError> {
        let mut state = self.lock();
        let result = state.mux.handle_data(now, bytes);
        state.dispatch();
        result
    }

    /// Carrier: the SSM Agent says that a destination refused the connection.
    pub(super) fn handle_refusal(&self) {
        self.lock().refusals += 1;
    }

    /// Carrier: a keepalive may be due. Returns when to call again.
    pub(super) fn handle_timeout(&self, now: Instant) -> Result<Option<Instant>, MuxError> {
        let mut state = self.lock();
        state.mux.handle_timeout(now)?;
        let has_output = state.mux.has_output();
        let next = state.mux.poll_timeout();
        drop(state);
        if has_output {
            self.0.output.notify_one();
        }
        Ok(next)
    }

    /// Carrier: waits until data may be handed in. Calls `told` once if a local program holds
    /// everything up meanwhile. Cancel-safe.
    pub(super) async fn space(&self, told: impl FnOnce(HoldUp)) {
        self.space_after(HOLD_UP, told).await;
    }

    async fn space_after(&self, patience: Duration, told: impl FnOnce(HoldUp)) {
        let has_space = tokio::time::timeout(patience, self.has_space());
        if has_space.await.is_ok() {
            return;
        }
        if let Some(hold_up) = self.hold_up() {
            told(hold_up);
        }
        self.has_space().await;
    }

    /// Carrier: gives up the streams on which nothing ever came; returns whose they were.
    pub(super) fn give_up_unheard(&self, why: &Error) -> Vec<SocketAddr> {
        let mut state = self.lock();
        let mut peers = Vec::new();
        for entry in state.entries.values_mut() {
            if !entry.is_heard && !entry.is_finished && entry.given_up.is_none() {
                entry.given_up = Some(why.clone());
                peers.push(entry.peer);
                entry.arrived.notify_one();
                entry.moved.notify_one();
            }
        }
        peers
    }

    /// Carrier: nothing moves any more.
    pub(super) fn end(&self, over: Error) {
        let mut state = self.lock();
        state.over.get_or_insert(over);
        for entry in state.entries.values() {
            entry.arrived.notify_one();
            entry.moved.notify_one();
        }
        drop(state);
        self.0.space.notify_one();
        self.0.drained.notify_one();
    }

    async fn has_space(&self) {
        loop {
            {
                let state = self.lock();
                if state.mux.wants_data() || state.over.is_some() {
                    return;
                }
            }
            self.0.space.notified().await;
        }
    }

    fn hold_up(&self) -> Option<HoldUp> {
        let state = self.lock();
        let (id, bytes) = state.mux.holds_up()?;
        Some(HoldUp {
            peer: state.entries.get(&id)?.peer,
            bytes,
            others: state.entries.len().saturating_sub(1),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Wakes whoever the multiplexer has news for.
    fn dispatch(&mut self) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Readable(id) => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.is_heard = true;
                        entry.arrived.notify_one();
                    }
                }
                Event::Finished(id) => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        // A destination that refuses sends nothing.
                        if !entry.is_heard && self.refusals > 0 {
                            self.refusals -= 1;
                            entry.is_refused = true;
                        }
                        entry.is_finished = true;
                        entry.arrived.notify_one();
                        entry.moved.notify_one();
                    }
                }
                // To a client nobody opens streams.
                Event::Opened(id) => self.mux.finish(id),
            }
        }
    }

    fn wake_writers(&mut self) {
        for (id, entry) in &mut self.entries {
            if entry.is_blocked && self.mux.room(*id) > 0 {
                entry.is_blocked = false;
                entry.moved.notify_one();
            }
        }
    }
}

/// One connection's stream. Dropped, it ends: what was written is still sent, then the SSM Agent
/// closes the connection to the destination. What arrives afterwards is dropped. One task may
/// read and one write at a time.
pub(super) struct Stream {
    streams: Streams,
    id: StreamId,
    arrived: Arc<Notify>,
    moved: Arc<Notify>,
}

impl Stream {
    /// What arrived; `None` once the destination has closed and all was read. Cancel-safe.
    pub(super) async fn read(&self) -> Result<Option<Bytes>, Error> {
        loop {
            {
                let mut state = self.streams.lock();
                if let Some(bytes) = state.mux.read(self.id, READ) {
                    state.dispatch();
                    let has_space = state.mux.wants_data();
                    drop(state);
                    if has_space {
                        self.streams.0.space.notify_one();
                    }
                    return Ok(Some(bytes));
                }
                let entry = state.entries.get(&self.id);
                if entry.is_none_or(|entry| entry.is_finished) {
                    return Ok(None);
                }
                let given_up = entry.and_then(|entry| entry.given_up.as_ref());
                if let Some(over) = state.over.as_ref().or(given_up) {
                    return Err(over.clone());
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Queues all of `bytes`; waits while the queue is full.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> Result<(), Deaf> {
        loop {
            {
                let mut state = self.streams.lock();
                if state.over.is_some() {
                    return Err(Deaf);
                }
                let taken = state.mux.write(self.id, bytes);
                bytes = bytes.get(taken..).unwrap_or_default();
                let entry = state.entries.get_mut(&self.id);
                let goes_on = |entry: &&mut Entry| !entry.is_finished && entry.given_up.is_none();
                let Some(entry) = entry.filter(goes_on) else {
                    return Err(Deaf);
                };
                entry.is_blocked = !bytes.is_empty();
                drop(state);
                if taken > 0 {
                    self.streams.0.output.notify_one();
                }
                if bytes.is_empty() {
                    return Ok(());
                }
            }
            self.moved.notified().await;
        }
    }

    /// Whether the destination refused the connection, once [`Self::read`] has ended.
    pub(super) fn is_refused(&self) -> bool {
        let state = self.streams.lock();
        let entry = state.entries.get(&self.id);
        entry.is_some_and(|entry| entry.is_refused)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        state.mux.finish(self.id);
        state.entries.remove(&self.id);
        drop(state);
        self.streams.0.output.notify_one();
        self.streams.0.space.notify_one();
    }
}

#[cfg(test)]
mod tests;
