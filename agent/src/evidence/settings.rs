//! How the store is kept.

use std::path::PathBuf;
use std::time::Duration;

use postern_proto::names::AgentId;
use secrecy::SecretString;

const MIB: u64 = 1024 * 1024;

/// How the store is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's folder. Made when missing.
    pub folder: PathBuf,
    /// The agent: the log's origin.
    pub agent: AgentId,
    /// The log's secret key (C2SP, `PRIVATE+KEY+…`), named like the agent.
    pub signing_key: SecretString,
    /// The key before, while it changes: it names the new one in the log, and both sign.
    pub previous_key: Option<SecretString>,
    /// The auditors' age recipients (X25519), one at least.
    pub recipients: Vec<String>,
    /// Bytes that must be free for a session to start.
    pub free_floor: u64,
    /// Recording bytes of one session.
    pub session_quota: u64,
    /// Recording bytes of one principal in 24 hours.
    pub principal_quota: u64,
    /// Whether terminals' input is recorded. It holds passwords.
    pub record_input: bool,
    /// Programs whose streams are recorded as digest, counts and first MiB (`rsync`, `git`, …).
    pub bulk_programs: Vec<String>,
    /// What a write or flush may take before the store counts as failed.
    pub deadline: Duration,
    /// How often the log states the length of a recording that grows: at least every 10 s, of
    /// which some is for flush and commit.
    pub progress: Duration,
    /// Without more to write for so long, a recording's file is closed.
    pub quiet: Duration,
}

impl Settings {
    /// The defaults: 1 GiB floor, 4 GiB a session, 32 GiB a principal, no input, nothing bulk.
    pub fn new(
        folder: PathBuf,
        agent: AgentId,
        signing_key: SecretString,
        recipients: Vec<String>,
    ) -> Self {
        Self {
            folder,
            agent,
            signing_key,
            previous_key: None,
            recipients,
            free_floor: 1024 * MIB,
            session_quota: 4 * 1024 * MIB,
            principal_quota: 32 * 1024 * MIB,
            record_input: false,
            bulk_programs: Vec::new(),
            deadline: Duration::from_secs(1),
            progress: Duration::from_secs(8),
            quiet: Duration::from_secs(5),
        }
    }
}
