//! Why the SSM route does not serve.

use postern_proto::ssm::channel::CloseReason;
use thiserror::Error;

use crate::config::ConfigError;
use crate::error::{Error as UserError, Kind};
use crate::evidence::EvidenceError;
use crate::identity::IdentityError;
use crate::proxy;

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
    #[error("SSM manages no target `{name}` in {region}")]
    NoTarget {
        /// As typed.
        name: String,
        /// Where it was looked for.
        region: String,
    },
    /// Several are.
    #[error("`{name}` is the name of several targets: {}", several.join(", "))]
    Ambiguous {
        /// As typed.
        name: String,
        /// Ids, with what tells them apart.
        several: Vec<String>,
    },
    /// SSM knows it, and does not hear its agent.
    #[error("the SSM Agent of {target} is not connected to AWS ({status})")]
    Offline {
        /// Name and id.
        target: String,
        /// What SSM calls that.
        status: String,
    },
    /// Too old for what was asked.
    #[error("the SSM Agent of {target} (version {version}) is too old for {what}")]
    OldAgent {
        /// Name and id.
        target: String,
        /// Its version.
        version: String,
        /// What it does not know.
        what: &'static str,
    },
    /// No connection for the stream.
    #[error("the session's stream at `{host}` could not be opened: {cause}")]
    Stream {
        /// Where it was looked for.
        host: String,
        /// Why not.
        cause: String,
        /// What to do about it, where the cause tells that.
        hint: Option<&'static str>,
        /// Whether somebody answered, so that asking again at once cannot help.
        is_answer: bool,
    },
    /// The key of an encrypted session.
    #[error(
        "the KMS key `{key}`, which encrypts sessions of this account, cannot be used: {cause}"
    )]
    Key {
        /// Its id, as the target names it.
        key: String,
        /// Why not.
        cause: String,
    },
    /// The session ended for a reason other than ours.
    #[error("the session on {target} failed: {reason}")]
    Ended {
        /// Its id.
        target: String,
        /// Why.
        reason: CloseReason,
    },
    /// The way back is shut: SSM does not resume it.
    #[error("the session is over: SSM does not resume it")]
    Over,
    /// No way back for longer than a session can live.
    #[error("the session is lost: no connection to it for {minutes} min ({cause})")]
    Lost {
        /// How long.
        minutes: u64,
        /// What the last attempt said.
        cause: String,
    },
    /// The target is away for good.
    #[error("{target} is gone: AWS does not hear it, and nothing came from it for {minutes} min")]
    Vanished {
        /// Its id.
        target: String,
        /// How long.
        minutes: u64,
    },
    /// AWS did not confirm the end.
    #[error("AWS was not told in time that session {session} is over")]
    NotEnded {
        /// AWS's id.
        session: String,
    },
    /// The session ended while it was used; its reader was told why.
    #[error("the session is over")]
    Stopped,
    /// A command ended, and not all of its output arrived.
    #[error("the command ended, but a part of its output was lost")]
    Incomplete,
    /// A command ended, and nobody said how.
    #[error("the command ended without telling its exit status")]
    NoStatus,
    /// The evidence could not be written.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The local terminal or a local stream failed.
    #[error("{what}: {cause}")]
    Local {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        cause: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// AWS's codes for "no".
const DENIED: [&str; 3] = [
    "AccessDeniedException",
    "AccessDenied",
    "UnauthorizedOperation",
];

impl SsmError {
    /// Decides the exit code.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Identity(error) => error.kind(),
            Self::Config(_) | Self::Ambiguous { .. } => Kind::Usage,
            Self::Expired(_) => Kind::LoginNeeded,
            Self::Unreachable { .. } | Self::Stream { .. } | Self::Lost { .. } => Kind::Unreachable,
            Self::NoTarget { .. } | Self::Offline { .. } | Self::Vanished { .. } => {
                Kind::Unreachable
            }
            Self::Refused { code, .. } if code == "TargetNotConnected" => Kind::Unreachable,
            Self::Refused { code, .. } if DENIED.contains(&code.as_str()) => Kind::Denied,
            Self::Key { .. } => Kind::Denied,
            Self::Ended {
                reason: CloseReason::HandshakeTimeout | CloseReason::Silent,
                ..
            } => Kind::Unreachable,
            Self::NoRandomness => Kind::Bug,
            Self::Refused { .. }
            | Self::Answer { .. }
            | Self::OldAgent { .. }
            | Self::Ended { .. }
            | Self::Over
            | Self::NotEnded { .. }
            | Self::Incomplete
            | Self::NoStatus
            | Self::Evidence(_)
            | Self::Local { .. }
            | Self::Stopped => Kind::Failed,
        }
    }

    /// Whether somebody decided against it: no other way may then be tried.
    pub fn is_denial(&self) -> bool {
        matches!(self.kind(), Kind::Denied | Kind::LoginNeeded)
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Identity(error) => return error.hint(),
            Self::Config(error) => return error.hint(),
            Self::Refused { code, message, .. } => return refusal_hint(code, message),
            Self::Expired(profile) if profile == "default" => "postern login",
            Self::Expired(profile) => return Some(format!("postern login --profile {profile}")),
            Self::Unreachable { cause, .. } | Self::Stream { cause, .. }
                if cause.contains("ertificate") =>
            {
                "set `ca_bundle` in the profile or AWS_CA_BUNDLE if this endpoint has a CA of its own"
            }
            Self::Unreachable { cause, .. } => {
                proxy::hint(cause).unwrap_or("check the network, the region and the endpoint")
            }
            Self::Stream {
                hint: Some(hint), ..
            } => hint,
            Self::Stream { .. } => {
                "check that this network lets WebSockets to ssmmessages.REGION.amazonaws.com through"
            }
            Self::NoTarget { .. } => {
                "`postern ls --via ssm` lists the targets; SSM manages an instance once its SSM \
                 Agent runs with an instance profile that allows it"
            }
            Self::Ambiguous { .. } => "name the one by its id",
            Self::Offline { .. } => {
                "check that the instance runs, that its SSM Agent does, and that it reaches \
                 ssmmessages.REGION.amazonaws.com"
            }
            Self::OldAgent { what, .. } if what.starts_with("commands") => {
                "update it (AWS-UpdateSSMAgent), or use `postern connect` without a command"
            }
            Self::OldAgent { .. } => "update it (AWS-UpdateSSMAgent)",
            Self::Key { .. } => {
                "ask for kms:GenerateDataKey on that key; the account's Session Manager \
                 preferences name it"
            }
            Self::Ended { reason, .. } => match reason {
                CloseReason::HandshakeTimeout | CloseReason::Silent => {
                    "the instance may have stopped, or its SSM Agent: `postern ls --via ssm` \
                     shows it"
                }
                CloseReason::Encryption => {
                    "compare the KMS key in the account's Session Manager preferences with what \
                     the instance may decrypt"
                }
                _ => return None,
            },
            Self::Over => {
                "it ended on the other side, or its idle or longest time is over: connect again"
            }
            Self::Vanished { .. } => "check whether it was stopped or restarted, and connect again",
            Self::Lost { .. } => "connect again when the network is back",
            Self::NotEnded { .. } => {
                "it ends with SSM's idle timeout; `aws ssm terminate-session` is quicker"
            }
            Self::Evidence(error) => error.hint(),
            Self::Local { .. } => "see what closed it on this computer",
            Self::NoStatus => {
                "it was killed together with its shell, or is none that a POSIX shell runs; \
                 `--via bastion` tells more"
            }
            Self::Incomplete => "run it again, or write its output to a file on the target",
            Self::Answer { .. } => "try again; if it stays, check the endpoint",
            Self::Stopped | Self::NoRandomness => return None,
        };
        Some(text.to_owned())
    }
}

