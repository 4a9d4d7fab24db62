//! The SSM route: sessions of AWS Systems Manager, spoken by ourselves.
//!
//! ```text
//! connect ─ shell ──┐
//! forward ─ pool ───┼─ Session ─ driver ─ DataChannel (proto) ─ socket ─ TLS ─ ssmmessages
//! proxy ────────────┘               └──── api (Start, Resume, Terminate), kms
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`api`] | calls to SSM, with fresh credentials each; alone names its SDK |
//! | [`kms`] | the data key of an encrypted session; alone names that SDK |
//! | [`target`] | what a person typed -> one managed node |
//! | [`claim`] | what the evidence says of a session |
//! | [`document`] | which SSM document runs what |
//! | [`session`] | [`Session`]: the handle that everybody else uses |
//! | `driver` | one task for each session: data channel, connection |
//! | `way_back` | the next connection: ResumeSession, back-off |
//! | `watchdog` | a target that is gone |
//! | `socket` | a WebSocket over our own TLS |
//! | [`exit_status`] | a command's status where the document carries none |
//! | [`forward`] | listeners, and their connections |
//! | `pool` | the sessions of one forward |
//! | `mux`, `basic` | many connections over a session; one |
//! | `relay` | one connection |
//! | `notice` | what is told while they run |
//! | [`raw`] | one stream, for SSH on top |
//! | [`claim`] | the evidence of a session, as it begins |
//! | [`shell`] | a session on this process's terminal and streams |
//! | [`error`] | why not, with hints |
//!
//! A driver task is owned by its [`Ssm`]: whatever happens to the handle, the session is ended at
//! AWS too, and [`Ssm::settle`] waits for that. An SSM session outlives the credentials that
//! started it and nobody else ends it.

pub mod api;
mod basic;
pub mod claim;
pub mod document;
mod driver;
pub mod error;
pub mod exit_status;
pub mod forward;
pub mod kms;
#[cfg(test)]
mod messages;
mod mux;
mod notice;
mod pool;
pub mod raw;
mod relay;
pub mod session;
pub mod shell;
mod socket;
pub mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unanswered;
mod watchdog;
mod way_back;

pub use api::Ssm;
pub use error::SsmError;
pub use session::{End, Event, Reader, Session, Start, Writer};
