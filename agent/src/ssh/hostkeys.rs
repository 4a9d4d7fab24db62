//! Which host keys targets may show: certificates of the host CA, or the key that a target showed
//! first. Kept by the target's id, since addresses come and go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use postern_proto::gateway::message::{HostKeyCheck, HostKeySeen};
use postern_proto::names::TargetId;
use russh::keys::ssh_key::{Fingerprint, certificate::CertType};
use russh::keys::{Certificate, HashAlg, PublicKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::transport::signing::{self, HostKey};
use super::upstream::UpstreamError;
use crate::inventory::Target;

/// Largest file that is read: about 200 bytes a target.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Why the known host keys cannot be read or written. Nothing is pinned without being durable.
#[derive(Debug, Error)]
pub enum HostKeysError {
    /// The file system.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The file is not what this module wrote.
    #[error("{path} is damaged: {error}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        error: serde_json::Error,
    },
    /// The file is too long to be ours.
    #[error("{path} holds more than {MAX_FILE} bytes")]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
}

/// The known host keys of all targets. Clones share them.
#[derive(Clone)]
pub struct HostKeys {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    authorities: Vec<Fingerprint>,
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    targets: BTreeMap<TargetId, Entry>,
}

/// How a target was identified before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// By this key, an OpenSSH public key line.
    Key(String),
    /// By a certificate of this authority (its fingerprint): a bare key would be a step back.
    Authority(String),
}

impl HostKeys {
    /// Reads the known keys from `path`, whose folder must exist; no file means none yet.
    /// `authorities` are the host CAs whose certificates identify a target.
    pub fn load(path: PathBuf, authorities: &[PublicKey]) -> Result<Self, HostKeysError> {
        let known = read(&path)?;
        let authorities = authorities
            .iter()
            .map(|key| key.fingerprint(HashAlg::Sha256))
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                authorities,
                known: Mutex::new(known),
            }),
        })
    }

    /// Forgets what identified `target`, after its host key was replaced with good reason. The
    /// next connection is a first use. Returns whether there was anything to forget.
    pub async fn forget(&self, target: &TargetId) -> Result<bool, HostKeysError> {
        let target = target.clone();
        self.with_known(move |known, path| {
            let mut changed = known.clone();
            let removed = changed.targets.remove(&target).is_some();
            if removed {
                write(path, &changed)?;
                *known = changed;
            }
            Ok(removed)
        })
        .await
    }

    /// Host key algorithms to offer to `target`: certificates where a CA is configured, then the
    /// algorithm of its pinned key, since a server has several keys and shows one.
    pub(super) fn algorithms(&self, target: &TargetId) -> Vec<String> {
        let pinned = match self.entry(target) {
            Some(Entry::Key(line)) => PublicKey::from_openssh(&line).ok(),
            _ => None,
        };
        let is_pinned = |name: &str| {
            pinned.as_ref().is_some_and(|key| match key.algorithm() {
                russh::keys::Algorithm::Rsa { .. } => name.starts_with("rsa-"),
                other => other.as_str() == name,
            })
        };
        let plain = signing::HOST_KEYS;
        let mut names: Vec<String> = Vec::new();
        if !self.shared.authorities.is_empty() {
            names.extend(plain.map(signing::certificate_type));
        }
        names.extend(
            plain
                .iter()
                .filter(|n| is_pinned(n))
                .map(|n| (*n).to_owned()),
        );
        names.extend(
            plain
                .iter()
                .filter(|n| !is_pinned(n))
                .map(|n| (*n).to_owned()),
        );
        names
    }

    /// Decides whether `target` may show `shown`, and pins it on first use (durably, before this
    /// returns).
    pub(super) async fn check(
        &self,
        target: &Target,
        shown: &HostKey,
        now: u64,
    ) -> Result<HostKeySeen, UpstreamError> {
        let fingerprint = shown.key.fingerprint(HashAlg::Sha256).to_string();
        let (entry, by_authority) = match &shown.certificate {
            Some(certificate) if self.trusts(certificate) => {
                self.check_certificate(target, certificate, now)?;
                let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
                (Entry::Authority(authority.to_string()), true)
            }
            // A certificate of an unknown CA says no more than the key in it.
            _ => {
                let line = shown
                    .key
                    .to_openssh()
                    .map_err(|_| UpstreamError::broken("host key", "it cannot be written down"))?;
                (Entry::Key(line), false)
            }
        };
        let id = target.id.clone();
        let seen = fingerprint.clone();
        let check = self
            .with_known(move |known, path| {
                let check = match known.targets.get(&id) {
                    Some(known) if *known == entry && by_authority => HostKeyCheck::HostCa,
                    Some(known) if *known == entry => return Ok(Ok(HostKeyCheck::Pinned)),
                    Some(known) if !by_authority => return Ok(Err(known.clone())),
                    _ if by_authority => HostKeyCheck::HostCa,
                    _ => HostKeyCheck::FirstUse,
                };
                if known.targets.get(&id) != Some(&entry) {
                    let mut changed = known.clone();
                    changed.targets.insert(id, entry);
                    write(path, &changed)?;
                    *known = changed;
                }
                Ok(Ok(check))
            })
            .await?;
        match check {
            Ok(check) => Ok(HostKeySeen { fingerprint, check }),
            Err(known) => Err(UpstreamError::HostKeyChanged {
                target: target.name.clone(),
                pinned: known.describe(),
                seen,
            }),
        }
    }

    fn trusts(&self, certificate: &Certificate) -> bool {
        let signer = certificate.signature_key().fingerprint(HashAlg::Sha256);
        self.shared.authorities.contains(&signer)
    }

    /// All that makes a certificate of a trusted CA good for this target.
    fn check_certificate(
        &self,
        target: &Target,
        certificate: &Certificate,
        now: u64,
    ) -> Result<(), UpstreamError> {
        let refused = |why: String| {
            Err(UpstreamError::HostCertificate {
                target: target.name.clone(),
                why,
            })
        };
        if certificate.cert_type() != CertType::Host {
            return refused("it is not a host certificate".to_owned());
        }
        if certificate
            .validate_at(now, &self.shared.authorities)
            .is_err()
        {
            return refused("it is expired, not valid yet, or its signature is wrong".to_owned());
        }
        if let Some((name, _)) = certificate.critical_options().iter().next() {
            let name: String = name.escape_debug().take(64).collect();
            return refused(format!("it demands `{name}`, which is not known"));
        }
        let names = [target.id.as_str(), &target.name, &target.address];
        let named = certificate
            .valid_principals()
            .iter()
            .any(|p| names.contains(&p.as_str()) || target.aliases.contains(p));
        if !named {
            return refused("it does not name this target".to_owned());
        }
        Ok(())
    }

    fn entry(&self, target: &TargetId) -> Option<Entry> {
        let known = self
            .shared
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.targets.get(target).cloned()
    }

    /// Runs `change` on a thread that may wait for the disk; changes come one after the other.
    async fn with_known<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Known, &Path) -> Result<T, HostKeysError> + Send + 'static,
    ) -> Result<T, HostKeysError> {
        let shared = self.shared.clone();
        let path = self.shared.path.clone();
        tokio::task::spawn_blocking(move || {
            let mut known = shared.known.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut known, &shared.path)
        })
        .await
        .unwrap_or_else(|error| {
            Err(HostKeysError::Io {
                path,
                error: io::Error::other(error),
            })
        })
    }
}

