//! Settings: flags over environment over file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use postern_proto::names::{AgentId, TargetName};
use secrecy::SecretString;

use crate::cli::{GlobalArgs, Via};

mod agent;
mod environment;
mod error;
mod file;
pub mod variable;

pub use agent::AgentProfile;
pub use environment::Environment;
pub use error::ConfigError;

/// SSM sessions of one forward, when nothing else is said.
const SSM_SESSIONS: usize = 4;
/// The most that anybody may ask for: AWS counts sessions per account.
const SSM_SESSIONS_LIMIT: usize = 16;

/// Where the wrapping key of the kept sessions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyringChoice {
    /// The desktop's, else the kernel's, else a passphrase.
    #[default]
    Auto,
    /// The operating system's keyring: Secret Service on Linux, the Keychain on macOS.
    SecretService,
    /// The Linux kernel's user keyring: gone at reboot.
    Kernel,
    /// A file under a passphrase.
    File,
}

impl KeyringChoice {
    const NAMES: [(&str, Self); 4] = [
        ("auto", Self::Auto),
        ("secret-service", Self::SecretService),
        ("kernel", Self::Kernel),
        ("file", Self::File),
    ];

    fn parse(text: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice)
    }
}

/// Everything, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Agents, by preference.
    pub agents: Vec<AgentProfile>,
    /// The AWS profile.
    pub profile: String,
    /// Whether the command line named it.
    pub profile_named: bool,
    /// Login user when a command names none.
    pub login_user: Option<String>,
    /// Route to targets when a command names none.
    pub via: Via,
    /// Names of one's own for targets.
    pub aliases: BTreeMap<String, TargetName>,
    /// See [`KeyringChoice`].
    pub keyring: KeyringChoice,
    /// Folder of what the client keeps.
    pub state: PathBuf,
    /// Folder of an audit store.
    pub audit_store: Option<PathBuf>,
    /// The auditor's age identity file.
    pub auditor_identity: Option<PathBuf>,
    /// SSM sessions of one forward at once.
    pub ssm_sessions: usize,
    /// Folder of the evidence that this client writes itself.
    pub evidence: PathBuf,
    /// Age recipients of the auditors of that evidence; the user's own key when there are none.
    pub auditors: Vec<String>,
    /// The six digits, from the environment.
    pub mfa_code: Option<SecretString>,
}

impl Settings {
    /// Reads file and environment under the flags. An absent file is an empty one, unless it was
    /// named.
    pub fn load(global: &GlobalArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let named = global
            .config
            .clone()
            .or_else(|| environment.path(variable::CONFIG));
        let file = match (named, default_file(environment)) {
            (Some(path), _) => file::File::read(&path)?,
            (None, Some(path)) => file::File::read_if_there(&path)?,
            (None, None) => file::File::default(),
        };
        let agents = match AgentProfile::from_environment(environment)? {
            Some(agent) => vec![agent],
            None => file
                .agent
                .iter()
                .map(|section| section.resolve(&file, environment))
                .collect::<Result<_, _>>()?,
        };
        let profile = match &global.profile {
            Some(profile) => Some(profile.clone()),
            None => environment.text("AWS_PROFILE")?.map(str::to_owned),
        };
        let keyring = match environment.text(variable::KEYRING)? {
            Some(text) => KeyringChoice::parse(text)
                .ok_or_else(|| ConfigError::keyring(variable::KEYRING.to_owned(), text))?,
            None => file.keyring()?.unwrap_or_default(),
        };
        let via = match environment.text(variable::VIA)? {
            Some(text) => route(variable::VIA.to_owned(), text)?,
            None => file.via()?.unwrap_or_default(),
        };
        let state = environment
            .path(variable::STATE)
            .or_else(|| file.path(file.state.as_deref(), environment))
            .or_else(|| default_state(environment))
            .ok_or(ConfigError::NoHome)?;
        Ok(Self {
            agents,
            profile_named: global.profile.is_some(),
            profile: profile
                .or_else(|| file.profile.clone())
                .unwrap_or_else(|| "default".to_owned()),
            login_user: environment
                .text(variable::USER)?
                .map(str::to_owned)
                .or_else(|| file.user.clone()),
            via,
            aliases: file.aliases()?,
            keyring,
            evidence: environment
                .path(variable::EVIDENCE)
                .or_else(|| file.path(file.evidence.as_deref(), environment))
                .unwrap_or_else(|| state.join("evidence")),
            auditors: match environment.text(variable::AUDITORS)? {
                Some(text) => auditors(variable::AUDITORS, text.split(','))?,
                None => file.auditors()?,
            },
            state,
            audit_store: environment
                .path(variable::STORE)
                .or_else(|| file.path(file.audit_store.as_deref(), environment)),
            auditor_identity: environment
                .path(variable::AUDITOR_IDENTITY)
                .or_else(|| file.path(file.auditor_identity.as_deref(), environment)),
            ssm_sessions: match environment.text(variable::SSM_SESSIONS)? {
                Some(text) => ssm_sessions(variable::SSM_SESSIONS.to_owned(), text)?,
                None => file.ssm_sessions()?.unwrap_or(SSM_SESSIONS),
            },
            mfa_code: environment
                .text(variable::MFA_CODE)?
                .map(SecretString::from),
        })
    }
}

