//! The files of the AWS configuration, and what a profile says in both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::ini::{Ini, Section, nested, without_comment};
use super::{AwsError, Role, host_of};
use crate::config::{ConfigError, Environment, read_small};

const FILE_LIMIT: u64 = 1024 * 1024;
/// A chain of `source_profile` longer than this is a mistake.
const CHAIN_LIMIT: usize = 5;

/// Both files.
pub(super) struct Files {
    config: Ini,
    credentials: Ini,
    pub(super) config_path: PathBuf,
}

/// One profile out of both files; the credentials file comes first.
#[derive(Default, Clone)]
pub(super) struct Merged(BTreeMap<String, Zeroizing<String>>);

impl Merged {
    pub(super) fn get(&self, key: &str) -> Option<String> {
        self.raw(key)
            .map(|value| without_comment(&value).to_owned())
    }

    /// A command: what looks like a comment belongs to it.
    pub(super) fn raw(&self, key: &str) -> Option<String> {
        self.0
            .get(key)
            .map(|value| value.to_string())
            .filter(|value| !value.is_empty())
    }
}

impl Files {
    pub(super) fn read(environment: &Environment) -> Result<Self, AwsError> {
        let place = |variable: &str, name: &str| {
            environment
                .path(variable)
                .map(|path| expand(environment, &path.to_string_lossy()))
                .or_else(|| Some(environment.home()?.join(".aws").join(name)))
                .unwrap_or_default()
        };
        let config_path = place("AWS_CONFIG_FILE", "config");
        let credentials_path = place("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        Ok(Self {
            config: read_ini("the AWS configuration", &config_path)?,
            credentials: read_ini("the AWS credentials", &credentials_path)?,
            config_path,
        })
    }

    pub(super) fn profile(&self, name: &str) -> Option<Merged> {
        let config = if name == "default" {
            self.config
                .section("default")
                .or_else(|| self.config.section("profile default"))
        } else {
            self.config.section(&format!("profile {name}"))
        };
        let credentials = self.credentials.section(name);
        if config.is_none() && credentials.is_none() {
            return None;
        }
        let mut merged = BTreeMap::new();
        for section in [config, credentials].into_iter().flatten() {
            merged.extend(
                section
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone())),
            );
        }
        Some(Merged(merged))
    }

    /// Walks `source_profile` from the last profile of `chain` to the one with keys; the roles on
    /// the way come back in the order to assume them.
    pub(super) fn follow(&self, chain: &mut Vec<(String, Merged)>) -> Result<Vec<Role>, AwsError> {
        let mut roles = Vec::new();
        while let Some((name, profile)) = chain.last().cloned() {
            let Some(arn) = profile.get("role_arn") else {
                break;
            };
            roles.push(Role {
                arn,
                external_id: profile.get("external_id"),
                session_name: profile.get("role_session_name"),
                seconds: profile
                    .get("duration_seconds")
                    .map(|text| seconds(&name, &text))
                    .transpose()?,
            });
            let source = profile
                .get("source_profile")
                .ok_or_else(|| AwsError::NoSource(name.clone()))?;
            if source == name {
                // A profile that names itself holds keys and role, as botocore allows.
                break;
            }
            if chain.len() >= CHAIN_LIMIT || chain.iter().any(|(seen, _)| *seen == source) {
                return Err(AwsError::Circle(name));
            }
            let next = self.profile(&source).ok_or_else(|| AwsError::NoProfile {
                name: source.clone(),
                config: self.config_path.clone(),
            })?;
            chain.push((source, next));
        }
        roles.reverse();
        Ok(roles)
    }

    /// AWS SDKs reference guide, "Service-specific endpoints": the variable of the service, the
    /// variable of all, the service's section, the profile.
    pub(super) fn endpoint(
        &self,
        environment: &Environment,
        chain: &[(String, Merged)],
        variable: &'static str,
        service: &str,
    ) -> Result<Option<String>, AwsError> {
        let ignored = environment
            .text("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")?
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if ignored {
            return Ok(None);
        }
        let of_profile = |(_, profile): &(String, Merged)| {
            let in_services = profile.get("services").and_then(|name| {
                let services: &Section = self.config.section(&format!("services {name}"))?;
                nested(services.get(service)?, "endpoint_url").map(str::to_owned)
            });
            in_services.or_else(|| profile.get("endpoint_url"))
        };
        let url = match environment.text(variable)? {
            Some(url) => Some(url),
            None => environment.text("AWS_ENDPOINT_URL")?,
        };
        let url = url
            .map(str::to_owned)
            .or_else(|| chain.iter().find_map(of_profile));
        match url {
            Some(url) if host_of(&url).is_none() => Err(AwsError::Endpoint(url)),
            url => Ok(url),
        }
    }
}

fn read_ini(what: &'static str, path: &Path) -> Result<Ini, AwsError> {
    if !path.exists() {
        return Ok(Ini::default());
    }
    let bytes = Zeroizing::new(read_small(what, path, FILE_LIMIT)?);
    let text = std::str::from_utf8(&bytes).map_err(|error| ConfigError::Unreadable {
        what,
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    Ini::parse(text).map_err(|line| AwsError::Line {
        path: path.to_owned(),
        line,
    })
}

/// `~/` is the home folder.
pub(super) fn expand(environment: &Environment, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), environment.home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

pub(super) fn seconds(profile: &str, text: &str) -> Result<u32, AwsError> {
    text.parse().map_err(|_| AwsError::Seconds {
        profile: profile.to_owned(),
        text: text.to_owned(),
    })
}
