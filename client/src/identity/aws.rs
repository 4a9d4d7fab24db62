//! The ordinary AWS configuration, as `aws` and the SDKs read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::{ConfigError, Environment, read_small};
use crate::proxy::Proxies;

use super::secret::Keys;

mod ini;

use ini::{Ini, Section, nested, without_comment};

const FILE_LIMIT: u64 = 1024 * 1024;
/// A chain of `source_profile` longer than this is a mistake.
const CHAIN_LIMIT: usize = 5;

/// A profile, resolved; without its long-term keys, which [`AwsProfile::long_term_keys`] reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsProfile {
    /// Its name.
    pub name: String,
    /// The profile that holds the long-term keys: itself, or the end of its `source_profile`s.
    pub source: String,
    /// Where STS is asked.
    pub region: String,
    /// An endpoint of one's own, instead of the region's.
    pub sts_endpoint: Option<String>,
    /// The same for Systems Manager.
    pub ssm_endpoint: Option<String>,
    /// The same for the Key Management Service.
    pub kms_endpoint: Option<String>,
    /// The same for Identity and Access Management.
    pub iam_endpoint: Option<String>,
    /// PEM file of the certificates that sign AWS's, instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Which way leads to AWS.
    pub proxies: Proxies,
    /// The MFA device.
    pub mfa_serial: Option<String>,
    /// A program that prints the code.
    pub mfa_process: Option<String>,
    /// How long the user session is to live, in seconds.
    pub session_seconds: Option<u32>,
    /// Roles to assume, in that order.
    pub roles: Vec<Role>,
    /// Whether the keys of the environment come before those of the files.
    keys_in_environment: bool,
}

/// A role to assume from the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `role_arn`.
    pub arn: String,
    /// `external_id`.
    pub external_id: Option<String>,
    /// `role_session_name`.
    pub session_name: Option<String>,
    /// `duration_seconds`.
    pub seconds: Option<u32>,
}

impl AwsProfile {
    /// Resolves `name`. `named` says that the command line named it: then its keys come before
    /// those of the environment.
    pub fn load(environment: &Environment, name: &str, named: bool) -> Result<Self, AwsError> {
        let files = Files::read(environment)?;
        let keys_in_environment = !named && environment.os("AWS_ACCESS_KEY_ID").is_some();
        let first = files.profile(name);
        if first.is_none() && (name != "default" || !keys_in_environment) {
            return Err(AwsError::NoProfile {
                name: name.to_owned(),
                config: files.config_path,
            });
        }
        let first = first.unwrap_or_default();
        let mut chain = vec![(name.to_owned(), first)];
        let mut roles = Vec::new();
        if !keys_in_environment {
            roles = files.follow(&mut chain)?;
        }
        let source = chain
            .last()
            .map_or_else(|| name.to_owned(), |(name, _)| name.clone());
        // The profile itself first, then what it builds on.
        let find = |key: &str| chain.iter().find_map(|(_, profile)| profile.get(key));
        let variable = |name: &'static str| environment.text(name).map(|v| v.map(str::to_owned));
        let region = variable("AWS_REGION")?
            .or(variable("AWS_DEFAULT_REGION")?)
            .or_else(|| find("region"))
            .ok_or_else(|| AwsError::NoRegion(name.to_owned()))?;
        check_region(&region)?;
        let session_seconds = chain
            .last()
            .and_then(|(_, profile)| profile.get("duration_seconds"))
            .filter(|_| roles.is_empty() || chain.len() > 1)
            .map(|text| seconds(&source, &text))
            .transpose()?;
        Ok(Self {
            sts_endpoint: files.endpoint(environment, &chain, "AWS_ENDPOINT_URL_STS", "sts")?,
            ssm_endpoint: files.endpoint(environment, &chain, "AWS_ENDPOINT_URL_SSM", "ssm")?,
            kms_endpoint: files.endpoint(environment, &chain, "AWS_ENDPOINT_URL_KMS", "kms")?,
            iam_endpoint: files.endpoint(environment, &chain, "AWS_ENDPOINT_URL_IAM", "iam")?,
            ca_bundle: environment
                .path("AWS_CA_BUNDLE")
                .or_else(|| Some(expand(environment, &find("ca_bundle")?))),
            proxies: Proxies::of(environment)?,
            mfa_serial: find("mfa_serial"),
            mfa_process: chain
                .iter()
                .find_map(|(_, profile)| profile.raw("mfa_process")),
            session_seconds,
            roles,
            region,
            source,
            name: name.to_owned(),
            keys_in_environment,
        })
    }

