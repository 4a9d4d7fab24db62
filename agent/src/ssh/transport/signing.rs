//! Signatures of host keys and users, and the names of their algorithms.

use russh::keys::signature::{Signer, Verifier};
use russh::keys::ssh_encoding::{Decode, Encode};
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, PrivateKey, PublicKey};

use super::TransportError;

/// End of the name of every OpenSSH certificate type.
const CERTIFICATE: &str = "-cert-v01@openssh.com";

/// Shortest RSA key that is taken for a host's identity.
const MIN_RSA_BITS: u32 = 2048;

/// Host key algorithms that we verify, best first. RSA with SHA-1 and DSA are not among them.
pub(in crate::ssh) const HOST_KEYS: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// The certificate form of an algorithm's name.
pub(in crate::ssh) fn certificate_type(algorithm: &str) -> String {
    format!("{algorithm}{CERTIFICATE}")
}

/// Whether a name is that of a certificate type.
pub(in crate::ssh) fn is_certificate(algorithm: &str) -> bool {
    algorithm.ends_with(CERTIFICATE)
}

/// The name under which `key` signs: RSA always with SHA-512.
pub(in crate::ssh) fn algorithm_of(key: &PrivateKey) -> String {
    match key.algorithm() {
        russh::keys::Algorithm::Rsa { .. } => "rsa-sha2-512".to_owned(),
        other => other.as_str().to_owned(),
    }
}

/// A signature in its wire form.
pub(in crate::ssh) fn sign(key: &PrivateKey, data: &[u8]) -> Result<Vec<u8>, TransportError> {
    let signature: Signature = key.try_sign(data).map_err(|_| TransportError::Crypto)?;
    let mut bytes = Vec::new();
    signature
        .encode(&mut bytes)
        .map_err(|_| TransportError::Crypto)?;
    Ok(bytes)
}

/// The key inside a host key blob of the negotiated `algorithm`.
pub(in crate::ssh) fn host_key(algorithm: &str, blob: &[u8]) -> Result<HostKey, TransportError> {
    let broken = |_| TransportError::HostKey("it cannot be read");
    let (key, certificate) = if is_certificate(algorithm) {
        let certificate = Certificate::from_bytes(blob).map_err(broken)?;
        (
            PublicKey::new(certificate.public_key().clone(), ""),
            Some(certificate),
        )
    } else {
        (PublicKey::from_bytes(blob).map_err(broken)?, None)
    };
    if let KeyData::Rsa(rsa) = key.key_data()
        && rsa.key_size() < MIN_RSA_BITS
    {
        return Err(TransportError::HostKey("RSA below 2048 bits is not taken"));
    }
    Ok(HostKey { key, certificate })
}

/// Checks that the owner of `key` signed `data` with the negotiated `algorithm`, no other.
pub(super) fn verify(
    algorithm: &str,
    key: &PublicKey,
    data: &[u8],
    signature: &[u8],
) -> Result<(), TransportError> {
    let wrong = || TransportError::HostKey("its signature is wrong");
    let mut reader = signature;
    let signature = Signature::decode(&mut reader).map_err(|_| wrong())?;
    let plain = algorithm.strip_suffix(CERTIFICATE).unwrap_or(algorithm);
    if !reader.is_empty() || signature.algorithm().as_str() != plain {
        return Err(wrong());
    }
    // `PublicKey` has a method of that name for another format.
    Verifier::verify(key, data, &signature).map_err(|_| wrong())
}

/// What a server proved to own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ssh) struct HostKey {
    /// The key that signed.
    pub(in crate::ssh) key: PublicKey,
    /// The certificate that it came in; not checked yet.
    pub(in crate::ssh) certificate: Option<Certificate>,
}
