//! The agent's private keys and certificates: where they lie and how they are loaded.
//!
//! A private key comes from systemd (`$CREDENTIALS_DIRECTORY/NAME`) or from the keys folder. A
//! file must be a regular one, owned by this user or root, and closed to group and others; else
//! the agent does not start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pki_types::pem::PemObject as _;

use crate::ca::client::ClientCa;
use crate::ca::ssh::{SshHostCa, SshUserCa};
use crate::ca::x509::Authority;
use crate::ca::{self, CaError, certificates_from_pem};
use crate::config::Config;

mod file;

pub use file::{KeyFolder, SecretText};

/// File names in the keys folder, and names of systemd credentials.
pub mod name {
    /// Key of the server certificate (PKCS#8 PEM).
    pub const SERVER_KEY: &str = "server.key";
    /// Server certificate (PEM).
    pub const SERVER: &str = "server.pem";
    /// Server CA certificate (PEM): what clients pin.
    pub const SERVER_CA: &str = "server-ca.pem";
    /// Key of the client-CA intermediate (PKCS#8 PEM).
    pub const CLIENT_CA_KEY: &str = "client-ca.key";
    /// Client-CA intermediate (PEM).
    pub const CLIENT_CA: &str = "client-ca.pem";
    /// Client CA root certificate (PEM).
    pub const CLIENT_ROOT: &str = "client-root.pem";
    /// SSH user CA (OpenSSH private key); `.pub` beside it.
    pub const SSH_USER_CA: &str = "ssh-user-ca";
    /// SSH host CA (OpenSSH private key); `.pub` beside it.
    pub const SSH_HOST_CA: &str = "ssh-host-ca";
    /// The agent's SSH host key (OpenSSH private key); `.pub` beside it.
    pub const SSH_HOST_KEY: &str = "ssh-host-key";
    /// Audit log signer key (C2SP); `audit-log.pub` is the verifier key.
    pub const LOG_KEY: &str = "audit-log.key";
    /// Audit log verifier key (C2SP).
    pub const LOG_PUBLIC: &str = "audit-log.pub";

    /// All private keys.
    pub const PRIVATE: [&str; 6] = [
        SERVER_KEY,
        CLIENT_CA_KEY,
        SSH_USER_CA,
        SSH_HOST_CA,
        SSH_HOST_KEY,
        LOG_KEY,
    ];
}

/// Everything that the agent signs and identifies itself with.
pub struct Keys {
    /// Server certificate, then what `server.pem` holds behind it.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// Key of the server certificate.
    pub server_key: PrivateKeyDer<'static>,
    /// Client CA.
    pub client_ca: Arc<ClientCa>,
    /// SSH user CA.
    pub ssh_user_ca: Arc<SshUserCa>,
    /// SSH host CA.
    pub ssh_host_ca: Arc<SshHostCa>,
    /// The agent's SSH host key.
    pub ssh_host_key: Arc<PrivateKey>,
    /// Signs checkpoints: the C2SP secret key.
    pub log_key: SecretText,
    /// The one before, while it changes.
    pub previous_log_key: Option<SecretText>,
    /// The log's verifier key, as clients configure it.
    pub log_verifier_key: String,
}

/// Why a key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// It cannot be read.
    #[error(
        "cannot read {}: {source}\nhint: `postern-agent init` makes all keys, `keys` in agent.toml says where they are",
        .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a regular file of sensible size.
    #[error("{} is not a regular file of at most 64 KiB", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else owns a private key.
    #[error(
        "{} belongs to user {owner}, so that user can read and replace it\nhint: chown {user} {}",
        .path.display(), .path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs the agent.
        user: u32,
    },
    /// Others may read or write a private key.
    #[error(
        "{} is open to group or others (mode {mode:04o})\nhint: chmod 600 {}",
        .path.display(), .path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is wrong.
    #[error("{} cannot be used: {source}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CaError,
    },
    /// One key serves two purposes.
    #[error(
        "{first} and {second} hold the same key\nhint: every key serves one purpose; let `postern-agent init` make separate ones"
    )]
    Shared {
        /// One file.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
}

impl Keys {
    /// Loads all keys of `config` and checks that they fit their certificates and differ.
    pub fn load(config: &Config) -> Result<Self, KeyFault> {
        Self::from_folder(&KeyFolder::new(&config.keys), config)
    }

