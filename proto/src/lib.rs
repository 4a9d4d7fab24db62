//! What Postern's programs say to each other and leave behind, as pure code.
//!
//! | module | owns |
//! |---|---|
//! | [`wire`] | the bounded reader and writer that every codec uses |
//! | [`names`] | identifiers that are valid once parsed |
//! | [`gateway`] | the protocol between client and agent: frames, messages, pipes |
//! | [`enroll`] | the proof that AWS attests who calls and that MFA was used |
//! | [`audit`] | events, the transparency log's layout, and its verification |
//! | [`recording`] | the encrypted file that holds what passed through a session |
//! | [`ssm`] | the data channel of AWS Session Manager: the route without our agent |
//!
//! Nothing here does I/O, reads a clock or draws randomness: callers hand in bytes, `now` and
//! seeds. Everything that arrives is hostile: lengths are capped before memory is taken, and no
//! input panics.
#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used
)]

pub mod audit;
pub mod enroll;
pub mod gateway;
pub mod names;
pub mod recording;
pub mod ssm;
pub mod wire;
