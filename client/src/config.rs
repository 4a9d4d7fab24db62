//! Settings: flags over environment over file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use postern_proto::names::{AgentId, TargetName};
use secrecy::SecretString;

use crate::cli::{GlobalArgs, Via};

mod agent;
mod file;

pub use agent::AgentProfile;

/// Every variable that the client reads, in one place. AWS's own are in `identity::aws`.
pub mod variable {
    /// Configuration file.
    pub const CONFIG: &str = "POSTERN_CONFIG";
    /// `host:port` of the one agent; its companions are then needed too.
    pub const AGENT: &str = "POSTERN_AGENT";
    /// The agent's id.
    pub const AGENT_ID: &str = "POSTERN_AGENT_ID";
    /// Path of the server CA (PEM).
    pub const AGENT_CA: &str = "POSTERN_AGENT_CA";
    /// ARN of the attestation role.
    pub const ATTESTATION_ROLE: &str = "POSTERN_ATTESTATION_ROLE";
    /// Verifier key of the agent's audit log.
    pub const LOG_KEY: &str = "POSTERN_LOG_KEY";
    /// `host[:port]` of the STS endpoint that the agent uses, when it is neither AWS's regional one
    /// nor the one of the AWS profile.
    pub const STS_HOST: &str = "POSTERN_STS_HOST";
    /// Login user on targets.
    pub const USER: &str = "POSTERN_USER";
    /// `auto`, `secret-service`, `kernel` or `file`.
    pub const KEYRING: &str = "POSTERN_KEYRING";
    /// Folder of what the client keeps.
    pub const STATE: &str = "POSTERN_STATE";
    /// Folder of an audit store.
    pub const STORE: &str = "POSTERN_STORE";
    /// The auditor's age identity file.
    pub const AUDITOR_IDENTITY: &str = "POSTERN_AUDITOR_IDENTITY";
    /// SSM sessions of one forward at once.
    pub const SSM_SESSIONS: &str = "POSTERN_SSM_SESSIONS";
    /// Route to targets: `auto`, `bastion` or `ssm`.
    pub const VIA: &str = "POSTERN_VIA";
    /// Folder of the evidence that this client writes itself.
    pub const EVIDENCE: &str = "POSTERN_EVIDENCE";
    /// Age recipients of its auditors, separated by commas.
    pub const AUDITORS: &str = "POSTERN_AUDITORS";
    /// The six digits.
    pub const MFA_CODE: &str = "POSTERN_MFA_CODE";

    /// All of them.
    pub const ALL: [&str; 17] = [
        CONFIG,
        AGENT,
        AGENT_ID,
        AGENT_CA,
        ATTESTATION_ROLE,
        LOG_KEY,
        STS_HOST,
        USER,
        KEYRING,
        STATE,
        STORE,
        AUDITOR_IDENTITY,
        SSM_SESSIONS,
        VIA,
        EVIDENCE,
        AUDITORS,
        MFA_CODE,
    ];
}

/// SSM sessions of one forward, when nothing else is said.
const SSM_SESSIONS: usize = 4;
/// The most that anybody may ask for: AWS counts sessions per account.
const SSM_SESSIONS_LIMIT: usize = 16;

/// A copy of the process's variables, so that tests bring their own. An empty variable counts as
/// absent.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The process's.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect()
    }

    /// A variable, as it is.
    pub fn os(&self, name: &str) -> Option<&OsStr> {
        self.0
            .get(name)
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// A variable that must be text.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>, ConfigError> {
        self.os(name)
            .map(|value| value.to_str().ok_or(ConfigError::VariableNotText(name)))
            .transpose()
    }

    /// A variable that is a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.os(name).map(PathBuf::from)
    }

    /// The home folder.
    pub fn home(&self) -> Option<PathBuf> {
        self.path("HOME")
    }
}

#[cfg(test)]
impl Environment {
    /// The same with one variable more.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

/// Values may be secrets: names alone are printed.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

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

    fn keyring(place: String, text: &str) -> Self {
        Self::Value {
            place,
            problem: format!("`{text}` is no keyring: auto, secret-service, kernel or file"),
        }
    }
}

fn near(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
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
