//! Why there is no session, no certificate or no approval.

use postern_proto::enroll::RefuseCode;
use postern_proto::names::AgentId;

use crate::error::Kind;

use super::aws::AwsError;
use super::code::CodeError;
use super::enroll::EnrolError;
use super::keyring::KeyringError;
use super::sign::SignError;
use super::store::StoreError;
use super::sts::StsError;
use super::terminal::TerminalError;

/// Why there is no session, no certificate or no approval.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No live MFA session, and nobody to ask: exit 4.
    #[error("no MFA session for profile `{0}`")]
    LoginNeeded(String),
    /// The AWS configuration.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// AWS STS.
    #[error(transparent)]
    Sts(#[from] StsError),
    /// The six digits.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// Keeping and reading the session.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// A key or a signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The account's root user.
    #[error(
        "these are the root credentials of account {0}: root can do everything, no policy bounds \
         it, so nobody may enter with it"
    )]
    Root(String),
    /// A federated user or a role.
    #[error("`{0}` is no IAM user: AWS attests MFA for sessions of IAM users alone")]
    NotUser(String),
    /// No MFA device in the profile.
    #[error("profile `{0}` names no MFA device")]
    NoDevice(String),
    /// Outside GetSessionToken's bounds.
    #[error("a session of {0} seconds is not possible: AWS gives 15 minutes to 36 hours")]
    Duration(u64),
    /// The agent's denial lacks what an approval is bound to.
    #[error("agent `{0}` wants a fresh code but does not say what for")]
    StepUpIncomplete(AgentId),
    /// A certificate that is over as soon as it was issued.
    #[error("the certificate that agent `{0}` issued cannot be used")]
    Certificate(AgentId),
}

impl IdentityError {
    /// Decides the exit code.
    pub fn kind(&self) -> Kind {
        match self {
            Self::LoginNeeded(_)
            | Self::Code(CodeError::Terminal(TerminalError::None))
            | Self::Store(StoreError::Keyring(
                KeyringError::Nothing | KeyringError::Terminal(TerminalError::None),
            )) => Kind::LoginNeeded,
            Self::Aws(_)
            | Self::NoDevice(_)
            | Self::Duration(_)
            | Self::Sts(StsError::Config(_))
            | Self::Code(CodeError::Digits(_))
            | Self::Enrol(EnrolError::Ca { .. }) => Kind::Usage,
            Self::Sts(StsError::Unreachable { .. })
            | Self::Enrol(EnrolError::Unreachable { .. }) => Kind::Unreachable,
            Self::Enrol(EnrolError::Refused { code, .. }) => match code {
                RefuseCode::Credentials | RefuseCode::Mfa => Kind::LoginNeeded,
                RefuseCode::Sts => Kind::Unreachable,
                _ => Kind::Denied,
            },
            Self::Sts(StsError::Refused { .. })
            | Self::Enrol(EnrolError::Untrusted { .. } | EnrolError::Pinned { .. })
            | Self::Root(_)
            | Self::NotUser(_) => Kind::Denied,
            Self::Sts(StsError::Answer(_))
            | Self::Code(_)
            | Self::Store(_)
            | Self::Enrol(_)
            | Self::Sign(_)
            | Self::StepUpIncomplete(_)
            | Self::Certificate(_) => Kind::Failed,
        }
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::LoginNeeded(profile) if profile == "default" => Some("postern login".to_owned()),
            Self::LoginNeeded(profile) => Some(format!("postern login --profile {profile}")),
            Self::Aws(error) => error.hint(),
            Self::Sts(error) => error.hint(),
            Self::Code(CodeError::Terminal(TerminalError::None)) => Some(
                "give the code with --mfa-code, or set `mfa_process` in the AWS profile".to_owned(),
            ),
            Self::Store(error) => error.hint(),
            Self::Enrol(error) => error.hint(),
            Self::Root(_) => {
                Some("log in as an IAM user of your own, and lock root's keys away".to_owned())
            }
            Self::NotUser(_) => {
                Some("name a profile with an IAM user's access key with --profile".to_owned())
            }
            Self::NoDevice(_) => Some(
                "set `mfa_serial` to the ARN of the device (arn:aws:iam::ACCOUNT:mfa/NAME)"
                    .to_owned(),
            ),
            Self::Duration(_) => Some("choose another --duration, like 12h".to_owned()),
            Self::Code(_) | Self::Sign(_) | Self::StepUpIncomplete(_) | Self::Certificate(_) => {
                None
            }
        }
    }
}