fn refusal_hint(code: &str, message: &str) -> Option<String> {
    let text = match code {
        "TargetNotConnected" => {
            "check that the instance runs, that its SSM Agent does, and that its role allows \
             AmazonSSMManagedInstanceCore"
        }
        code if DENIED.contains(&code) && message.contains("explicit deny") => {
            "a policy forbids it. Where it wants a younger MFA than yours: postern login"
        }
        code if DENIED.contains(&code) => {
            "`postern policy iam` prints the policy that allows it; where that wants MFA, a role \
             session carries none of its own"
        }
        "InvalidDocument" | "InvalidDocumentVersion" => {
            "the account or region has no such SSM document, or a policy hides it"
        }
        "ThrottlingException" | "TooManyUpdates" => {
            "try again in a moment: AWS limits how often an account asks"
        }
        code if is_limit(code) => {
            "end sessions that nobody uses (`aws ssm describe-sessions --state Active`), or ask \
             AWS for a higher quota"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

/// Quotas have several names.
fn is_limit(code: &str) -> bool {
    ["LimitExceeded", "QuotaExceeded", "TooManySessions"]
        .iter()
        .any(|part| code.contains(part))
}

fn refused(service: &str, action: &str, target: Option<&str>, code: &str, message: &str) -> String {
    let on = target.map_or_else(String::new, |target| format!(" on {target}"));
    match (code, target) {
        ("TargetNotConnected", Some(target)) => {
            format!("{target} is not connected to SSM: it is offline, or SSM does not manage it")
        }
        ("InvalidDocument", _) => format!("AWS {service} cannot run {action}{on}: {message}"),
        (code, _) if is_limit(code) => {
            format!("AWS {service} refused {action}{on}: too many sessions ({code})")
        }
        _ if message.is_empty() => format!("AWS {service} refused {action}{on} ({code})"),
        _ => format!("AWS {service} refused {action}{on}: {message} ({code})"),
    }
}

impl From<SsmError> for UserError {
    fn from(error: SsmError) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}
