//! End-to-end tests.

mod aws;
mod connect;
mod denials;
mod harness;
mod interop;
