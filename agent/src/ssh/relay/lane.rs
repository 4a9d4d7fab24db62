//! The two ends of a relay, and the two ways between them.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::end::End;
use super::{Asked, BATCH};
use crate::evidence::{Entry, EvidenceError, Recording};
use crate::session::ChannelRefused;
use crate::ssh::transport::Transport;

/// Bytes that are read ahead of what is being handled.
const READ_AHEAD: usize = 128 * 1024;

/// The first read of a quiet connection, and of a busy one.
pub(super) const READ_QUIET: usize = 4 * 1024;
pub(super) const READ_BUSY: usize = 64 * 1024;

/// One end of the relay.
pub(super) struct Side {
    pub(super) transport: Transport,
    /// Something was written and not flushed.
    pub(super) unflushed: bool,
    /// Bytes to ask for next.
    pub(super) read: usize,
    /// Nothing can be written to it any more.
    pub(super) deaf: bool,
}

impl Side {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            unflushed: false,
            read: READ_QUIET,
            deaf: false,
        }
    }

    pub(super) fn may_read(&self) -> bool {
        let received = self.transport.received();
        received < READ_AHEAD || received < self.transport.wanted()
    }
}

/// One way through the relay.
#[derive(Default)]
pub(super) struct Lane {
    /// What this way waits for. While a batch is recorded the next one is put together; while
    /// something is decided nothing is parsed.
    pub(super) flight: Option<BoxFuture<'static, Flight>>,
    /// Whether the flight is a decision.
    pub(super) decides: bool,
    /// How many flights began, and how many are over.
    pub(super) launched: u64,
    pub(super) landed: u64,
    /// Messages that pass when the flight is over.
    pub(super) recorded: Vec<Bytes>,
    /// What is being put together.
    pub(super) batch: Batch,
    /// A message that must wait for the batch before it.
    pub(super) parked: Option<Bytes>,
    /// No more will come from this end.
    pub(super) ended: bool,
    /// Why, when the network says.
    pub(super) failure: Option<String>,
    /// The session ends for this, once what came before it has passed.
    pub(super) fault: Option<End>,
}

impl Lane {
    /// Whether the next message may be looked at.
    pub(super) fn may_parse(&self) -> bool {
        let ahead = !self.decides && self.parked.is_none() && self.batch.bytes <= BATCH;
        self.fault.is_none() && (self.flight.is_none() || ahead)
    }

    /// Whether nothing that was read waits to be passed on.
    pub(super) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.parked.is_none() && self.batch.messages.is_empty()
    }
}

#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<(Recording, Entry)>,
    pub(super) messages: Vec<Bytes>,
    pub(super) bytes: usize,
}

/// What one way waited for.
pub(super) enum Flight {
    /// The recordings have the batch.
    Recorded(Result<(), EvidenceError>),
    /// A decision about what the message asks for.
    Decided(Asked, Result<Option<Recording>, ChannelRefused>),
}

/// The flight, when there is one; it is over then.
pub(super) async fn land(flight: &mut Option<BoxFuture<'static, Flight>>) -> Flight {
    match flight {
        Some(future) => {
            let landed = future.as_mut().await;
            *flight = None;
            landed
        }
        None => std::future::pending().await,
    }
}