impl Entry {
    /// For a message: a fingerprint, or whose certificate.
    fn describe(&self) -> String {
        match self {
            Self::Key(line) => PublicKey::from_openssh(line)
                .map(|key| key.fingerprint(HashAlg::Sha256).to_string())
                .unwrap_or_default(),
            Self::Authority(fingerprint) => format!("a certificate of the host CA {fingerprint}"),
        }
    }
}

fn read(path: &Path) -> Result<Known, HostKeysError> {
    let failed = |error| HostKeysError::Io {
        path: path.to_owned(),
        error,
    };
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(error) => return Err(failed(error)),
    };
    if length > MAX_FILE {
        return Err(HostKeysError::TooLong {
            path: path.to_owned(),
        });
    }
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| HostKeysError::Damaged {
        path: path.to_owned(),
        error,
    })
}

/// Replaces the file: written beside it, synced, renamed, and the folder synced.
fn write(path: &Path, known: &Known) -> Result<(), HostKeysError> {
    let replace = || -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(known)?;
        let beside = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    };
    replace().map_err(|error| HostKeysError::Io {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::{host_certificate, key, target};
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn shown(seed: u8) -> HostKey {
        HostKey {
            key: key(seed).public_key().clone(),
            certificate: None,
        }
    }

    fn certified(seed: u8, authority: u8, principals: &[&str], until: u64) -> HostKey {
        HostKey {
            key: key(seed).public_key().clone(),
            certificate: Some(host_certificate(
                &key(seed),
                &key(authority),
                principals,
                until,
            )),
        }
    }

    fn store(folder: &tempfile::TempDir, authorities: &[u8]) -> HostKeys {
        let authorities: Vec<_> = authorities
            .iter()
            .map(|seed| key(*seed).public_key().clone())
            .collect();
        HostKeys::load(folder.path().join("host_keys.json"), &authorities).unwrap()
    }

    #[tokio::test]
    async fn a_key_is_pinned_on_first_use_and_a_changed_one_refused_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let target = target("web-1", 22);
        let keys = store(&folder, &[]);
        let first = keys.check(&target, &shown(1), NOW).await.unwrap();
        assert_eq!(first.check, HostKeyCheck::FirstUse);
        assert!(first.fingerprint.starts_with("SHA256:"));
        for keys in [keys, store(&folder, &[])] {
            let again = keys.check(&target, &shown(1), NOW).await.unwrap();
            assert_eq!(again.check, HostKeyCheck::Pinned);
            let changed = keys.check(&target, &shown(2), NOW).await.unwrap_err();
            let UpstreamError::HostKeyChanged { pinned, seen, .. } = changed else {
                panic!("{changed}");
            };
            assert_eq!(pinned, first.fingerprint);
            assert_ne!(seen, pinned);
        }
    }

    #[tokio::test]
    async fn the_key_follows_the_target_and_not_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[]);
        let mut web = target("web-1", 22);
        keys.check(&web, &shown(1), NOW).await.unwrap();
        web.address = "10.9.9.9".to_owned();
        assert!(keys.check(&web, &shown(2), NOW).await.is_err());
        let mut other = target("web-2", 22);
        other.address = "127.0.0.1".to_owned();
        assert!(keys.check(&other, &shown(2), NOW).await.is_ok());
    }

    #[tokio::test]
    async fn of_two_first_uses_at_once_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[]);
        let target = target("web-1", 22);
        let (one, two) = (shown(1), shown(2));
        let (a, b) = tokio::join!(
            keys.check(&target, &one, NOW),
            keys.check(&target, &two, NOW)
        );
        assert!(a.is_ok() != b.is_ok());
    }

    #[tokio::test]
    async fn a_certificate_of_the_host_ca_needs_no_pin_and_survives_a_new_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[9]);
        let target = target("web-1", 22);
        for seed in [1, 2] {
            let shown = certified(seed, 9, &["web-1"], NOW + 60);
            let seen = keys.check(&target, &shown, NOW).await.unwrap();
            assert_eq!(seen.check, HostKeyCheck::HostCa);
        }
        // A bare key would be a step back.
        let bare = keys.check(&target, &shown(1), NOW).await.unwrap_err();
        assert!(bare.to_string().contains("host CA"), "{bare}");
    }

    #[tokio::test]
    async fn a_certificate_for_somebody_else_or_out_of_time_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[9]);
        let target = target("web-1", 22);
        for wrong in [
            certified(1, 9, &["web-2"], NOW + 60),
            certified(1, 9, &["web-1"], NOW - 1),
        ] {
            let error = keys.check(&target, &wrong, NOW).await.unwrap_err();
            assert!(
                matches!(error, UpstreamError::HostCertificate { .. }),
                "{error}"
            );
        }
        // Of a CA that nobody configured: just a key.
        let unknown = certified(1, 8, &["web-1"], NOW + 60);
        let seen = keys.check(&target, &unknown, NOW).await.unwrap();
        assert_eq!(seen.check, HostKeyCheck::FirstUse);
    }

    #[tokio::test]
    async fn a_forgotten_key_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[]);
        let target = target("web-1", 22);
        keys.check(&target, &shown(1), NOW).await.unwrap();
        assert!(keys.forget(&target.id).await.unwrap());
        assert!(!keys.forget(&target.id).await.unwrap());
        let seen = keys.check(&target, &shown(2), NOW).await.unwrap();
        assert_eq!(seen.check, HostKeyCheck::FirstUse);
    }

    #[tokio::test]
    async fn nothing_is_trusted_when_it_cannot_be_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let keys = HostKeys::load(folder.path().join("gone/host_keys.json"), &[]).unwrap();
        let error = keys
            .check(&target("web-1", 22), &shown(1), NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, UpstreamError::HostKeys(_)), "{error}");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host_keys.json");
        for damage in [
            "",
            "{",
            "{\"targets\":{\"web-1\":{\"other\":1}}}",
            "{\"more\":1}",
        ] {
            fs::write(&path, damage).unwrap();
            assert!(HostKeys::load(path.clone(), &[]).is_err(), "{damage}");
        }
    }

    #[tokio::test]
    async fn the_pinned_algorithm_is_asked_for_first() {
        let folder = tempfile::tempdir().unwrap();
        let keys = store(&folder, &[]);
        let target = target("web-1", 22);
        let line = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2\
                    HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkb\
                    qAcEc=";
        let shown = HostKey {
            key: PublicKey::from_openssh(line).unwrap(),
            certificate: None,
        };
        keys.check(&target, &shown, NOW).await.unwrap();
        assert_eq!(
            keys.algorithms(&target.id).first().unwrap(),
            "ecdsa-sha2-nistp256"
        );
        let certified = store(&folder, &[9]);
        assert_eq!(
            certified.algorithms(&target.id).first().unwrap(),
            "ssh-ed25519-cert-v01@openssh.com"
        );
    }
}
