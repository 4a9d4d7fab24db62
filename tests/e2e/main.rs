//! End-to-end tests.

mod aws;
