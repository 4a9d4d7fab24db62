//! `agent.toml`: every setting, its meaning and its default, in one place.
//!
//! A file is read in three steps: TOML into [`Config`] (an unknown key is an error that names the
//! nearest right one), relative paths resolved against the file's folder, then `Config::check`.
//! What is not in the file has the default stated at its field.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use postern_proto::names::{AccountId, AgentId};
use serde::Deserialize;

mod error;
mod role;
mod units;
mod validate;

pub use error::ConfigError;
pub(crate) use error::unknown_key;
pub use role::RoleArn;
pub use units::{format_duration, parse_duration, parse_size};

/// Where `postern-agent` looks when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/postern/agent.toml";
/// The longest configuration file, in bytes.
const FILE_LIMIT: u64 = 1024 * 1024;

/// All settings of one agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The agent's name: SAN of its server certificate, origin of its audit log. Required.
    pub id: AgentId,
    /// Where clients connect. Default `0.0.0.0:8443`.
    #[serde(default = "defaults::listen")]
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served, in clear text. Default
    /// `127.0.0.1:9180`.
    #[serde(default = "defaults::health_listen")]
    pub health_listen: SocketAddr,
    /// What the agent itself writes: pinned host keys, the local spool. Default
    /// `/var/lib/postern`.
    #[serde(default = "defaults::state")]
    pub state: PathBuf,
    /// Private keys and certificates, as `init` made them. Default `keys` beside the file. A
    /// systemd credential of the same name wins over a file.
    #[serde(default = "defaults::keys")]
    pub keys: PathBuf,
    /// Cedar policies, `*.cedar`. Default `policy` beside the file.
    #[serde(default = "defaults::policy")]
    pub policy: PathBuf,
    /// Who may not come in any more; see [`crate::identity::DenyList`]. Default `deny` beside
    /// the file; no such file means nobody is denied.
    #[serde(default = "defaults::deny")]
    pub deny: PathBuf,
    /// Where targets come from.
    #[serde(default)]
    pub inventory: InventorySettings,
    /// How the agent speaks to AWS STS.
    pub sts: StsSettings,
    /// The role that attests MFA.
    pub attestation: AttestationSettings,
    /// Client certificates.
    #[serde(default)]
    pub certificate: CertificateSettings,
    /// Which agents' client certificates are accepted.
    #[serde(default)]
    pub trust: TrustSettings,
    /// How targets are dialled.
    #[serde(default)]
    pub dial: DialSettings,
    /// The audit log and recordings.
    pub evidence: EvidenceSettings,
    /// Ceilings that keep one client from starving the rest.
    #[serde(default)]
    pub limits: LimitSettings,
    /// Lifetimes of sessions.
    #[serde(default)]
    pub session: SessionSettings,
}

/// Where targets come from. At least one source is needed for anything to be reachable.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InventorySettings {
    /// A file of hosts, read again when it changes. Default none.
    pub file: Option<PathBuf>,
    /// EC2 instances. Default none.
    pub ec2: Option<Ec2Settings>,
}

/// EC2 as a source of targets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ec2Settings {
    /// Regions to list, at least one. Required.
    pub regions: Vec<String>,
    /// `https://HOST[:PORT]` in place of AWS's own endpoint. Default none.
    #[serde(default)]
    pub endpoint_url: Option<String>,
    /// PEM file of the CAs of that endpoint. Default the system's roots.
    #[serde(default)]
    pub ca_bundle: Option<PathBuf>,
    /// How the agent logs in to instances. Default `certificate`.
    #[serde(default)]
    pub login: LoginMethod,
    /// How often instances are listed. Default `60s`.
    #[serde(default = "defaults::refresh", with = "units::duration")]
    pub refresh: Duration,
}

/// How the agent authenticates to a target's sshd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoginMethod {
    /// A short-lived certificate of the agent's SSH user CA, which the target trusts.
    #[default]
    Certificate,
    /// A throw-away key pushed with EC2 Instance Connect.
    InstanceConnect,
}

