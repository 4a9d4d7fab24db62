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
mod tests;
