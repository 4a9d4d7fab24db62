//! Why the SSM route does not serve.

use postern_proto::ssm::channel::CloseReason;
use thiserror::Error;

use crate::config::ConfigError;
use crate::error::{Error as UserError, Kind};
use crate::identity::IdentityError;

/// Why the SSM route does not serve.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SsmError {
    /// No credentials.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The CA bundle.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// AWS could not be asked.
    #[error("AWS {service} at `{host}` cannot be reached: {cause}")]
    Unreachable {
        /// `SSM` or `KMS`.
        service: &'static str,
        /// Where it was looked for.
        host: String,
        /// Why not.
        cause: String,
    },
    /// AWS said no.
    #[error("{}", refused(service, action, target.as_deref(), code, message))]
    Refused {
        /// `SSM` or `KMS`.
        service: &'static str,
        /// What was asked.
        action: &'static str,
        /// On what, where that is one thing.
        target: Option<String>,
        /// AWS's error code.
        code: String,
        /// AWS's sentence.
        message: String,
    },
    /// AWS said something that cannot be used.
    #[error("AWS {service} gave an answer that cannot be used: {what}")]
    Answer {
        /// `SSM` or `KMS`.
        service: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The profile's credentials are over, though they should not be.
    #[error("AWS no longer takes the MFA session of profile `{0}`")]
    Expired(String),
    /// Nothing managed by SSM is called that.
    #[error("SSM manages no target `{0}`")]
    NoTarget(String),
    /// Several are.
    #[error("`{name}` is the name of several targets: {}", several.join(", "))]
    Ambiguous {
        /// As typed.
        name: String,
        /// Ids, with what tells them apart.
        several: Vec<String>,
    },
    /// SSM knows it, and does not hear its agent.
    #[error("the SSM Agent of `{target}` is not connected to AWS ({status})")]
    Offline {
        /// Its id.
        target: String,
        /// What SSM calls that.
        status: String,
    },
    /// Too old for what was asked.
    #[error("the SSM Agent of `{target}` ({version}) is too old for {what}")]
    OldAgent {
        /// Its id.
        target: String,
        /// Its version.
        version: String,
        /// What it does not know.
        what: &'static str,
    },
    /// No connection for the stream.
    #[error("the stream at `{host}` could not be opened: {cause}")]
    Stream {
        /// Where it was looked for.
        host: String,
        /// Why not.
        cause: String,
    },
    /// The key of an encrypted session.
    #[error("the KMS key `{key}` of the session cannot be used: {cause}")]
    Key {
        /// Its id, as the target names it.
        key: String,
        /// Why not.
        cause: String,
    },
    /// The session ended for a reason other than ours.
    #[error("{0}")]
    Ended(CloseReason),
    /// The way back is shut: SSM does not resume it.
    #[error("the session is over: SSM does not resume it")]
    Over,
    /// No way back for longer than a session can live.
    #[error("the session is lost: no connection to AWS for {minutes} min ({cause})")]
    Lost {
        /// How long.
        minutes: u64,
        /// What the last attempt said.
        cause: String,
    },
    /// The session ended while it was used; its reader was told why.
    #[error("the session is over")]
    Stopped,
}
