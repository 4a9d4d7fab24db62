//! Who the agent is towards SSH clients.

use std::fmt;
use std::sync::Arc;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, PrivateKey};
use thiserror::Error;

use super::transport::{TransportError, signing};

/// The agent's SSH host key with its certificate. Clones share it; does not print.
#[derive(Clone)]
pub struct HostIdentity {
    shared: Arc<(PrivateKey, Option<Certificate>)>,
}

/// Why a key cannot be the agent's host identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HostIdentityError {
    /// It is locked with a passphrase.
    #[error("the SSH host key is encrypted")]
    Encrypted,
    /// The certificate is for another key.
    #[error("the SSH host certificate is not for the SSH host key")]
    OtherKey,
    /// The certificate is for users.
    #[error("the SSH host certificate is a user certificate")]
    UserCertificate,
}

impl HostIdentity {
    /// Pairs the host key with its certificate of the SSH host CA. Clients take it when they
    /// trust that CA for the name that they used (`@cert-authority *.postern`).
    pub fn new(
        key: PrivateKey,
        certificate: Option<Certificate>,
    ) -> Result<Self, HostIdentityError> {
        if key.is_encrypted() {
            return Err(HostIdentityError::Encrypted);
        }
        if let Some(certificate) = &certificate {
            if certificate.public_key() != key.public_key().key_data() {
                return Err(HostIdentityError::OtherKey);
            }
            if certificate.cert_type() != CertType::Host {
                return Err(HostIdentityError::UserCertificate);
            }
        }
        Ok(Self {
            shared: Arc::new((key, certificate)),
        })
    }

    /// What to offer: the certificate first.
    pub(super) fn algorithms(&self) -> Vec<String> {
        let plain = signing::algorithm_of(&self.shared.0);
        let certified = signing::certificate_type(&plain);
        match self.shared.1 {
            Some(_) => vec![certified, plain],
            None => vec![plain],
        }
    }

    /// The public part as the negotiated algorithm wants it.
    pub(super) fn blob(&self, algorithm: &str) -> Result<Vec<u8>, TransportError> {
        let bytes = match &self.shared.1 {
            Some(certificate) if signing::is_certificate(algorithm) => certificate.to_bytes(),
            _ => self.shared.0.public_key().to_bytes(),
        };
        bytes.map_err(|_| TransportError::Crypto)
    }

    pub(super) fn sign(&self, data: &[u8]) -> Result<Vec<u8>, TransportError> {
        signing::sign(&self.shared.0, data)
    }
}

impl fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostIdentity(…)")
    }
}