    fn from_folder(folder: &KeyFolder, config: &Config) -> Result<Self, KeyFault> {
        let server_chain = folder.certificates(name::SERVER)?;
        let server_pem = folder.private(name::SERVER_KEY)?;
        // Reading it as an authority checks that key and certificate belong together.
        folder.authority(name::SERVER, &server_pem)?;
        let server_key = PrivateKeyDer::from_pem_slice(server_pem.as_bytes()).map_err(|_| {
            folder.fault(
                name::SERVER_KEY,
                CaError::Pem {
                    expected: "PEM private key",
                },
            )
        })?;
        let client_pem = folder.private(name::CLIENT_CA_KEY)?;
        let client_ca = folder.authority(name::CLIENT_CA, &client_pem)?;
        let ssh = |name| {
            let text = folder.private(name)?;
            ca::ssh::from_openssh(text.as_bytes()).map_err(|source| folder.fault(name, source))
        };
        let user_ca = ssh(name::SSH_USER_CA)?;
        let host_ca = ssh(name::SSH_HOST_CA)?;
        let host_key = ssh(name::SSH_HOST_KEY)?;
        let (log, log_verifier_key) = folder.log_key(name::LOG_KEY, config)?;
        let previous = config.evidence.previous_key.as_deref();
        let previous = previous.map(|name| folder.log_key(name, config));
        let (previous_log_key, previous_verifier_key) = previous.transpose()?.unzip();

        let certified = |chain: &CertificateDer<'_>| public_key_of(chain).unwrap_or_default();
        let ssh_public = |key: &PrivateKey| match key.public_key().key_data().ed25519() {
            Some(public) => public.0.to_vec(),
            None => vec![],
        };
        let log_public = |key: &str| ca::log::public_key(key).unwrap_or_default();
        let mut keys = vec![
            (
                name::SERVER_KEY,
                server_chain.first().map(certified).unwrap_or_default(),
            ),
            (name::CLIENT_CA_KEY, certified(client_ca.certificate())),
            (name::SSH_USER_CA, ssh_public(&user_ca)),
            (name::SSH_HOST_CA, ssh_public(&host_ca)),
            (name::SSH_HOST_KEY, ssh_public(&host_key)),
            (name::LOG_KEY, log_public(&log_verifier_key)),
        ];
        if let Some(key) = previous_verifier_key {
            keys.push(("evidence.previous_key", log_public(&key)));
        }
        distinct(&keys)?;
        Ok(Self {
            server_chain,
            server_key,
            client_ca: Arc::new(ClientCa::new(client_ca)),
            ssh_user_ca: Arc::new(
                SshUserCa::new(user_ca).map_err(|e| folder.fault(name::SSH_USER_CA, e))?,
            ),
            ssh_host_ca: Arc::new(
                SshHostCa::new(host_ca).map_err(|e| folder.fault(name::SSH_HOST_CA, e))?,
            ),
            ssh_host_key: Arc::new(host_key),
            log_key: log,
            previous_log_key,
            log_verifier_key,
        })
    }

    /// A fresh certificate of the agent's SSH host key for `*.postern` and each `NAME.postern`.
    pub fn ssh_host_certificate(
        &self,
        agent: &str,
        names: &[&str],
        now: i64,
    ) -> Result<Certificate, CaError> {
        self.ssh_host_ca
            .certify(self.ssh_host_key.public_key(), agent, names, now)
    }
}

impl KeyFolder {
    /// A PEM file of certificates.
    pub fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, KeyFault> {
        let text = self.public(name)?;
        certificates_from_pem(&text).map_err(|source| self.fault(name, source))
    }

    /// A key of the audit log, with its verifier key.
    fn log_key(&self, name: &str, config: &Config) -> Result<(SecretText, String), KeyFault> {
        let fault = |source| self.fault(name, source);
        let key = self.private(name)?;
        ca::log::signer(key.text(), &config.id).map_err(fault)?;
        let verifier = ca::log::verifier_key(key.text()).map_err(fault)?;
        Ok((key, verifier))
    }

    fn authority(&self, certificate: &str, key: &SecretText) -> Result<Authority, KeyFault> {
        let pem = self.public(certificate)?;
        Authority::from_pem(&pem, key.text()).map_err(|source| self.fault(certificate, source))
    }

    fn fault(&self, name: &str, source: CaError) -> KeyFault {
        KeyFault::Content {
            path: self.path(name),
            source,
        }
    }
}

/// Certificates of another file, such as a trusted agent's intermediate.
pub fn certificates_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyFault> {
    let text = file::read_public(path)?;
    certificates_from_pem(&text).map_err(|source| KeyFault::Content {
        path: path.to_owned(),
        source,
    })
}

fn public_key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.public_key().subject_public_key.data.to_vec())
}

fn distinct(keys: &[(&'static str, Vec<u8>)]) -> Result<(), KeyFault> {
    for (index, (first, key)) in keys.iter().enumerate() {
        let twin = keys.iter().skip(index + 1).find(|(_, other)| other == key);
        if let Some((second, _)) = twin {
            return Err(KeyFault::Shared { first, second });
        }
    }
    Ok(())
}
