//! The agent's check of its own oracle: does the attestation role still demand MFA?
//!
//! Two independent looks, at start, hourly and in `postern-agent check`: the role's trust policy
//! is read, and the agent tries to assume the role itself, without MFA, which AWS must refuse.
//! Anything else, a check that cannot be made included, closes enrolment.

use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_iam::error::{DisplayErrorContext, ProvideErrorMetadata as _};
use aws_smithy_http_client::tls;
use postern_proto::audit::event::Fact;
use tokio::sync::{Notify, watch};

use super::Record;
pub use super::trust_policy::{TrustPolicyFault, check_trust_policy};
use crate::config::{Config, RoleArn};
use crate::evidence::agent_event;

/// How long one check may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How soon a failed check is made again.
const RETRY: Duration = Duration::from_secs(60);

/// Whether enrolment is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttestationState {
    /// The last check passed.
    Open,
    /// It did not, or none was made yet: why.
    Closed(Arc<str>),
}

/// Why the attestation role does not attest MFA.
#[derive(Debug, thiserror::Error)]
pub enum AttestationFault {
    /// The trust policy is weak.
    #[error("the attestation role {role} is unsound: {fault}")]
    Policy {
        /// The role.
        role: String,
        /// How.
        fault: TrustPolicyFault,
    },
    /// The trust policy cannot be read.
    #[error("the trust policy of the attestation role {role} cannot be read: {reason}")]
    Unreadable {
        /// The role.
        role: String,
        /// Why.
        reason: String,
    },
    /// The agent could assume the role without MFA.
    #[error("the attestation role {role} can be assumed without MFA: this agent just did")]
    Assumed {
        /// The role.
        role: String,
    },
    /// The attempt failed in another way than by being denied.
    #[error("it is not known whether the attestation role {role} demands MFA: {reason}")]
    Unknown {
        /// The role.
        role: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("the attestation role could not be checked in time")]
    Deadline,
    /// The CA bundle cannot be used.
    #[error("the attestation role cannot be checked: {0}")]
    Client(String),
}

impl AttestationFault {
    /// What an operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Policy { .. } | Self::Assumed { .. } => {
                "restore the trust policy: every Allow needs Bool aws:MultiFactorAuthPresent true \
                 and NumericLessThan aws:MultiFactorAuthAge at most attestation.mfa_max_age"
            }
            Self::Unreadable { .. } => {
                "allow the agent's own role iam:GetRole on the attestation role"
            }
            Self::Unknown { .. } | Self::Deadline => {
                "check that the agent has AWS credentials of its own and reaches STS and IAM"
            }
            Self::Client(_) => "check `sts.ca_bundle` in agent.toml",
        }
    }
}

/// Checks one attestation role with the agent's own credentials.
pub struct Attestation {
    role: RoleArn,
    bound: Duration,
    interval: Duration,
    iam: aws_sdk_iam::Client,
    sts: aws_sdk_sts::Client,
}

impl Attestation {
    /// A checker with the agent's own credentials: the SDK's default chain (instance profile,
    /// environment). Endpoints and CAs come from the configuration alone.
    pub async fn new(config: &Config) -> Result<Self, AttestationFault> {
        let region = aws_config::Region::new(config.sts.region.clone());
        let credentials =
            aws_config::default_provider::credentials::DefaultCredentialsChain::builder()
                .region(region)
                .build()
                .await;
        Self::with_credentials(config, SharedCredentialsProvider::new(credentials))
    }

    /// The same with given credentials.
    pub fn with_credentials(
        config: &Config,
        credentials: SharedCredentialsProvider,
    ) -> Result<Self, AttestationFault> {
        let http = http_client(config)?;
        let region = config.sts.region.clone();
        let mut iam = aws_sdk_iam::Config::builder()
            .behavior_version(aws_sdk_iam::config::BehaviorVersion::latest())
            .region(aws_sdk_iam::config::Region::new(region.clone()))
            .credentials_provider(credentials.clone())
            .http_client(http.clone());
        if let Some(url) = &config.attestation.iam_endpoint_url {
            iam = iam.endpoint_url(url);
        }
        let mut sts = aws_sdk_sts::Config::builder()
            .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
            .region(aws_sdk_sts::config::Region::new(region))
            .credentials_provider(credentials)
            .http_client(http);
        if let Some(url) = &config.sts.endpoint_url {
            sts = sts.endpoint_url(url);
        }
        Ok(Self {
            role: config.attestation.role.clone(),
            bound: config.attestation.mfa_max_age,
            interval: config.attestation.interval,
            iam: aws_sdk_iam::Client::from_conf(iam.build()),
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
        })
    }