    /// The long-term keys of the source profile. For `login` and step-up alone.
    pub fn long_term_keys(&self, environment: &Environment) -> Result<Keys, AwsError> {
        let (id, secret, token, place) = if self.keys_in_environment {
            let text = |name| Ok::<_, AwsError>(environment.text(name)?.map(str::to_owned));
            (
                text("AWS_ACCESS_KEY_ID")?,
                text("AWS_SECRET_ACCESS_KEY")?,
                text("AWS_SESSION_TOKEN")?,
                "the environment".to_owned(),
            )
        } else {
            let profile = Files::read(environment)?
                .profile(&self.source)
                .unwrap_or_default();
            (
                profile.get("aws_access_key_id"),
                profile.get("aws_secret_access_key"),
                profile.get("aws_session_token"),
                format!("profile `{}`", self.source),
            )
        };
        let (Some(access_key_id), Some(secret)) = (id, secret) else {
            return Err(AwsError::NoKeys(place));
        };
        if token.is_some() || access_key_id.starts_with("ASIA") {
            return Err(AwsError::TemporaryKeys(place));
        }
        let right = access_key_id.len() >= 16
            && access_key_id.len() <= 128
            && access_key_id
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !right {
            return Err(AwsError::KeyId(place));
        }
        Ok(Keys {
            access_key_id,
            secret_access_key: secret.into(),
            session_token: None,
        })
    }

    /// `host[:port]` of its STS endpoint.
    pub fn sts_host(&self) -> String {
        service_host(self.sts_endpoint.as_deref(), "sts", &self.region)
    }
}

/// `host[:port]` of AWS's own STS endpoint of a region.
pub fn regional_sts_host(region: &str) -> String {
    regional_host("sts", region)
}

/// `host[:port]` of an endpoint of one's own, else AWS's of a region.
pub(crate) fn service_host(endpoint: Option<&str>, service: &str, region: &str) -> String {
    endpoint
        .and_then(host_of)
        .unwrap_or_else(|| regional_host(service, region))
}

fn regional_host(service: &str, region: &str) -> String {
    let suffix = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else if region.starts_with("us-iso-") {
        "c2s.ic.gov"
    } else if region.starts_with("us-isob-") {
        "sc2s.sgov.gov"
    } else {
        "amazonaws.com"
    };
    format!("{service}.{region}.{suffix}")
}

/// A region's name goes into host names and signatures.
pub fn is_region(text: &str) -> bool {
    (3..=32).contains(&text.len())
        && text.contains('-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

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

/// Both files.
struct Files {
    config: Ini,
    credentials: Ini,
    config_path: PathBuf,
}

/// One profile out of both files; the credentials file comes first.
#[derive(Default, Clone)]
struct Merged(BTreeMap<String, Zeroizing<String>>);

impl Merged {
    fn get(&self, key: &str) -> Option<String> {
        self.raw(key)
            .map(|value| without_comment(&value).to_owned())
    }

    /// A command: what looks like a comment belongs to it.
    fn raw(&self, key: &str) -> Option<String> {
        self.0
            .get(key)
            .map(|value| value.to_string())
            .filter(|value| !value.is_empty())
    }
}

impl Files {
    fn read(environment: &Environment) -> Result<Self, AwsError> {
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

    fn profile(&self, name: &str) -> Option<Merged> {
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
    fn follow(&self, chain: &mut Vec<(String, Merged)>) -> Result<Vec<Role>, AwsError> {
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
    fn endpoint(
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
fn expand(environment: &Environment, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), environment.home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

/// Host and port of an https URL without a path.
fn host_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let authority = url.authority()?;
    let bare = matches!(url.path(), "" | "/") && url.query().is_none();
    let plain = !authority.as_str().contains('@');
    (url.scheme_str() == Some("https") && bare && plain).then(|| {
        authority
            .as_str()
            .strip_suffix(":443")
            .unwrap_or_else(|| authority.as_str())
            .to_owned()
    })
}

fn check_region(region: &str) -> Result<(), AwsError> {
    if is_region(region) {
        Ok(())
    } else {
        Err(AwsError::Region(region.to_owned()))
    }
}

fn seconds(profile: &str, text: &str) -> Result<u32, AwsError> {
    text.parse().map_err(|_| AwsError::Seconds {
        profile: profile.to_owned(),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests;
