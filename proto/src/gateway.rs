//! The protocol between client and agent (DESIGN.md section 4).
//!
//! A connection is TLS 1.3 with exactly one of the protocols below chosen by ALPN. On
//! [`ALPN_PIPE`] one connection carries one *pipe*: frames of a type, a length and a body.
//!
//! ```text
//! client                                  agent
//!   Open ─────────────────────────────────▶   one chance, short deadline
//!   Data (at most 64 KiB before Granted) ─▶   not read further, not handed on
//!   ◀────────────────── Granted | Denied
//!   Data, Eof, Ack, Ping, Pong ◀──────────▶   offsets count bytes, not frames
//!   Close ◀───────────────────────────────▶   final offsets, exit status, checkpoint
//! ```
//!
//! A TLS end without `Close` is a lost network, never an end of file: the pipe goes on on a new
//! connection, which begins with `Resume` ([`resume`]).

pub mod buffers;
pub mod frame;
pub mod message;
pub mod pipe;
pub mod resume;

/// ALPN name of a pipe: mutual TLS.
pub const ALPN_PIPE: &[u8] = b"postern/1";
/// ALPN name of an enrolment: the server proves itself, the client has no certificate yet.
pub const ALPN_ENROLL: &[u8] = b"postern-enroll/1";
/// ALPN name of administration and audit reading: HTTP over mutual TLS.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// Bytes of data that a client may send before `Granted`.
pub const EARLY_DATA: usize = 64 * 1024;
