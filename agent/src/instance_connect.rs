//! EC2 Instance Connect: puts a public key on an instance for 60 seconds.
//!
//! The key is in the instance's metadata, where its sshd looks it up (package
//! `ec2-instance-connect`). Ed25519 and RSA are taken, ECDSA is not.

use aws_config::SdkConfig;
use aws_sdk_ec2instanceconnect::Client;
use aws_sdk_ec2instanceconnect::config::{Builder, Region};
use aws_sdk_ec2instanceconnect::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_ec2instanceconnect::operation::send_ssh_public_key::SendSSHPublicKeyError as Fault;
use postern_proto::names::LoginUser;

use crate::aws::{self, AwsError, AwsSettings};
use crate::inventory::Target;

/// Pushes keys.
pub struct InstanceConnect {
    config: SdkConfig,
}

/// Why a key could not be pushed. The sentence names the target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("EC2 Instance Connect for `{target}`: {kind}")]
pub struct PushError {
    /// The target's name.
    pub target: String,
    /// What went wrong.
    pub kind: PushFault,
}

/// The kinds of failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushFault {
    /// The target is not an EC2 instance of a known region.
    #[error("it is no EC2 instance of a known region")]
    NotAnInstance,
    /// AWS does not let the agent do it.
    #[error("AWS does not let the agent push a key as user `{user}`: {reason}")]
    Denied {
        /// The login user.
        user: String,
        /// AWS's words.
        reason: String,
    },
    /// It is gone.
    #[error("the instance does not exist any more")]
    Gone,
    /// It is stopped, or on its way there.
    #[error("the instance is not running")]
    NotRunning,
    /// AWS cannot reach it now.
    #[error("the instance is unavailable at the moment")]
    Unavailable,
    /// Too many pushes.
    #[error("AWS throttles the agent's requests")]
    Throttled,
    /// AWS did not take the request's values.
    #[error("AWS did not take the request: {0}")]
    Refused(String),
    /// No answer from AWS.
    #[error("AWS did not answer: {0}")]
    Unreachable(String),
    /// AWS failed.
    #[error("AWS failed: {0}")]
    Service(String),
}

impl PushError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self.kind {
            PushFault::NotAnInstance => "set its login to `certificate`",
            PushFault::Denied { .. } => {
                "the agent's role needs ec2-instance-connect:SendSSHPublicKey on the instance, for \
                 this ec2:osuser"
            }
            PushFault::Gone => "postern ls",
            PushFault::NotRunning => "start it",
            PushFault::Unavailable | PushFault::Throttled | PushFault::Service(_) => {
                "try again in a moment"
            }
            PushFault::Refused(_) => "look at the agent's log",
            PushFault::Unreachable(_) => {
                "the bastion needs a route to the service: a NAT gateway or a VPC endpoint"
            }
        }
    }
}

impl InstanceConnect {
    /// Reads settings; calls nobody.
    pub async fn new(settings: &AwsSettings) -> Result<Self, AwsError> {
        Ok(Self {
            config: settings.load().await?,
        })
    }

    /// Lets `openssh_public_key` (one line, `ssh-ed25519 …`) log in as `user` for 60 seconds. A
    /// connection that is made in time lives on.
    pub async fn push_key(
        &self,
        target: &Target,
        user: &LoginUser,
        openssh_public_key: &str,
    ) -> Result<(), PushError> {
        let failed = |kind| PushError {
            target: target.name.clone(),
            kind,
        };
        let Some(region) = region_of(target) else {
            return Err(failed(PushFault::NotAnInstance));
        };
        let config = Builder::from(&self.config).region(Region::new(region.to_owned()));
        let answer = Client::from_conf(config.build())
            .send_ssh_public_key()
            .instance_id(target.id.as_str())
            .instance_os_user(user.as_str())
            .ssh_public_key(openssh_public_key)
            .set_availability_zone(target.zone.clone())
            .send()
            .await
            .map_err(|error| failed(fault(user, error)))?;
        if answer.success() {
            Ok(())
        } else {
            let id = answer.request_id().map(aws::clean).unwrap_or_default();
            Err(failed(PushFault::Service(format!(
                "no success (request {id})"
            ))))
        }
    }
}

/// The region of an EC2 instance; `None` for everything else.
fn region_of(target: &Target) -> Option<&str> {
    let digits = target.id.as_str().strip_prefix("i-")?;
    let instance = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    target.region.as_deref().filter(|_| instance)
}

