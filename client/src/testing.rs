//! An agent for tests: real TLS, real frames, a real SSH server behind them, in this process.

mod agent;
mod log;
mod pki;
mod ssh;
pub(crate) mod store;

pub(crate) use agent::{FakeAgent, Script};
pub(crate) use log::FakeLog;
pub(crate) use pki::Pki;
pub(crate) use ssh::pattern;

use crate::config::AgentProfile;

/// A profile of which only the type matters.
pub(crate) fn profile() -> AgentProfile {
    AgentProfile {
        id: "bastion-1".parse().unwrap(),
        address: "127.0.0.1:1".to_owned(),
        ca: Vec::new(),
        attestation_role: "arn:aws:iam::111122223333:role/postern-attestation".to_owned(),
        log_key: FakeLog::default().key(),
        sts_host: None,
    }
}
