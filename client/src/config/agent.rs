//! Agents as the client pins them.

use std::path::Path;

use postern_proto::names::AgentId;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::{ConfigError, Environment, agent_id, is_role_arn, read_small, variable};

const CA_LIMIT: u64 = 1024 * 1024;

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
    /// `host[:port]` of its STS endpoint, when it is neither AWS's regional one nor the one of
    /// the AWS profile.
    pub sts_host: Option<String>,
}

/// Texts of a profile with the places that they come from, for errors.
pub(super) struct Parts<'a> {
    pub(super) place: &'a dyn Fn(&str) -> String,
    pub(super) id: &'a str,
    pub(super) address: &'a str,
    pub(super) ca: &'a Path,
    pub(super) attestation_role: &'a str,
    pub(super) log_key: &'a str,
    pub(super) sts_host: Option<&'a str>,
}

impl AgentProfile {
    /// The one agent that variables describe, if they do.
    pub(super) fn from_environment(environment: &Environment) -> Result<Option<Self>, ConfigError> {
        let Some(address) = environment.text(variable::AGENT)? else {
            return Ok(None);
        };
        let needed = |name| {
            environment
                .text(name)?
                .ok_or(ConfigError::AgentIncomplete(name))
        };
        let ca = environment
            .path(variable::AGENT_CA)
            .ok_or(ConfigError::AgentIncomplete(variable::AGENT_CA))?;
        Self::check(Parts {
            place: &|key| {
                match key {
                    "id" => variable::AGENT_ID,
                    "address" => variable::AGENT,
                    "ca" => variable::AGENT_CA,
                    "attestation_role" => variable::ATTESTATION_ROLE,
                    "log_key" => variable::LOG_KEY,
                    _ => variable::STS_HOST,
                }
                .to_owned()
            },
            id: needed(variable::AGENT_ID)?,
            address,
            ca: &ca,
            attestation_role: needed(variable::ATTESTATION_ROLE)?,
            log_key: needed(variable::LOG_KEY)?,
            sts_host: environment.text(variable::STS_HOST)?,
        })
        .map(Some)
    }

    pub(super) fn check(parts: Parts<'_>) -> Result<Self, ConfigError> {
        let wrong = |key: &str, problem: String| ConfigError::Value {
            place: (parts.place)(key),
            problem,
        };
        let port = parts.address.rsplit_once(':').map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) {
            let address = parts.address;
            return Err(wrong("address", format!("`{address}` is not `host:port`")));
        }
        if !is_role_arn(parts.attestation_role) {
            let role = parts.attestation_role;
            return Err(wrong(
                "attestation_role",
                format!("`{role}` is not the ARN of an IAM role"),
            ));
        }
        let ca = read_small("the server CA", parts.ca, CA_LIMIT)?;
        let certificates = CertificateDer::pem_slice_iter(&ca)
            .filter(Result::is_ok)
            .count();
        if certificates == 0 {
            let path = parts.ca.display();
            return Err(wrong("ca", format!("`{path}` holds no PEM certificate")));
        }
        Ok(Self {
            id: agent_id(&(parts.place)("id"), parts.id)?,
            address: parts.address.to_owned(),
            ca,
            attestation_role: parts.attestation_role.to_owned(),
            log_key: parts.log_key.to_owned(),
            sts_host: parts.sts_host.map(str::to_owned),
        })
    }
}
