//! What a person typed, made into one managed node.

use super::api::Ssm;
use super::error::SsmError;

/// A node that SSM manages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `i-…` or `mi-…`.
    pub id: String,
    /// What the person called it, for display.
    pub name: String,
    /// Private address, as SSM knows it.
    pub address: String,
    /// `Online`, `ConnectionLost`, `Inactive`.
    pub status: String,
    /// Version of its SSM Agent.
    pub agent_version: String,
    /// `Linux`, `Windows`, `MacOS`.
    pub platform: String,
}

/// Finds the one node that `typed` names: an id, an address, a host name, a Name tag or
/// `tag:KEY=VALUE`. Several are an error that lists them; one that is offline is an error too.
pub async fn find(ssm: &Ssm, typed: &str) -> Result<Node, SsmError> {
    let _ = (ssm, typed);
    Err(SsmError::NoTarget(typed.to_owned()))
}
