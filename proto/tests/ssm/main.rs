//! The SSM data channel against the recorded frames of the genuine programs, against itself over a
//! bad link, and against arbitrary bytes.
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(
    clippy::disallowed_methods,
    reason = "any instant will do to start from"
)]

mod any_bytes;
mod hostile;
mod link;
mod muxed;
mod replay;
mod session;
mod sim;
mod vectors;
