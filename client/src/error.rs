//! Error -> sentence, `hint:`, exit code. The one translation at the edge.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::output::Printer;

/// What kind of failure: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Somebody said no: the agent's policy, AWS.
    Denied,
    /// It did not work.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// The agent or AWS could not be reached.
    Unreachable,
    /// MFA must be given first.
    LoginNeeded,
    /// Our fault.
    Bug,
}

impl Kind {
    /// Exit code of commands that do not return a remote status.
    pub fn code(self) -> u8 {
        match self {
            Self::Denied | Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::LoginNeeded => 4,
            Self::Bug => 70,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Unreachable => "unreachable",
            Self::LoginNeeded => "login needed",
            Self::Bug => "bug",
        })
    }
}

/// Exit code of `connect` and `proxy` for every failure of ours, as `ssh` has it.
pub const STATUS_OF_OURS: u8 = 255;

/// A failure as people see it: what failed, on what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// One sentence without a full stop.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Error {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Somebody said no.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Kind::Denied, message)
    }

    /// It did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A peer could not be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// MFA must be given first.
    pub fn login_needed(message: impl Into<String>) -> Self {
        Self::new(Kind::LoginNeeded, message).hint("postern login")
    }

    /// Our fault.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// Adds or replaces the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The process's exit code; `passes_status` for `connect` and `proxy`.
    pub fn exit_code(&self, passes_status: bool) -> ExitCode {
        ExitCode::from(if passes_status {
            STATUS_OF_OURS
        } else {
            self.kind.code()
        })
    }

    /// The stable form on stderr.
    pub fn to_json(&self, passes_status: bool) -> serde_json::Value {
        let exit = if passes_status {
            STATUS_OF_OURS
        } else {
            self.kind.code()
        };
        let mut error = serde_json::json!({
            "kind": self.kind,
            "message": self.message,
            "exit": exit,
        });
        if let (Some(hint), Some(fields)) = (&self.hint, error.as_object_mut()) {
            fields.insert("hint".to_owned(), hint.as_str().into());
        }
        serde_json::json!({ "error": error })
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        Self {
            kind: Kind::Usage,
            message: error.to_string(),
            hint,
        }
    }
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}

/// Commands add context with `anyhow`; a typed error inside keeps its kind and hint.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        for cause in error.chain() {
            let known = if let Some(known) = cause.downcast_ref::<Self>() {
                Some((known.kind, known.hint.clone()))
            } else if let Some(known) = cause.downcast_ref::<IdentityError>() {
                Some((known.kind(), known.hint()))
            } else {
                cause
                    .downcast_ref::<ConfigError>()
                    .map(|known| (Kind::Usage, known.hint()))
            };
            if let Some((kind, hint)) = known {
                return Self {
                    kind,
                    message,
                    hint,
                };
            }
        }
        Self::failed(message)
    }
}

/// Reports what clap found, or prints the help that was asked for.
pub(crate) fn usage(error: &clap::Error, passes_status: bool, json: bool) -> ExitCode {
    if !error.use_stderr() {
        // Help and version are answers. A closed stdout is no failure of theirs.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let help = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if json && !help {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        let error = Error::usage(message).hint("postern --help");
        Printer::plain_json().error(&error, passes_status);
        return error.exit_code(passes_status);
    }
    let _ = error.print();
    ExitCode::from(if passes_status {
        STATUS_OF_OURS
    } else {
        Kind::Usage.code()
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn context_keeps_kind_and_hint() {
        let cause = IdentityError::LoginNeeded("work".to_owned());
        let wrapped = Err::<(), _>(cause).context("agent `b1`").unwrap_err();
        let error = Error::from(wrapped);
        assert_eq!(error.kind, Kind::LoginNeeded);
        assert_eq!(error.hint.as_deref(), Some("postern login --profile work"));
        assert_eq!(
            error.message,
            "agent `b1`: no MFA session for profile `work`"
        );
    }

    #[test]
    fn connect_and_proxy_fail_like_ssh() {
        let error = Error::denied("no").hint("ask");
        assert_eq!(error.exit_code(true), ExitCode::from(255));
        assert_eq!(error.exit_code(false), ExitCode::from(1));
        assert_eq!(
            error.to_json(true),
            serde_json::json!({
                "error": { "exit": 255, "hint": "ask", "kind": "denied", "message": "no" }
            })
        );
    }
}