    /// A channel for [`Self::run`]: closed until the first check passes.
    pub fn channel() -> watch::Sender<AttestationState> {
        watch::Sender::new(AttestationState::Closed("no check was made yet".into()))
    }

    /// One check.
    pub async fn check(&self) -> Result<(), AttestationFault> {
        let both = async {
            self.check_policy().await?;
            self.check_refusal().await
        };
        match tokio::time::timeout(DEADLINE, both).await {
            Ok(result) => result,
            Err(_) => Err(AttestationFault::Deadline),
        }
    }

    /// Checks now, then hourly (a failed check again in a minute) and whenever `again` says, for
    /// as long as the future is polled. Each result is an event, and what cannot be written closes enrolment too.
    pub async fn run(
        &self,
        state: watch::Sender<AttestationState>,
        record: Record,
        again: &Notify,
    ) {
        loop {
            let fault = self.check().await.err();
            if let Some(fault) = &fault {
                tracing::error!(%fault, hint = fault.hint(), "enrolment is closed");
            }
            let checked = Fact::AttestationChecked {
                fault: fault.as_ref().map(ToString::to_string),
            };
            let written = record(agent_event(checked)).await;
            let next = match (&fault, written) {
                (None, Ok(_)) => AttestationState::Open,
                (Some(fault), _) => AttestationState::Closed(fault.to_string().into()),
                (None, Err(error)) => AttestationState::Closed(error.into()),
            };
            let wait = match next {
                AttestationState::Open => self.interval,
                AttestationState::Closed(_) => RETRY.min(self.interval),
            };
            state.send_replace(next);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = again.notified() => {}
            }
        }
    }

    async fn check_policy(&self) -> Result<(), AttestationFault> {
        let unreadable = |reason: String| AttestationFault::Unreadable {
            role: self.role.to_string(),
            reason,
        };
        let answer = self
            .iam
            .get_role()
            .role_name(self.role.name())
            .send()
            .await
            .map_err(|error| unreadable(told(&error)))?;
        let role = answer
            .role()
            .ok_or_else(|| unreadable("no role".to_owned()))?;
        if role.arn() != self.role.as_str() {
            return Err(unreadable(format!("IAM knows {} by that name", role.arn())));
        }
        let encoded = role
            .assume_role_policy_document()
            .ok_or_else(|| unreadable("it has none".to_owned()))?;
        let document =
            percent_decode(encoded).ok_or_else(|| unreadable("its encoding".to_owned()))?;
        check_trust_policy(&document, self.bound).map_err(|fault| AttestationFault::Policy {
            role: self.role.to_string(),
            fault,
        })
    }

    /// Assuming the role without MFA must be denied.
    async fn check_refusal(&self) -> Result<(), AttestationFault> {
        let role = self.role.to_string();
        let attempt = self
            .sts
            .assume_role()
            .role_arn(self.role.as_str())
            .role_session_name("postern-check-without-mfa")
            .duration_seconds(900)
            .policy(postern_proto::enroll::DENY_ALL)
            .send()
            .await;
        match attempt {
            Ok(_) => Err(AttestationFault::Assumed { role }),
            Err(error) if error.code() == Some("AccessDenied") => Ok(()),
            Err(error) => Err(AttestationFault::Unknown {
                role,
                reason: told(&error),
            }),
        }
    }
}

fn http_client(config: &Config) -> Result<aws_sdk_iam::config::SharedHttpClient, AttestationFault> {
    let fault = |error: String| AttestationFault::Client(error);
    let store = match &config.sts.ca_bundle {
        None => tls::TrustStore::empty().with_native_roots(true),
        Some(path) => {
            let chain = crate::keys::certificates_of(path).map_err(|e| fault(e.to_string()))?;
            let pem = crate::ca::certificates_to_pem(&chain);
            tls::TrustStore::empty().with_pem_certificate(pem)
        }
    };
    let context = tls::TlsContext::builder()
        .with_trust_store(store)
        .build()
        .map_err(|error| fault(error.to_string()))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .tls_context(context)
        .build_https())
}

/// The error's own code and message, or the whole chain for failures on the way.
fn told<E, R>(error: &aws_sdk_iam::error::SdkError<E, R>) -> String
where
    E: aws_sdk_iam::error::ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => DisplayErrorContext(error).to_string(),
    }
}

/// IAM sends policies percent-encoded (RFC 3986).
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let mut decoded = [0];
                hex::decode_to_slice([*high, *low], &mut decoded).ok()?;
                bytes.extend_from_slice(&decoded);
                rest = tail;
            }
            (b'%', _) => return None,
            (byte, tail) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
