//! `lab bench`: section 11's table, measured beside OpenSSH and direct TCP in the same run.

pub mod cost;
pub mod delay;
