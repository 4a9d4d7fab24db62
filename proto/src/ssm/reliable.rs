//! Numbering, acknowledgement, resending and reordering: one queue for each direction, the same
//! for both roles. Knows nothing of handshakes.
//!
//! The wire's rules (SSM-PROTOCOL.md section 3, SSM Agent `session/datachannel/datachannel.go`,
//! plugin `datachannel/streaming.go`): each direction numbers its messages from 0 for the life of
//! the session, reconnects included; each is acknowledged by itself; a number below the expected
//! one is acknowledged again; there is no window on the wire.
//!
//! Where the peers lose data or time, this does otherwise within those rules:
//!
//! - a full queue refuses the write; nothing unacknowledged is ever forgotten;
//! - a message is taken for lost when three sent after it were acknowledged, so a burst of losses
//!   costs one round trip, not a tenth of a second each;
//! - a number below the expected one is acknowledged again always (the plugin does not, and then
//!   hangs), and never processed twice;
//! - after a reconnect all that is unacknowledged goes out again at once, oldest first.

mod receive;
mod send;

pub use receive::{Arrival, ReceiveQueue};
pub use send::{AckError, SendQueue};

/// How much a [`SendQueue`] or a [`ReceiveQueue`] may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in flight at the start and after connections were lost.
    pub least_window: usize,
    /// Bytes in flight at most, headers included. The window grows to it with what is
    /// acknowledged: what AWS's service lets through is not known, and others report that it
    /// closes channels on which much is outstanding.
    pub greatest_window: usize,
    /// Messages in flight at most. Below 10,000, which is all that the plugin keeps.
    pub messages: usize,
    /// Bytes of messages that are kept because an earlier one is missing.
    pub held_bytes: usize,
    /// How far ahead of the expected number a message may be to be kept.
    pub held_messages: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            least_window: 256 * 1024,
            greatest_window: 4 * 1024 * 1024,
            messages: 8_000,
            held_bytes: 8 * 1024 * 1024,
            held_messages: 10_000,
        }
    }
}
