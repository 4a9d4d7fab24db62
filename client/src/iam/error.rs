//! Why policies cannot be printed or checked.

use postern_proto::names::NameError;

use crate::config::ConfigError;
use crate::error::{Error as UserError, Kind};
use crate::identity::IdentityError;
use crate::identity::aws::AwsError;
use crate::identity::trust::TrustError;
use crate::proxy;

/// Why policies cannot be printed or checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not an account, not a login user.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The AWS configuration.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// No credentials.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The CA bundle.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(String),
    /// Nobody said which account.
    #[error("it is not known which AWS account the policies are for")]
    NoAccount,
    /// Nobody said where.
    #[error("it is not known in which region the targets are")]
    NoRegion,
    /// Not a region.
    #[error("`{0}` is no AWS region")]
    Region(String),
    /// Regions that one policy cannot name together.
    #[error("`{0}` and `{1}` are in different partitions of AWS")]
    Partitions(String, String),
    /// Not a tag.
    #[error("`{0}` is no tag: expected KEY=VALUE in the characters that AWS allows in tags")]
    Tag(String),
    /// Not a document.
    #[error(
        "`{0}` is no name of a session document: expected 3 to 128 letters, digits, `_`, `-` and `.`"
    )]
    Document(String),
    /// Not a condition key with a value.
    #[error(
        "`{0}` is no condition key with a value: expected KEY=VALUE, like aws:SourceIp=203.0.113.7"
    )]
    Context(String),
    /// A key that the check sets itself.
    #[error("`{0}` is set by the check itself, differently for each question")]
    OwnContext(String),
    /// Not an instance.
    #[error("`{0}` is no id of an EC2 instance or managed node")]
    Instance(String),
    /// MFA that nobody can have.
    #[error("MFA of {0} seconds: it can be 15m to 36h old, as long as AWS's sessions live")]
    Age(u64),
    /// Not a key.
    #[error("`{0}` is no ARN of a KMS key: expected arn:aws:kms:REGION:ACCOUNT:key/ID")]
    KmsKey(String),
    /// Not a role.
    #[error("`{0}` is no ARN of a role: expected arn:aws:iam::ACCOUNT:role/NAME")]
    Role(String),
    /// Not a network.
    #[error("`{0}` is no address and no network: expected 203.0.113.7 or 203.0.113.0/24")]
    Source(String),
    /// AWS takes no longer ones.
    #[error("the policy `{name}` has {length} characters, and IAM stores at most {limit}")]
    TooLong {
        /// Which.
        name: &'static str,
        /// Without white space, as IAM counts.
        length: usize,
        /// IAM's limit.
        limit: usize,
    },
    /// IAM could not be asked.
    #[error("AWS IAM at `{host}` cannot be reached: {cause}")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// Why not.
        cause: String,
    },
    /// IAM does not let the caller ask.
    #[error("AWS does not let you ask, so nothing is known: iam:{action} on {subject}: {message}")]
    NotAllowed {
        /// What was asked.
        action: &'static str,
        /// About whom.
        subject: String,
        /// AWS's sentence.
        message: String,
    },
    /// There is no such user or role.
    #[error("{0} does not exist in this account")]
    NoSuch(String),
    /// IAM said no for another reason.
    #[error("AWS refused iam:{action} on {subject}: {message} ({code})")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// About whom.
        subject: String,
        /// AWS's error code.
        code: String,
        /// AWS's sentence.
        message: String,
    },
    /// IAM said something that cannot be used.
    #[error("AWS IAM gave an answer that cannot be used: {0}")]
    Answer(String),
    /// More than are looked at.
    #[error("the account has more than {limit} {what}")]
    TooMany {
        /// `users` or `roles`.
        what: &'static str,
        /// How many are looked at.
        limit: usize,
    },
}

impl PolicyError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Aws(error) => return error.hint(),
            Self::Identity(error) => return error.hint(),
            Self::Config(error) => return error.hint(),
            Self::NoAccount => "--account 111122223333",
            Self::NoRegion => "--region eu-west-1",
            Self::Partitions(..) => "print the policies of each partition on their own",
            Self::TooLong { .. } => "name fewer regions, tags or keys, and print several policies",
            Self::Unreachable { cause, .. } => {
                proxy::hint(cause).unwrap_or("check the network, the region and the endpoint")
            }
            Self::NotAllowed { .. } => {
                "whoever checks needs the policy that `postern policy iam --for checker` prints"
            }
            Self::TooMany { .. } => "name the ones to check with --user and --role",
            _ => return None,
        };
        Some(text.to_owned())
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Identity(error) => error.kind(),
            Self::Unreachable { .. } => Kind::Unreachable,
            Self::NotAllowed { .. } => Kind::Denied,
            Self::NoSuch(_)
            | Self::Refused { .. }
            | Self::Answer(_)
            | Self::Tls(_)
            | Self::TooMany { .. }
            | Self::TooLong { .. } => Kind::Failed,
            _ => Kind::Usage,
        }
    }
}

impl From<TrustError> for PolicyError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Config(error) => Self::Config(error),
            TrustError::Tls(_) => Self::Tls(error.to_string()),
        }
    }
}

impl From<PolicyError> for UserError {
    fn from(error: PolicyError) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}
