//! Calls to AWS STS: the only file that names the SDK.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId as _;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::proxy::{self, Proxies};

use super::aws::{AwsProfile, Role};
use super::code::MfaCode;
use super::secret::Keys;
use super::trust::{TrustError, https};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// AWS refuses signatures that are further off (AWS-signed requests live 5 minutes in headers).
const SKEW_SECONDS: i64 = 240;

/// STS, asked with one set of credentials.
pub(crate) struct Sts {
    client: aws_sdk_sts::Client,
    host: String,
    proxies: Proxies,
}

/// Who AWS says that the caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The account.
    pub account: String,
    /// AWS's unique id.
    pub user_id: String,
    /// For display.
    pub arn: String,
}

impl Caller {
    /// The account's owner, who needs no bastion and must not be used.
    pub fn is_root(&self) -> bool {
        self.arn.ends_with(":root")
    }

    /// An IAM user: nobody else gets an MFA session.
    pub fn is_user(&self) -> bool {
        self.arn
            .splitn(6, ':')
            .nth(5)
            .is_some_and(|name| name.starts_with("user/"))
    }
}

/// Temporary credentials and their end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TemporaryKeys {
    /// They sign.
    pub keys: Keys,
    /// Seconds since 1970.
    pub ends_at: i64,
}

impl Sts {
    /// Nothing of the environment is read: the profile says it all.
    pub(crate) fn new(profile: &AwsProfile, keys: &Keys) -> Result<Self, StsError> {
        let host = profile.sts_host();
        let http = https(profile, &host)?;
        let credentials = Credentials::new(
            &keys.access_key_id,
            keys.secret_access_key.expose(),
            keys.session_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
            None,
            "postern",
        );
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(profile.region.clone()))
            .credentials_provider(credentials)
            .http_client(http)
            // A second try would send a code that the first has burnt.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_DEADLINE)
                    .operation_timeout(CALL_DEADLINE)
                    .build(),
            );
        if let Some(url) = &profile.sts_endpoint {
            config = config.endpoint_url(url);
        }
        Ok(Self {
            client: aws_sdk_sts::Client::from_conf(config.build()),
            host,
            proxies: profile.proxies.clone(),
        })
    }

    /// GetCallerIdentity.
    pub(crate) async fn caller(&self) -> Result<Caller, StsError> {
        let answer = self
            .client
            .get_caller_identity()
            .send()
            .await
            .map_err(|error| self.error("GetCallerIdentity", error))?;
        match (answer.account, answer.user_id, answer.arn) {
            (Some(account), Some(user_id), Some(arn)) => Ok(Caller {
                account,
                user_id,
                arn,
            }),
            _ => Err(StsError::Answer(
                "GetCallerIdentity names nobody".to_owned(),
            )),
        }
    }

    /// GetSessionToken with a code: the session carries MFA.
    pub(crate) async fn session(
        &self,
        serial: &str,
        code: &MfaCode,
        lifetime: Duration,
    ) -> Result<TemporaryKeys, StsError> {
        let seconds = i32::try_from(lifetime.as_secs()).unwrap_or(i32::MAX);
        let answer = self
            .client
            .get_session_token()
            .serial_number(serial)
            .token_code(code.expose())
            .duration_seconds(seconds)
            .send()
            .await
            .map_err(|error| self.error("GetSessionToken", error))?;
        temporary("GetSessionToken", answer.credentials)
    }

    /// AssumeRole from the session, without a code.
    pub(crate) async fn assume(
        &self,
        role: &Role,
        default_name: &str,
    ) -> Result<TemporaryKeys, StsError> {
        let name = role.session_name.as_deref().unwrap_or(default_name);
        let answer = self
            .client
            .assume_role()
            .role_arn(&role.arn)
            .role_session_name(name)
            .set_external_id(role.external_id.clone())
            .set_duration_seconds(role.seconds.and_then(|seconds| i32::try_from(seconds).ok()))
            .send()
            .await
            .map_err(|error| self.error("AssumeRole", error))?;
        temporary("AssumeRole", answer.credentials)
    }

    fn error<E>(&self, action: &'static str, error: SdkError<E, HttpResponse>) -> StsError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(context) => StsError::Refused {
                action,
                code: context.err().code().unwrap_or("unknown").to_owned(),
                message: context.err().message().unwrap_or_default().to_owned(),
                request_id: context.raw().request_id().map(str::to_owned),
                skew: context.raw().headers().get("date").and_then(skew),
            },
            SdkError::TimeoutError(_) => StsError::Unreachable {
                host: self.host.clone(),
                cause: self
                    .proxies
                    .explain(&self.host, "it did not answer in time".to_owned()),
            },
            SdkError::DispatchFailure(_) => StsError::Unreachable {
                host: self.host.clone(),
                cause: self.proxies.explain(&self.host, deepest(&error)),
            },
            _ => StsError::Answer(format!("{action}: {}", deepest(&error))),
        }
    }
}

