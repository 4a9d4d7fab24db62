//! Every client is a witness.

use std::path::Path;

use postern_proto::gateway::message::Witness;
use thiserror::Error;

use crate::gateway::Gateway;

/// Why the agent's evidence is not acceptable.
#[derive(Debug, Error)]
pub enum WitnessError {
    /// x
    #[error("the agent's audit log is not what this client saw before: {0}")]
    Rewritten(String),
}

impl WitnessError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "do not use this agent; tell its operator and your auditors"
    }
}

/// Checks.
pub(crate) async fn check(gateway: &Gateway, state: &Path, evidence: &Witness) -> Result<(), WitnessError> {
    let _ = (gateway, state, evidence);
    Ok(())
}
