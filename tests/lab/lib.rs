//! The lab.

pub mod aws;