/// Why STS did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StsError {
    /// No connection, or no answer.
    #[error("AWS STS at `{host}` cannot be reached: {cause}")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// Why not.
        cause: String,
    },
    /// It said no.
    #[error("{}", refused(action, code, message, *skew))]
    Refused {
        /// What was asked.
        action: &'static str,
        /// AWS's error code.
        code: String,
        /// AWS's sentence.
        message: String,
        /// For AWS's support.
        request_id: Option<String>,
        /// Seconds that this computer's clock is ahead of AWS's.
        skew: Option<i64>,
    },
    /// It said something that cannot be trusted.
    #[error("AWS STS gave an answer that cannot be used: {0}")]
    Answer(String),
    /// The CA bundle.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl StsError {
    /// Whether the code was wrong, or was used before.
    pub fn is_code(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains("invalid MFA one time pass code"))
    }

    /// Whether the clock is the likely cause.
    pub fn is_clock(&self) -> bool {
        matches!(self, Self::Refused { code, skew: Some(skew), .. }
            if skew.abs() > SKEW_SECONDS && code != "AccessDenied")
    }

    /// Whether the credentials themselves are over.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Refused { code, .. }
            if matches!(code.as_str(), "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId"))
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        if self.is_clock() {
            return Some("set the clock right (time synchronisation)".to_owned());
        }
        if self.is_code() {
            return Some(
                "wait for the next code (up to 30 seconds): AWS burns each code with its first use"
                    .to_owned(),
            );
        }
        match self {
            Self::Unreachable { cause, .. } if cause.contains("certificate") => Some(
                "set `ca_bundle` in the profile or AWS_CA_BUNDLE if this endpoint has a CA of its own"
                    .to_owned(),
            ),
            Self::Unreachable { cause, .. } => Some(
                proxy::hint(cause)
                    .unwrap_or("check the network, the region and the endpoint")
                    .to_owned(),
            ),
            Self::Refused { code, message, .. } => match code.as_str() {
                "InvalidClientTokenId" => Some(
                    "the access key was deleted or is inactive, or belongs to another partition"
                        .to_owned(),
                ),
                "SignatureDoesNotMatch" => {
                    Some("the secret key does not belong to the access key id".to_owned())
                }
                "AccessDenied" if message.contains("MFA serial number") => {
                    Some("check `mfa_serial` in the AWS profile".to_owned())
                }
                _ => None,
            },
            Self::Config(error) => error.hint(),
            Self::Answer(_) => None,
        }
    }
}

fn refused(action: &str, code: &str, message: &str, skew: Option<i64>) -> String {
    if message.contains("invalid MFA one time pass code") {
        return "AWS refused the MFA code: it is wrong, or it was used before".to_owned();
    }
    let mut text = format!("AWS refused {action}: {message} ({code})");
    if let Some(skew) = skew.filter(|skew| skew.abs() > SKEW_SECONDS) {
        text.push_str(&format!("; {}", clock(skew)));
    }
    text
}

/// `this computer's clock is 7 min 3 s ahead`: positive is ahead.
pub(crate) fn clock(skew: i64) -> String {
    let (minutes, seconds) = (skew.unsigned_abs() / 60, skew.unsigned_abs() % 60);
    let side = if skew < 0 { "behind" } else { "ahead" };
    format!("this computer's clock is {minutes} min {seconds} s {side}")
}

/// Now, in seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

/// How far this clock is ahead of an HTTP date.
fn skew(date: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = time::PrimitiveDateTime::parse(date, format).ok()?;
    Some(now() - date.assume_utc().unix_timestamp())
}

fn temporary(
    action: &str,
    credentials: Option<aws_sdk_sts::types::Credentials>,
) -> Result<TemporaryKeys, StsError> {
    let credentials =
        credentials.ok_or_else(|| StsError::Answer(format!("{action} gave no credentials")))?;
    Ok(TemporaryKeys {
        ends_at: credentials.expiration.secs(),
        keys: Keys {
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key.into(),
            session_token: Some(credentials.session_token.into()),
        },
    })
}

impl From<TrustError> for StsError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Config(error) => Self::Config(error),
            TrustError::Tls(cause) => Self::Answer(format!("TLS: {cause}")),
        }
    }
}

/// The cause at the bottom says what happened; those above say where in the SDK.
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: &str, message: &str, skew: Option<i64>) -> StsError {
        StsError::Refused {
            action: "GetSessionToken",
            code: code.to_owned(),
            message: message.to_owned(),
            request_id: None,
            skew,
        }
    }

    #[test]
    fn a_wrong_code_is_told_as_such() {
        let error = refusal(
            "AccessDenied",
            "MultiFactorAuthentication failed with invalid MFA one time pass code. ",
            Some(0),
        );
        assert!(error.is_code());
        assert_eq!(
            error.to_string(),
            "AWS refused the MFA code: it is wrong, or it was used before"
        );
        assert!(error.hint().unwrap().contains("wait for the next code"));
    }

    #[test]
    fn a_wrong_clock_is_told_with_its_size() {
        let error = refusal("SignatureDoesNotMatch", "Signature expired", Some(-423));
        assert!(error.is_clock());
        assert_eq!(
            error.to_string(),
            "AWS refused GetSessionToken: Signature expired (SignatureDoesNotMatch); \
             this computer's clock is 7 min 3 s behind"
        );
        assert!(!refusal("SignatureDoesNotMatch", "no", Some(3)).is_clock());
        let text = time::OffsetDateTime::from_unix_timestamp(now() - 600)
            .unwrap()
            .format(time::macros::format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            ))
            .unwrap();
        assert!((599..=602).contains(&skew(&text).unwrap()));
    }

    #[test]
    fn root_and_roles_are_no_users() {
        let caller = |arn: &str| Caller {
            account: "111122223333".to_owned(),
            user_id: "x".to_owned(),
            arn: arn.to_owned(),
        };
        assert!(caller("arn:aws:iam::111122223333:root").is_root());
        assert!(caller("arn:aws:iam::111122223333:user/team/alice").is_user());
        assert!(!caller("arn:aws:sts::111122223333:assumed-role/a/user/x").is_user());
        assert!(!caller("arn:aws:iam::111122223333:root").is_user());
    }
}
