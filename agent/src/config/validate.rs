//! Values that have the right form but cannot work.

use std::path::Path;
use std::time::Duration;

use super::{Config, ConfigError};

/// A finding without its file.
pub(super) struct Fault {
    key: &'static str,
    message: String,
    hint: String,
}

impl Fault {
    pub(super) fn into_error(self, path: &Path) -> ConfigError {
        ConfigError::Value {
            path: path.to_owned(),
            key: self.key,
            message: self.message,
            hint: self.hint,
        }
    }
}

fn fault(key: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Fault {
    Fault {
        key,
        message: message.into(),
        hint: hint.into(),
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Fault> {
        self.check_addresses()?;
        self.check_aws()?;
        self.check_times()?;
        self.check_evidence()?;
        self.check_limits()
    }

    fn check_addresses(&self) -> Result<(), Fault> {
        if self.listen == self.health_listen && self.listen.port() != 0 {
            return Err(fault(
                "health_listen",
                "is the same address as `listen`",
                "health and metrics are clear text: give them an address of their own",
            ));
        }
        if let Some(agent) = self.trust.agents.iter().find(|agent| agent.id == self.id) {
            return Err(fault(
                "trust.agents",
                format!("names this agent itself (`{}`)", agent.id),
                "its own intermediate is trusted anyway; list the other agents only",
            ));
        }
        Ok(())
    }

    fn check_aws(&self) -> Result<(), Fault> {
        let ec2 = self.inventory.ec2.as_ref();
        let endpoints = [
            ("sts.endpoint_url", self.sts.endpoint_url.as_ref()),
            (
                "attestation.iam_endpoint_url",
                self.attestation.iam_endpoint_url.as_ref(),
            ),
            (
                "inventory.ec2.endpoint_url",
                ec2.and_then(|ec2| ec2.endpoint_url.as_ref()),
            ),
        ];
        for (key, url) in endpoints {
            if let Some(url) = url {
                check_endpoint(key, url)?;
            }
        }
        check_region("sts.region", &self.sts.region)?;
        if let Some(ec2) = ec2 {
            if ec2.regions.is_empty() {
                return Err(fault(
                    "inventory.ec2.regions",
                    "is empty",
                    "name the regions whose instances are targets, such as [\"eu-west-1\"]",
                ));
            }
            for region in &ec2.regions {
                check_region("inventory.ec2.regions", region)?;
            }
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Fault> {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        let ranges = [
            // AWS sessions with MFA live 15 minutes to 36 hours.
            (
                "attestation.mfa_max_age",
                self.attestation.mfa_max_age,
                15 * MINUTE,
                36 * HOUR,
            ),
            (
                "attestation.interval",
                self.attestation.interval,
                MINUTE,
                HOUR,
            ),
            (
                "certificate.lifetime",
                self.certificate.lifetime,
                5 * MINUTE,
                12 * HOUR,
            ),
            (
                "dial.deadline",
                self.dial.deadline,
                Duration::from_secs(1),
                MINUTE,
            ),
            ("limits.drain", self.limits.drain, Duration::ZERO, HOUR),
            ("session.grant", self.session.grant, MINUTE, 24 * 30 * HOUR),
            (
                "session.detach",
                self.session.detach,
                Duration::ZERO,
                24 * HOUR,
            ),
        ];
        let refresh = self.inventory.ec2.as_ref().map(|ec2| {
            let least = Duration::from_secs(5);
            ("inventory.ec2.refresh", ec2.refresh, least, 24 * HOUR)
        });
        let retention = self.evidence.retention.map(|keep| {
            let (day, decade) = (24 * HOUR, 24 * 3653 * HOUR);
            ("evidence.retention", keep, day, decade)
        });
        for (key, value, least, most) in ranges.into_iter().chain(refresh).chain(retention) {
            if value < least || value > most {
                let shown = super::format_duration;
                return Err(fault(
                    key,
                    format!("is {}", shown(value)),
                    format!("choose from {} to {}", shown(least), shown(most)),
                ));
            }
        }
        Ok(())
    }

    fn check_evidence(&self) -> Result<(), Fault> {
        if self.evidence.recipients.is_empty() {
            return Err(fault(
                "evidence.recipients",
                "is empty, so nobody could ever read a recording",
                "list the auditors' age recipients (`age1…`), two or more",
            ));
        }
        for recipient in &self.evidence.recipients {
            if let Err(why) = recipient.parse::<age::x25519::Recipient>() {
                let shown: String = recipient
                    .chars()
                    .take(80)
                    .flat_map(char::escape_debug)
                    .collect();
                return Err(fault(
                    "evidence.recipients",
                    format!("has `{shown}`, which is no age recipient: {why}"),
                    "a recipient starts with `age1`; `age-keygen` prints one",
                ));
            }
        }
        let shown =
            |name: &str| -> String { name.chars().take(80).flat_map(char::escape_debug).collect() };
        if let Some(name) = self.evidence.previous_key.as_ref()
            && (!is_plain(name) || name.starts_with('.'))
        {
            return Err(fault(
                "evidence.previous_key",
                format!("is `{}`, which is no name of a key", shown(name)),
                "name a file of the keys folder without its path: \"audit-log-old.key\"",
            ));
        }
        let mut programs = self.evidence.bulk_programs.iter();
        if let Some(name) = programs.find(|name| !is_plain(name)) {
            return Err(fault(
                "evidence.bulk_programs",
                format!("has `{}`, which is no program's name", shown(name)),
                "name the program alone, without folder or arguments: [\"rsync\", \"git\"]",
            ));
        }
        if self.evidence.session_quota == 0 || self.evidence.principal_quota == 0 {
            return Err(fault(
                "evidence.session_quota",
                "or `evidence.principal_quota` is 0, so nothing could be recorded",
                "leave them out for the defaults",
            ));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Fault> {
        let limits = [
            ("limits.connections", self.limits.connections),
            ("limits.unauthenticated", self.limits.unauthenticated),
            (
                "limits.unauthenticated_per_address",
                self.limits.unauthenticated_per_address,
            ),
            ("limits.enrollments", self.limits.enrollments),
            (
                "limits.enrollments_per_address",
                self.limits.enrollments_per_address,
            ),
            (
                "limits.pipes_per_principal",
                self.limits.pipes_per_principal,
            ),
            (
                "limits.sessions_per_principal",
                self.limits.sessions_per_principal,
            ),
        ];
        match limits.into_iter().find(|(_, limit)| *limit == 0) {
            Some((key, _)) => Err(fault(
                key,
                "is 0, so nobody could connect",
                "leave it out for the default",
            )),
            None => Ok(()),
        }
    }
}

/// An endpoint is `https://HOST[:PORT]` with nothing behind it: the host is signed.
fn check_endpoint(key: &'static str, url: &str) -> Result<(), Fault> {
    let parsed = url.parse::<http::Uri>().ok();
    let legal = parsed.is_some_and(|uri| {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        uri.scheme_str() == Some("https")
            && uri.path_and_query().is_none_or(|path| path.as_str() == "/")
            && !authority.contains('@')
            && uri.host().is_some_and(|host| !host.is_empty())
    });
    if legal {
        return Ok(());
    }
    let shown: String = url.chars().take(80).flat_map(char::escape_debug).collect();
    Err(fault(
        key,
        format!("is `{shown}`"),
        "write `https://HOST` or `https://HOST:PORT`; clear text is never spoken to AWS",
    ))
}

/// A name without a path, a space or a surprise.
fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain)
}

fn check_region(key: &'static str, region: &str) -> Result<(), Fault> {
    if crate::aws::region_suffix(region).is_some() {
        return Ok(());
    }
    let shown: String = region
        .chars()
        .take(40)
        .flat_map(char::escape_debug)
        .collect();
    Err(fault(
        key,
        format!("has `{shown}`, which is no AWS region"),
        "write it like `eu-west-1`",
    ))
}
