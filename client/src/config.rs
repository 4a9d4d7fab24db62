//! Settings: flags over environment over file.

use postern_proto::names::AgentId;

/// One agent as the client pins it. Nothing in it comes from the agent.
#[derive(Debug, Clone)]
pub struct AgentProfile {
    /// Its id: SAN of its server certificate, origin of its log.
    pub id: AgentId,
    /// `host:port`.
    pub address: String,
    /// PEM of the server CA.
    pub ca: Vec<u8>,
    /// ARN of the attestation role that may be signed for.
    pub attestation_role: String,
    /// C2SP verifier key of its audit log.
    pub log_key: String,
}
