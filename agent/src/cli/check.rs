//! `postern-agent check`: everything that can be wrong before the first client comes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;

use super::Finding;
use crate::config::Config;
use crate::crypto::provider;
use crate::identity::attestation::Attestation;
use crate::identity::{PeerTrust, StsClient};
use crate::keys::{KeyFolder, Keys, certificates_of, name};

mod evidence;
mod machine;
mod rules;

/// A certificate that ends sooner is worth a warning.
const SOON: i64 = 30 * 86_400;
/// Clocks that differ by more than this deserve a look; 60 seconds is where proofs fail.
const SKEW_WARNING: i64 = 20;
const SKEW_ERROR: i64 = 60;

/// Checks everything that is named in the file at `path`; without what asks AWS when `local`.
pub(super) async fn check(path: &Path, local: bool) -> Vec<Finding> {
    let config = match Config::load(path) {
        Ok(config) => Arc::new(config),
        Err(error) => return vec![Finding::from_error("configuration", &error)],
    };
    let mut findings = vec![Finding::ok("configuration", path.display().to_string())];
    let now = OffsetDateTime::now_utc().unix_timestamp();
    findings.extend(check_keys(&config, now));
    findings.push(check_offline(path));
    findings.extend(rules::policies(&config));
    findings.extend(rules::inventory(&config, local).await);
    findings.push(machine::state(&config));
    findings.extend(machine::network(&config).await);
    findings.push(machine::descriptors(&config));
    findings.push(machine::host_keys(&config));
    findings.push(evidence::recipients(&config));
    findings.extend(evidence::store(&config).await);
    if !local {
        findings.push(check_clock(&config).await);
        findings.push(check_attestation(&config).await);
    }
    findings
}

fn check_keys(config: &Config, now: i64) -> Vec<Finding> {
    let folder = KeyFolder::new(&config.keys);
    // Every unreadable key is told, not just the first.
    let unreadable: Vec<_> = name::PRIVATE
        .iter()
        .filter_map(|name| folder.private(name).err())
        .map(|error| Finding::from_error("keys", &error))
        .collect();
    if !unreadable.is_empty() {
        return unreadable;
    }
    let keys = match Keys::load(config) {
        Ok(keys) => keys,
        Err(error) => return vec![Finding::from_error("keys", &error)],
    };
    let count = name::PRIVATE.len();
    let mut findings = vec![Finding::ok(
        "keys",
        format!("{count} private keys, all different, closed to others"),
    )];
    findings.push(check_server(config, &folder, &keys, now));
    findings.push(check_client_ca(config, &folder, &keys, now));
    for (subject, file) in [
        ("server CA", name::SERVER_CA),
        ("client CA root", name::CLIENT_ROOT),
    ] {
        findings.extend(check_ca(subject, file, &folder, now));
    }
    for agent in &config.trust.agents {
        // What cannot be read is told below.
        if let Ok([certificate, ..]) = certificates_of(&agent.intermediate).as_deref() {
            let subject = format!("trusted agent {}", agent.id);
            let renew = "get the new client-ca.pem of that agent";
            findings.push(check_end(&subject, certificate, now, renew));
        }
    }
    findings.push(
        match PeerTrust::load(config, keys.client_ca.certificate(), None) {
            Ok(_) => Finding::ok(
                "trust",
                format!(
                    "{} other agents, {} withdrawn",
                    config.trust.agents.len(),
                    config.trust.withdrawn.len()
                ),
            ),
            Err(error) => Finding::from_error("trust", &error),
        },
    );
    findings
}

/// The server certificate as a client will judge it.
fn check_server(config: &Config, folder: &KeyFolder, keys: &Keys, now: i64) -> Finding {
    const SUBJECT: &str = "server certificate";
    const RENEW: &str =
        "make a new one with the server CA: the README in the offline folder says how";
    let [leaf, intermediates @ ..] = keys.server_chain.as_slice() else {
        return Finding::error(SUBJECT, "there is none", RENEW);
    };
    let verified = || -> Result<(), String> {
        let roots = roots(folder, name::SERVER_CA)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| error.to_string())?;
        let server = ServerName::try_from(config.id.as_str()).map_err(|error| error.to_string())?;
        use rustls::client::danger::ServerCertVerifier as _;
        verifier
            .verify_server_cert(leaf, intermediates, &server, &[], at(now))
            .map_err(|error| error.to_string())?;
        Ok(())
    };
    match verified() {
        Err(error) => Finding::error(
            SUBJECT,
            format!("clients will not accept it for `{}`: {error}", config.id),
            RENEW,
        ),
        Ok(()) => check_end(SUBJECT, leaf, now, RENEW),
    }
}

