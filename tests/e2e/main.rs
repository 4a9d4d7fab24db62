//! End-to-end tests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod aws;
mod connect;
mod denials;
mod evidence;
mod harness;
mod interop;
mod operate;
