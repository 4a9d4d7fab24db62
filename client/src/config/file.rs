//! The configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use postern_proto::names::TargetName;
use serde::Deserialize;

use super::agent::Parts;
use super::{AgentProfile, ConfigError, Environment, KeyringChoice, read_small, route};
use crate::cli::Via;

const FILE_LIMIT: u64 = 1024 * 1024;
const KEYS: &[&str] = &[
    "profile",
    "user",
    "via",
    "alias",
    "keyring",
    "state",
    "audit_store",
    "auditor_identity",
    "ssm_sessions",
    "evidence",
    "auditors",
    "agent",
];
const AGENT_KEYS: &[&str] = &[
    "id",
    "address",
    "ca",
    "attestation_role",
    "log_key",
    "sts_host",
];

/// `config.toml`, as written.
#[derive(Debug, Default, Deserialize)]
pub(super) struct File {
    pub(super) profile: Option<String>,
    pub(super) user: Option<String>,
    via: Option<String>,
    #[serde(default)]
    alias: BTreeMap<String, String>,
    keyring: Option<String>,
    pub(super) state: Option<PathBuf>,
    pub(super) audit_store: Option<PathBuf>,
    pub(super) auditor_identity: Option<PathBuf>,
    ssm_sessions: Option<i64>,
    pub(super) evidence: Option<PathBuf>,
    #[serde(default)]
    auditors: Vec<String>,
    #[serde(default)]
    pub(super) agent: Vec<AgentSection>,
    /// Relative paths start here.
    #[serde(skip)]
    pub(super) folder: PathBuf,
    #[serde(skip)]
    path: PathBuf,
}

/// An `[[agent]]` section.
#[derive(Debug, Deserialize)]
pub(super) struct AgentSection {
    id: String,
    address: String,
    ca: PathBuf,
    attestation_role: String,
    log_key: String,
    sts_host: Option<String>,
}

impl File {
    pub(super) fn read_if_there(path: &Path) -> Result<Self, ConfigError> {
        if path.exists() {
            Self::read(path)
        } else {
            Ok(Self::default())
        }
    }

    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read_small("the configuration file", path, FILE_LIMIT)?;
        let syntax = |cause: String| ConfigError::Syntax {
            path: path.to_owned(),
            cause,
        };
        let text = String::from_utf8(bytes).map_err(|error| syntax(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error| syntax(place(&text, &error)))?;
        check_keys(path, "", &table, KEYS)?;
        for agent in table
            .get("agent")
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_table)
        {
            check_keys(path, "agent.", agent, AGENT_KEYS)?;
        }
        let mut file: Self = toml::from_str(&text).map_err(|error| syntax(place(&text, &error)))?;
        file.folder = path.parent().map(Path::to_owned).unwrap_or_default();
        path.clone_into(&mut file.path);
        Ok(file)
    }

    pub(super) fn via(&self) -> Result<Option<Via>, ConfigError> {
        let place = || format!("`via` in `{}`", self.path.display());
        self.via
            .as_deref()
            .map(|text| route(place(), text))
            .transpose()
    }

    /// Names of one's own for targets.
    pub(super) fn aliases(&self) -> Result<BTreeMap<String, TargetName>, ConfigError> {
        let target = |(alias, target): (&String, &String)| match target.parse() {
            Ok(target) => Ok((alias.clone(), target)),
            Err(error) => Err(ConfigError::Value {
                place: format!("`alias.{alias}` in `{}`", self.path.display()),
                problem: format!("{error}"),
            }),
        };
        self.alias.iter().map(target).collect()
    }

    pub(super) fn keyring(&self) -> Result<Option<KeyringChoice>, ConfigError> {
        self.keyring
            .as_deref()
            .map(|text| {
                KeyringChoice::parse(text).ok_or_else(|| {
                    ConfigError::keyring(format!("`keyring` in `{}`", self.path.display()), text)
                })
            })
            .transpose()
    }

    pub(super) fn ssm_sessions(&self) -> Result<Option<usize>, ConfigError> {
        let place = || format!("`ssm_sessions` in `{}`", self.path.display());
        self.ssm_sessions
            .map(|number| super::ssm_sessions(place(), &number.to_string()))
            .transpose()
    }

    /// The auditors' age recipients, each one a recipient.
    pub(super) fn auditors(&self) -> Result<Vec<String>, ConfigError> {
        super::auditors(
            &format!("`auditors` in `{}`", self.path.display()),
            self.auditors.iter().map(String::as_str),
        )
    }

    /// A path of the file: `~/` is the home folder, a relative one starts at the file's folder.
    pub(super) fn path(&self, path: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
        let path = path?;
        match (path.strip_prefix("~"), environment.home()) {
            (Ok(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(self.folder.join(path)),
        }
    }
}

impl AgentSection {
    pub(super) fn resolve(
        &self,
        file: &File,
        environment: &Environment,
    ) -> Result<AgentProfile, ConfigError> {
        let ca = file
            .path(Some(&self.ca), environment)
            .unwrap_or_else(|| self.ca.clone());
        AgentProfile::check(Parts {
            place: &|key| format!("`agent.{key}` in `{}`", file.path.display()),
            id: &self.id,
            address: &self.address,
            ca: &ca,
            attestation_role: &self.attestation_role,
            log_key: &self.log_key,
            sts_host: self.sts_host.as_deref(),
        })
    }
}

fn check_keys(
    path: &Path,
    section: &str,
    table: &toml::Table,
    known: &[&str],
) -> Result<(), ConfigError> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            key: format!("{section}{key}"),
            nearest: nearest(key, known).map(|name| format!("{section}{name}")),
        }),
    }
}

/// The known name that a wrong one was probably meant to be.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), *name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

/// Line and reason in one sentence: the crate's own form draws several lines.
fn place(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}
