//! End-to-end tests.

mod aws;
mod connect;
mod denials;
mod evidence;
mod harness;
mod interop;
