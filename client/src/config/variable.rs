//! Every variable that the client reads, in one place. AWS's own are in `identity::aws`.

/// Configuration file.
pub const CONFIG: &str = "POSTERN_CONFIG";
/// `host:port` of the one agent; its companions are then needed too.
pub const AGENT: &str = "POSTERN_AGENT";
/// The agent's id.
pub const AGENT_ID: &str = "POSTERN_AGENT_ID";
/// Path of the server CA (PEM).
pub const AGENT_CA: &str = "POSTERN_AGENT_CA";
/// ARN of the attestation role.
pub const ATTESTATION_ROLE: &str = "POSTERN_ATTESTATION_ROLE";
/// Verifier key of the agent's audit log.
pub const LOG_KEY: &str = "POSTERN_LOG_KEY";
/// `host[:port]` of the STS endpoint that the agent uses, when it is neither AWS's regional one
/// nor the one of the AWS profile.
pub const STS_HOST: &str = "POSTERN_STS_HOST";
/// Login user on targets.
pub const USER: &str = "POSTERN_USER";
/// `auto`, `secret-service`, `kernel` or `file`.
pub const KEYRING: &str = "POSTERN_KEYRING";
/// Folder of what the client keeps.
pub const STATE: &str = "POSTERN_STATE";
/// Folder of an audit store.
pub const STORE: &str = "POSTERN_STORE";
/// The auditor's age identity file.
pub const AUDITOR_IDENTITY: &str = "POSTERN_AUDITOR_IDENTITY";
/// SSM sessions of one forward at once.
pub const SSM_SESSIONS: &str = "POSTERN_SSM_SESSIONS";
/// Route to targets: `auto`, `bastion` or `ssm`.
pub const VIA: &str = "POSTERN_VIA";
/// Folder of the evidence that this client writes itself.
pub const EVIDENCE: &str = "POSTERN_EVIDENCE";
/// Age recipients of its auditors, separated by commas.
pub const AUDITORS: &str = "POSTERN_AUDITORS";
/// The six digits.
pub const MFA_CODE: &str = "POSTERN_MFA_CODE";

/// All of them.
pub const ALL: [&str; 17] = [
    CONFIG,
    AGENT,
    AGENT_ID,
    AGENT_CA,
    ATTESTATION_ROLE,
    LOG_KEY,
    STS_HOST,
    USER,
    KEYRING,
    STATE,
    STORE,
    AUDITOR_IDENTITY,
    SSM_SESSIONS,
    VIA,
    EVIDENCE,
    AUDITORS,
    MFA_CODE,
];
