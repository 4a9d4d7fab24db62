//! Why the settings cannot be used, in words with the next step.

use std::path::PathBuf;

/// Why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named cannot be read.
    #[error("{what} `{}` cannot be read: {cause}", path.display())]
    Unreadable {
        /// What it would hold.
        what: &'static str,
        /// Where it would be.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// No TOML.
    #[error("the configuration file `{}` is not valid TOML: {cause}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        cause: String,
    },
    /// A key that nothing reads.
    #[error("unknown key `{key}` in `{}`{}", path.display(), near(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// The nearest right one.
        nearest: Option<String>,
    },
    /// A value that cannot be used.
    #[error("{place}: {problem}")]
    Value {
        /// Key and file, or variable.
        place: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A variable that is not UTF-8.
    #[error("the variable {0} is not valid UTF-8")]
    VariableNotText(&'static str),
    /// An agent in the environment without its companions.
    #[error("POSTERN_AGENT is set, but {0} is not")]
    AgentIncomplete(&'static str),
    /// No folder to keep anything in.
    #[error("neither HOME nor POSTERN_STATE is set: there is no folder to keep the session in")]
    NoHome,
}

impl ConfigError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => Some("check the path and its permissions".to_owned()),
            Self::AgentIncomplete(_) => Some(
                "an agent needs POSTERN_AGENT_ID, POSTERN_AGENT_CA, POSTERN_ATTESTATION_ROLE \
                 and POSTERN_LOG_KEY"
                    .to_owned(),
            ),
            Self::NoHome => Some("set POSTERN_STATE".to_owned()),
            Self::UnknownKey { .. }
            | Self::Syntax { .. }
            | Self::Value { .. }
            | Self::VariableNotText(_) => None,
        }
    }

    pub(super) fn keyring(place: String, text: &str) -> Self {
        Self::Value {
            place,
            problem: format!("`{text}` is no keyring: auto, secret-service, kernel or file"),
        }
    }
}

fn near(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
