//! The ordinary AWS configuration, as `aws` and the SDKs read it.

use std::path::PathBuf;

use crate::config::Environment;
use crate::proxy::Proxies;

use super::secret::Keys;

mod error;
mod files;
mod ini;

pub use error::AwsError;

use files::{Files, expand, seconds};

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

#[cfg(test)]
mod tests;
