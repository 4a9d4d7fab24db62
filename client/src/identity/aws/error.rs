//! Why the AWS configuration cannot be used, in words with the next step.

use std::path::PathBuf;

use crate::config::ConfigError;

/// Why the AWS configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AwsError {
    /// A file or a variable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A line of a file.
    #[error("line {line} of `{}` is neither a section, a property nor a comment", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// No such profile.
    #[error("no AWS profile `{name}` in `{}`", config.display())]
    NoProfile {
        /// Its name.
        name: String,
        /// Where it would be.
        config: PathBuf,
    },
    /// `source_profile`s that lead nowhere.
    #[error("the `source_profile` of profile `{0}` leads in a circle or too far")]
    Circle(String),
    /// A role without the profile that holds its keys.
    #[error("profile `{0}` has a role_arn but no source_profile")]
    NoSource(String),
    /// No region.
    #[error("no AWS region for profile `{0}`")]
    NoRegion(String),
    /// Not a region.
    #[error("`{0}` is no AWS region")]
    Region(String),
    /// No keys of an IAM user.
    #[error("{0} holds no access key of an IAM user")]
    NoKeys(String),
    /// Temporary credentials.
    #[error("{0} holds temporary credentials, and AWS gives no MFA session for those")]
    TemporaryKeys(String),
    /// Not an access key id.
    #[error("{0} holds something that is no access key id")]
    KeyId(String),
    /// A number that is none.
    #[error("duration_seconds of profile `{profile}` is `{text}`, not a number of seconds")]
    Seconds {
        /// The profile.
        profile: String,
        /// What stands there.
        text: String,
    },
    /// An endpoint that is not https.
    #[error("the endpoint `{0}` is not an https URL with a host and nothing behind it")]
    Endpoint(String),
}

impl AwsError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Config(error) => return error.hint(),
            Self::NoProfile { .. } => "name another with --profile or AWS_PROFILE",
            Self::NoRegion(_) => "set `region` in the profile, or AWS_REGION",
            Self::NoSource(_) => {
                "name the profile that holds the user's access key: AWS can only attest MFA of an \
                 IAM user"
            }
            Self::NoKeys(_) => {
                "set aws_access_key_id and aws_secret_access_key: single sign-on, \
                 credential_process and instance roles carry no MFA that AWS could attest"
            }
            Self::TemporaryKeys(_) => {
                "unset AWS_ACCESS_KEY_ID and its companions, or name a profile with long-term \
                 keys with --profile"
            }
            Self::Endpoint(_) => "credentials travel over https alone",
            Self::Line { .. }
            | Self::Circle(_)
            | Self::Region(_)
            | Self::KeyId(_)
            | Self::Seconds { .. } => return None,
        };
        Some(text.to_owned())
    }
}