fn fault<R>(user: &LoginUser, error: SdkError<Fault, R>) -> PushFault
where
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let SdkError::ServiceError(context) = &error else {
        return PushFault::Unreachable(aws::clean(&DisplayErrorContext(&error).to_string()));
    };
    let fault = context.err();
    let words = || {
        aws::clean(
            fault
                .message()
                .or_else(|| fault.code())
                .unwrap_or("no reason given"),
        )
    };
    match fault {
        Fault::AuthException(_) => PushFault::Denied {
            user: user.to_string(),
            reason: words(),
        },
        Fault::Ec2InstanceNotFoundException(_) => PushFault::Gone,
        Fault::Ec2InstanceStateInvalidException(_) => PushFault::NotRunning,
        Fault::Ec2InstanceUnavailableException(_) => PushFault::Unavailable,
        Fault::InvalidArgsException(_) => PushFault::Refused(words()),
        Fault::ThrottlingException(_) => PushFault::Throttled,
        // IAM's own refusal is in no service's model.
        other if matches!(other.code(), Some("AccessDeniedException" | "AccessDenied")) => {
            PushFault::Denied {
                user: user.to_string(),
                reason: words(),
            }
        }
        _ => PushFault::Service(words()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::fake::FakeAws;
    use crate::inventory::TargetLogin;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampl postern";

    fn target(id: &str, region: Option<&str>) -> Target {
        Target {
            id: id.parse().unwrap(),
            name: "web-1".to_owned(),
            tags: Default::default(),
            account: None,
            region: region.map(str::to_owned),
            vpc: None,
            zone: Some("eu-west-1b".to_owned()),
            platform: "linux".to_owned(),
            address: "10.0.0.1".to_owned(),
            aliases: vec![],
            ssh_port: 22,
            login: TargetLogin::InstanceConnect,
        }
    }

    async fn push(aws: &FakeAws, target: &Target) -> Result<(), PushError> {
        let user = "ec2-user".parse().unwrap();
        let connect = InstanceConnect::new(&aws.settings).await.unwrap();
        connect.push_key(target, &user, KEY).await
    }

    #[tokio::test]
    async fn a_key_is_pushed_to_the_instance_in_its_region() {
        let aws = FakeAws::start(|call| {
            assert_eq!(call.target, "AWSEC2InstanceConnectService.SendSSHPublicKey");
            assert!(
                call.authorization
                    .contains("/eu-west-1/ec2-instance-connect/")
            );
            let body: serde_json::Value = serde_json::from_str(&call.body).unwrap();
            let expected = serde_json::json!({
                "InstanceId": "i-0123456789abcdef0",
                "InstanceOSUser": "ec2-user",
                "SSHPublicKey": KEY,
                "AvailabilityZone": "eu-west-1b",
            });
            assert_eq!(body, expected);
            (200, r#"{"RequestId":"r","Success":true}"#.to_owned())
        })
        .await;
        push(&aws, &target("i-0123456789abcdef0", Some("eu-west-1")))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_no_instance_is_not_asked_for() {
        let aws = FakeAws::start(|_| panic!("asked")).await;
        for target in [
            target("web-1", Some("eu-west-1")),
            target("i-", Some("eu-west-1")),
            target("i-0a", None),
        ] {
            let error = push(&aws, &target).await.unwrap_err();
            assert_eq!(error.kind, PushFault::NotAnInstance);
        }
    }

    #[tokio::test]
    async fn failures_are_told_in_plain_words() {
        let denied = |reason: &str| PushFault::Denied {
            user: "ec2-user".to_owned(),
            reason: reason.to_owned(),
        };
        let rows = [
            (400, "AuthException", denied("why\u{fffd}")),
            (400, "AccessDeniedException", denied("why\u{fffd}")),
            (400, "EC2InstanceNotFoundException", PushFault::Gone),
            (
                400,
                "EC2InstanceStateInvalidException",
                PushFault::NotRunning,
            ),
            (
                400,
                "EC2InstanceUnavailableException",
                PushFault::Unavailable,
            ),
            (
                400,
                "InvalidArgsException",
                PushFault::Refused("why\u{fffd}".to_owned()),
            ),
            (
                400,
                "SomethingNew",
                PushFault::Service("why\u{fffd}".to_owned()),
            ),
        ];
        for (status, code, kind) in rows {
            let aws = FakeAws::start(move |_| {
                (
                    status,
                    format!(r#"{{"__type":"{code}","Message":"why\u001b"}}"#),
                )
            })
            .await;
            let error = push(&aws, &target("i-0a", Some("eu-west-1")))
                .await
                .unwrap_err();
            assert_eq!(error.kind, kind, "{code}");
            assert!(
                error
                    .to_string()
                    .starts_with("EC2 Instance Connect for `web-1`: "),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn no_success_is_a_failure() {
        let aws =
            FakeAws::start(|_| (200, r#"{"RequestId":"r","Success":false}"#.to_owned())).await;
        let error = push(&aws, &target("i-0a", Some("eu-west-1")))
            .await
            .unwrap_err();
        assert!(matches!(error.kind, PushFault::Service(_)), "{error}");
    }
}