/// The client CA as it will be used: a certificate that it signs must lead to the root.
fn check_client_ca(config: &Config, folder: &KeyFolder, keys: &Keys, now: i64) -> Finding {
    const SUBJECT: &str = "client CA";
    const RENEW: &str =
        "make a new one with the client CA root: the README in the offline folder says how";
    let verified = || -> Result<(), String> {
        let roots = roots(folder, name::CLIENT_ROOT)?;
        let [leaf, intermediate] = sample(config, keys, now)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| error.to_string())?;
        verifier
            .verify_client_cert(&leaf, &[intermediate], at(now))
            .map_err(|error| error.to_string())?;
        Ok(())
    };
    match verified() {
        Err(error) => Finding::error(
            SUBJECT,
            format!(
                "what it signs does not lead to {}: {error}",
                name::CLIENT_ROOT
            ),
            RENEW,
        ),
        Ok(()) => check_end(SUBJECT, keys.client_ca.certificate(), now, RENEW),
    }
}

/// A client certificate for nobody, which never leaves this function's caller.
fn sample(config: &Config, keys: &Keys, now: i64) -> Result<[CertificateDer<'static>; 2], String> {
    use postern_proto::names::{Assurance, Principal, UserId};
    let user_id: UserId = "AIDA000000000000CHECK".parse().map_err(|_| "no user id")?;
    let subject = crate::ca::ClientSubject {
        principal: Principal {
            account: config.attestation.role.account().clone(),
            user_id,
            arn: "check".to_owned(),
        },
        assurance: Assurance::AwsMfa,
        mfa_not_before: now,
        claimed_end: None,
        claimed_serial: None,
        aws_request_ids: vec![],
    };
    let key = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let issued = keys.client_ca.issue(&subject, &spki, now, now + 60);
    Ok(issued.map_err(|error| error.to_string())?.chain)
}

/// A CA certificate, whose dates nobody else looks at. What cannot be read is told elsewhere.
fn check_ca(subject: &str, file: &str, folder: &KeyFolder, now: i64) -> Option<Finding> {
    let certificates = folder.certificates(file).ok()?;
    let renew = "all agents and clients need a new one: plan it with the README in the offline \
                 folder";
    Some(check_end(subject, certificates.first()?, now, renew))
}

fn check_end(subject: &str, certificate: &CertificateDer<'_>, now: i64, renew: &str) -> Finding {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return Finding::error(subject, "it is not an X.509 certificate", renew);
    };
    let left = parsed.validity().not_after.timestamp() - now;
    let end = parsed.validity().not_after;
    match left {
        ..0 => Finding::error(subject, format!("it ended on {end}"), renew),
        0..SOON => Finding::warning(
            subject,
            format!("it ends in {} days, on {end}", left / 86_400),
            renew,
        ),
        _ => Finding::ok(subject, format!("valid until {end}")),
    }
}

fn roots(folder: &KeyFolder, name: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in folder
        .certificates(name)
        .map_err(|error| error.to_string())?
    {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

fn check_offline(config: &Path) -> Finding {
    let folder = config.with_file_name("offline");
    if folder.exists() {
        return Finding::warning(
            "offline CAs",
            format!("{} is still on this machine", folder.display()),
            "move it to offline storage: its README says why",
        );
    }
    Finding::ok("offline CAs", "not on this machine")
}

async fn check_clock(config: &Config) -> Finding {
    const SUBJECT: &str = "clock";
    let hint = "synchronise this machine's clock, for example with chrony or systemd-timesyncd";
    let skew = match StsClient::new(&config.sts) {
        Ok(client) => client.clock_skew().await,
        Err(error) => Err(error),
    };
    match skew {
        Err(error) => Finding::error(
            SUBJECT,
            format!("cannot be compared with STS: {error}"),
            "check that this machine reaches the STS endpoint, and `sts` in agent.toml",
        ),
        Ok(skew) if skew.abs() >= SKEW_ERROR => Finding::error(
            SUBJECT,
            format!("{skew} seconds off AWS's: no login works"),
            hint,
        ),
        Ok(skew) if skew.abs() >= SKEW_WARNING => {
            Finding::warning(SUBJECT, format!("{skew} seconds off AWS's"), hint)
        }
        Ok(skew) => Finding::ok(SUBJECT, format!("{} seconds off AWS's", skew.abs())),
    }
}

async fn check_attestation(config: &Config) -> Finding {
    const SUBJECT: &str = "attestation role";
    let checked = match Attestation::new(config).await {
        Ok(attestation) => attestation.check().await,
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => Finding::ok(SUBJECT, format!("{} demands MFA", config.attestation.role)),
        Err(error) => Finding::error(SUBJECT, error.to_string(), error.hint()),
    }
}

fn at(now: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)))
}