/// How the agent speaks to AWS STS. Nothing of it comes from the environment or from a client.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StsSettings {
    /// The region whose endpoint is asked and that requests are signed for. Required.
    pub region: String,
    /// `https://HOST[:PORT]` of a VPC endpoint. Default the region's public endpoint. Private
    /// addresses are accepted for a configured endpoint only.
    #[serde(default)]
    pub endpoint_url: Option<String>,
    /// PEM file of the CAs of the endpoint. Default the system's roots.
    #[serde(default)]
    pub ca_bundle: Option<PathBuf>,
    /// Accounts whose users may enrol. Default the account of the attestation role.
    #[serde(default)]
    pub accounts: Vec<AccountId>,
}

/// The role that attests MFA (AWS-FACTS.md B.3).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationSettings {
    /// Its ARN. Required.
    pub role: RoleArn,
    /// How old MFA may be: at least what the role's trust policy allows. Default `12h`.
    #[serde(default = "defaults::mfa_max_age", with = "units::duration")]
    pub mfa_max_age: Duration,
    /// `https://HOST[:PORT]` in place of IAM's own endpoint, for reading the trust policy; its
    /// CAs are those of `sts.ca_bundle`. Default none.
    #[serde(default)]
    pub iam_endpoint_url: Option<String>,
    /// How often the role is checked. Default `1h`.
    #[serde(default = "defaults::attestation_interval", with = "units::duration")]
    pub interval: Duration,
}

/// Client certificates.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificateSettings {
    /// How long one lives, from 5 minutes to 12 hours. Default `1h`.
    #[serde(with = "units::duration")]
    pub lifetime: Duration,
}

impl Default for CertificateSettings {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(3600),
        }
    }
}

/// Which agents' client certificates are accepted besides this agent's own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustSettings {
    /// The other agents that this one trusts. Default none.
    pub agents: Vec<TrustedAgent>,
    /// Agents whose certificates are refused, this one's included. Default none.
    pub withdrawn: Vec<AgentId>,
}

/// Another agent that issues client certificates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedAgent {
    /// Its id. Required.
    pub id: AgentId,
    /// PEM file of its client-CA intermediate. Required.
    pub intermediate: PathBuf,
}

/// How targets are dialled.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DialSettings {
    /// The local address to dial from. Default the system's choice. It also goes into SSH
    /// certificates as `source-address`.
    pub source_address: Option<IpAddr>,
    /// Networks that may be dialled although they are loopback, link-local or the agent's own.
    /// Default none.
    pub allow: Vec<IpNet>,
    /// How long resolving and connecting may take together. Default `10s`.
    #[serde(with = "units::duration")]
    pub deadline: Duration,
}

impl Default for DialSettings {
    fn default() -> Self {
        Self {
            source_address: None,
            allow: vec![],
            deadline: Duration::from_secs(10),
        }
    }
}

/// The audit log and recordings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceSettings {
    /// The store's folder. Default `evidence` in the state folder.
    #[serde(default)]
    pub store: Option<PathBuf>,
    /// age recipients (`age1…`) of the auditors: one is required, two or more are wise.
    pub recipients: Vec<String>,
    /// Name of the audit log's key before the present one, in the keys folder or among systemd's
    /// credentials: it signs the new key in the log, and every checkpoint beside it. Default none.
    #[serde(default)]
    pub previous_key: Option<String>,
    /// Free bytes below which no session starts. Default `1GiB`.
    #[serde(default = "defaults::free_floor", with = "units::size")]
    pub free_floor: u64,
    /// Recording bytes of one session. Default `16GiB`.
    #[serde(default = "defaults::session_quota", with = "units::size")]
    pub session_quota: u64,
    /// Recording bytes of one principal in 24 hours. Default `64GiB`.
    #[serde(default = "defaults::principal_quota", with = "units::size")]
    pub principal_quota: u64,
    /// Whether terminal input is recorded: it holds passwords. Default `false`.
    #[serde(default)]
    pub record_input: bool,
    /// Programs whose streams are recorded as digest, counts and first MiB: `rsync`, `git`,
    /// `scp` and the like. Whoever may run one can move what he likes through it. Default none.
    #[serde(default)]
    pub bulk_programs: Vec<String>,
    /// How long recordings are kept after they ended; entries of the log stay for ever. Default
    /// for ever.
    #[serde(default, with = "units::optional_duration")]
    pub retention: Option<Duration>,
}