/// Parses a route from `place`.
fn route(place: String, text: &str) -> Result<Via, ConfigError> {
    Via::from_str(text, false).map_err(|_| ConfigError::Value {
        place,
        problem: format!("`{text}` is no route: auto, bastion or ssm"),
    })
}

fn default_file(environment: &Environment) -> Option<PathBuf> {
    let folder = environment
        .path("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(environment.home()?.join(".config")))?;
    Some(folder.join("postern").join("config.toml"))
}

fn default_state(environment: &Environment) -> Option<PathBuf> {
    let folder = environment
        .path("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(environment.home()?.join(".local").join("state")))?;
    Some(folder.join("postern"))
}

/// Reads a small file whole; more than `limit` bytes is an error.
pub(crate) fn read_small(
    what: &'static str,
    path: &Path,
    limit: u64,
) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read as _;
    let unreadable = |cause: String| ConfigError::Unreadable {
        what,
        path: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > limit {
        return Err(unreadable(format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads the number of SSM sessions.
fn ssm_sessions(place: String, text: &str) -> Result<usize, ConfigError> {
    let number = text.parse().ok();
    number
        .filter(|number| (1..=SSM_SESSIONS_LIMIT).contains(number))
        .ok_or_else(|| ConfigError::Value {
            place,
            problem: format!("`{text}` is no number of sessions: 1 to {SSM_SESSIONS_LIMIT}"),
        })
}

/// Checks that a text is the ARN of an IAM role.
fn is_role_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    parts.next() == Some("arn")
        && parts
            .next()
            .is_some_and(|partition| partition.starts_with("aws"))
        && parts.next() == Some("iam")
        && parts.next() == Some("")
        && parts.next().is_some_and(|account| {
            account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit())
        })
        && parts.next().is_some_and(|role| {
            role.strip_prefix("role/")
                .is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()))
        })
}

/// Checks age recipients from `place`.
fn auditors<'a>(
    place: &str,
    texts: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, ConfigError> {
    texts
        .map(str::trim)
        .map(|text| match text.parse::<age::x25519::Recipient>() {
            Ok(_) => Ok(text.to_owned()),
            Err(why) => {
                let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
                Err(ConfigError::Value {
                    place: place.to_owned(),
                    problem: format!("`{shown}` is no age recipient (`age1…`): {why}"),
                })
            }
        })
        .collect()
}

/// Parses an agent id from `place`.
fn agent_id(place: &str, text: &str) -> Result<AgentId, ConfigError> {
    text.parse().map_err(|error| ConfigError::Value {
        place: place.to_owned(),
        problem: format!("{error}"),
    })
}

#[cfg(test)]
mod tests;
