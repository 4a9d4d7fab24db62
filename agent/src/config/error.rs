//! What is wrong with a configuration file, and what to do about it.

use std::path::{Path, PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read {}: {source}\nhint: `postern-agent init` makes one, `--config` names another",
        .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is absurdly long.
    #[error("{} is longer than {limit} bytes", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The text is not TOML, or a value has the wrong form.
    #[error("{}:{line}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}:{line}: there is no setting `{key}` here\nhint: {hint}", .path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The nearest right one, or all of them.
        hint: String,
    },
    /// A value that cannot work.
    #[error("{}: `{key}` {message}\nhint: {hint}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
}

impl ConfigError {
    pub(super) fn from_toml(path: &Path, text: &str, fault: &toml::de::Error) -> Self {
        let start = fault.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let path = path.to_owned();
        let message = fault.message().trim().to_owned();
        match unknown_key(&message) {
            Some((key, hint)) => Self::UnknownKey {
                path,
                line,
                key,
                hint,
            },
            None => Self::Syntax {
                path,
                line,
                message,
            },
        }
    }
}

/// The key that serde's `deny_unknown_fields` speaks of, and a hint: the nearest right one, or all
/// that exist. `None` when the message is about something else.
pub(crate) fn unknown_key(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    let known: Vec<_> = rest
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    Some((key.to_owned(), nearest(key, &known)))
}

fn nearest(key: &str, known: &[String]) -> String {
    let best = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(key, name), name))
        .min();
    match best {
        Some((distance, name)) if distance <= 1 + name.len() / 3 => {
            format!("did you mean `{name}`?")
        }
        _ => format!("the settings here are {}", known.join(", ")),
    }
}