/// Ceilings that keep one client from starving the rest.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Connections at one time. Default 20000.
    pub connections: usize,
    /// Connections that are not authenticated yet. Default 512.
    pub unauthenticated: usize,
    /// The same, from one address. Default 64.
    pub unauthenticated_per_address: usize,
    /// Enrolments at one time: each asks STS twice. Default 64.
    pub enrollments: usize,
    /// The same, from one address. Default 8.
    pub enrollments_per_address: usize,
    /// Pipes of one principal. Default 2048.
    pub pipes_per_principal: usize,
    /// Sessions of one principal. Default 128.
    pub sessions_per_principal: usize,
    /// How long running sessions have to end by themselves after SIGTERM, before they are ended.
    /// Default `30s`.
    #[serde(with = "units::duration")]
    pub drain: Duration,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            connections: 20_000,
            unauthenticated: 512,
            unauthenticated_per_address: 64,
            enrollments: 64,
            enrollments_per_address: 8,
            pipes_per_principal: 2048,
            sessions_per_principal: 128,
            drain: Duration::from_secs(30),
        }
    }
}

/// Lifetimes of sessions.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionSettings {
    /// How long a grant lasts. Default `12h`.
    #[serde(with = "units::duration")]
    pub grant: Duration,
    /// How long a session waits for its client after the network was lost. Default `1h`.
    #[serde(with = "units::duration")]
    pub detach: Duration,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            grant: Duration::from_secs(12 * 3600),
            detach: Duration::from_secs(3600),
        }
    }
}

/// Defaults of settings whose section has required keys beside them.
mod defaults {
    use super::*;

    pub(super) fn listen() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443))
    }
    pub(super) fn health_listen() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 9180))
    }
    pub(super) fn state() -> PathBuf {
        "/var/lib/postern".into()
    }
    pub(super) fn keys() -> PathBuf {
        "keys".into()
    }
    pub(super) fn policy() -> PathBuf {
        "policy".into()
    }
    pub(super) fn deny() -> PathBuf {
        "deny".into()
    }
    pub(super) fn refresh() -> Duration {
        Duration::from_secs(60)
    }
    pub(super) fn mfa_max_age() -> Duration {
        Duration::from_secs(12 * 3600)
    }
    pub(super) fn attestation_interval() -> Duration {
        Duration::from_secs(3600)
    }
    pub(super) fn free_floor() -> u64 {
        1 << 30
    }
    pub(super) fn session_quota() -> u64 {
        16 << 30
    }
    pub(super) fn principal_quota() -> u64 {
        64 << 30
    }
}

impl Config {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = || {
            let mut text = String::new();
            std::fs::File::open(path)?
                .take(FILE_LIMIT + 1)
                .read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|source: std::io::Error| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(ConfigError::TooLong {
                path: path.to_owned(),
                limit: FILE_LIMIT,
            });
        }
        Self::parse(&text, path)
    }

    /// Reads and validates a text; `path` is for messages and for relative paths in it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|fault| ConfigError::from_toml(path, text, &fault))?;
        config.resolve(path.parent().unwrap_or_else(|| Path::new("")));
        config.check().map_err(|fault| fault.into_error(path))?;
        Ok(config)
    }

    /// The folder of the audit log and the recordings.
    pub fn evidence_store(&self) -> PathBuf {
        self.evidence
            .store
            .clone()
            .unwrap_or_else(|| self.state.join("evidence"))
    }

    /// Accounts whose users may enrol: never empty.
    pub fn accounts(&self) -> Vec<AccountId> {
        if self.sts.accounts.is_empty() {
            vec![self.attestation.role.account().clone()]
        } else {
            self.sts.accounts.clone()
        }
    }

    /// Makes relative paths relative to the file, not to where the agent was started.
    fn resolve(&mut self, folder: &Path) {
        let ec2 = self.inventory.ec2.as_mut();
        let paths = [
            &mut self.state,
            &mut self.keys,
            &mut self.policy,
            &mut self.deny,
        ]
        .into_iter()
        .chain(&mut self.inventory.file)
        .chain(ec2.and_then(|ec2| ec2.ca_bundle.as_mut()))
        .chain(&mut self.sts.ca_bundle)
        .chain(&mut self.evidence.store)
        .chain(self.trust.agents.iter_mut().map(|a| &mut a.intermediate));
        for path in paths {
            *path = folder.join(&*path);
        }
    }
}

#[cfg(test)]
mod tests;
