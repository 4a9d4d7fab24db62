//! A pipe: one resumable byte stream of a session over one TLS connection (DESIGN.md section 4).
//!
//! ```text
//! Opening ── open() ──▶ Open ── deny() ─▶ gone
//!                         └──── grant() ▶ Driver ── Relay ── close() ─▶ gone
//! ```
//!
//! [`Opening`] is the connection before the answer: it takes one `Open` and holds at most what
//! one read gave it. [`Driver`] moves frames once the pipe is granted, [`Relay`] couples it with a
//! byte stream: the target's socket, or the duplex that the SSH server reads. A lost connection is
//! no end: the driver is detached, and attached to the next. Who may do what is none of this
//! module's business.

mod budget;
mod driver;
mod opening;
mod relay;
mod scan;
mod timer;

pub(crate) use budget::{Budget, Share};
pub(crate) use driver::{Driver, Heard, PipeError};
pub(crate) use opening::{Asked, OpenError, Opening, Patience};
pub(crate) use postern_proto::gateway::buffers::{READ, give, take};
pub(crate) use relay::{Counts, Finish, Relay};
pub(crate) use timer::Timer;

#[cfg(test)]
mod tests;
