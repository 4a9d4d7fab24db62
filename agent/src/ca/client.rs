//! Client certificates: issued for an hour, parsed back at every use.

use aws_lc_rs::digest;
use rcgen::{SanType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};

use super::x509::{Authority, Purpose, leaf};
use super::{CaError, ClientSubject, SubjectFault, certificates_to_pem};

/// This agent's client-CA intermediate.
pub struct ClientCa {
    authority: Authority,
}

/// A new client certificate.
#[derive(Debug, Clone)]
pub struct IssuedClient {
    /// The certificate, then the intermediate.
    pub chain: [CertificateDer<'static>; 2],
    /// Its serial, hex.
    pub serial: String,
    /// When it ends (seconds since 1970).
    pub not_after: i64,
}

/// What a client certificate says. Nothing is checked but its form: see
/// [`crate::identity::PeerTrust`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whom it names.
    pub subject: ClientSubject,
    /// Its serial, hex.
    pub serial: String,
    /// When it ends (seconds since 1970).
    pub not_after: i64,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_hash: [u8; 32],
    /// The issuer's distinguished name, DER.
    pub issuer: Vec<u8>,
}

/// Why a client certificate cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedCertificate {
    /// Not one X.509 certificate.
    #[error("it is not an X.509 certificate")]
    Syntax,
    /// Its subject alternative names are not exactly one URI.
    #[error("it does not have exactly one subject alternative name, a URI")]
    Names,
    /// The URI is not ours.
    #[error(transparent)]
    Subject(#[from] SubjectFault),
    /// The key is not P-256.
    #[error("its key is not a P-256 key")]
    Key,
}

impl ClientCa {
    /// Wraps an intermediate.
    pub fn new(authority: Authority) -> Self {
        Self { authority }
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    /// Signs a certificate for the key `spki` (SubjectPublicKeyInfo, DER, P-256) that ends at
    /// `not_after`.
    pub fn issue(
        &self,
        subject: &ClientSubject,
        spki: &[u8],
        now: i64,
        not_after: i64,
    ) -> Result<IssuedClient, CaError> {
        if !is_p256(spki) {
            return Err(CaError::KeyKind {
                expected: "a P-256 public key",
            });
        }
        let key = SubjectPublicKeyInfo::from_der(spki)?;
        let name = subject.principal.user_id.as_str();
        let mut params = leaf(Purpose::Client, name, now, not_after)?;
        params.subject_alt_names = vec![SanType::URI(subject.to_uri().as_str().try_into()?)];
        let serial = params
            .serial_number
            .as_ref()
            .map(|serial| serial.to_bytes());
        let certificate = params.signed_by(&key, self.authority.issuer())?;
        Ok(IssuedClient {
            chain: [certificate.into(), self.certificate().clone()],
            serial: hex::encode(serial.unwrap_or_default()),
            not_after,
        })
    }
}

impl IssuedClient {
    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        certificates_to_pem(&self.chain)
    }
}

impl ClientCertificate {
    /// Reads a certificate strictly.
    pub fn from_der(der: &[u8]) -> Result<Self, MalformedCertificate> {
        let (rest, certificate) =
            x509_parser::parse_x509_certificate(der).map_err(|_| MalformedCertificate::Syntax)?;
        if !rest.is_empty() {
            return Err(MalformedCertificate::Syntax);
        }
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(MalformedCertificate::Names)?;
        let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
            return Err(MalformedCertificate::Names);
        };
        let spki = certificate.public_key().raw;
        if !is_p256(spki) {
            return Err(MalformedCertificate::Key);
        }
        Ok(Self {
            subject: ClientSubject::from_uri(uri)?,
            serial: hex::encode(certificate.raw_serial()),
            not_after: certificate.validity().not_after.timestamp(),
            key_hash: key_hash(spki),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }
}

/// SHA-256 of a SubjectPublicKeyInfo: what approvals are for.
pub fn key_hash(spki: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, spki);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Whether `spki` is exactly one P-256 key in SubjectPublicKeyInfo, uncompressed.
pub fn is_p256(spki: &[u8]) -> bool {
    p256_point(spki).is_some()
}

/// The uncompressed point of a P-256 SubjectPublicKeyInfo.
pub(crate) fn p256_point(spki: &[u8]) -> Option<Vec<u8>> {
    use x509_parser::prelude::FromDer as _;
    let (rest, key) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki).ok()?;
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let point = key.subject_public_key.data.as_ref();
    let legal = rest.is_empty()
        && key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve == OID_EC_P256
        && key.subject_public_key.unused_bits == 0
        && point.len() == 65
        && point.first() == Some(&4);
    legal.then(|| point.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::subject::tests::alice;
    use rcgen::{KeyPair, PublicKeyData as _};

    const NOW: i64 = 1_790_000_000;

    fn client_ca() -> ClientCa {
        let root = Authority::root(Purpose::Client, "root", NOW).unwrap();
        let agent = "bastion-1".parse().unwrap();
        ClientCa::new(root.intermediate(&agent, NOW).unwrap())
    }

    #[test]
    fn a_client_certificate_reads_back_what_was_attested() {
        let key = KeyPair::generate().unwrap();
        let spki = key.subject_public_key_info();
        let issued = client_ca().issue(&alice(), &spki, NOW, NOW + 3600).unwrap();
        let read = ClientCertificate::from_der(&issued.chain[0]).unwrap();
        assert_eq!(read.subject, alice());
        assert_eq!(read.serial, issued.serial);
        assert_eq!(read.serial.len(), 32);
        assert_eq!(read.not_after, NOW + 3600);
        assert_eq!(read.key_hash, key_hash(&spki));
    }

    #[test]
    fn a_client_certificate_has_client_authentication_alone_and_no_critical_surprise() {
        let key = KeyPair::generate().unwrap();
        let spki = key.subject_public_key_info();
        let issued = client_ca().issue(&alice(), &spki, NOW, NOW + 3600).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let names = parsed.extensions().iter().find(|e| {
            matches!(
                e.parsed_extension(),
                x509_parser::extensions::ParsedExtension::SubjectAlternativeName(_)
            )
        });
        assert!(!names.unwrap().critical);
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_key_that_is_not_p256_gets_no_certificate() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let edwards = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        for spki in [
            other.subject_public_key_info(),
            edwards.subject_public_key_info(),
            vec![],
            b"garbage".to_vec(),
        ] {
            assert!(client_ca().issue(&alice(), &spki, NOW, NOW + 60).is_err());
        }
        let mut trailing = KeyPair::generate().unwrap().subject_public_key_info();
        trailing.push(0);
        assert!(!is_p256(&trailing));
    }

    #[test]
    fn malformed_certificates_are_refused_without_a_panic() {
        let key = KeyPair::generate().unwrap();
        let spki = key.subject_public_key_info();
        let issued = client_ca().issue(&alice(), &spki, NOW, NOW + 3600).unwrap();
        let good = issued.chain[0].to_vec();
        for length in 0..good.len() {
            assert!(ClientCertificate::from_der(&good[..length]).is_err());
        }
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x55;
            // Must not panic; what still parses is the verifier's to refuse.
            let _ = ClientCertificate::from_der(&bad);
        }
        let trailing = [good.as_slice(), b"\0"].concat();
        assert_eq!(
            ClientCertificate::from_der(&trailing),
            Err(MalformedCertificate::Syntax)
        );
    }

    #[test]
    fn a_certificate_with_other_or_more_names_is_refused() {
        let key = KeyPair::generate().unwrap();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let ours = alice().to_uri();
        for names in [
            vec![],
            vec![SanType::DnsName("alice".try_into().unwrap())],
            vec![uri(&ours), uri(&ours)],
            vec![uri(&ours), SanType::DnsName("x".try_into().unwrap())],
            vec![uri("https://example.com/")],
        ] {
            let mut params = leaf(Purpose::Client, "x", NOW, NOW + 60).unwrap();
            params.subject_alt_names = names;
            let made = params.self_signed(&key).unwrap();
            assert!(ClientCertificate::from_der(made.der()).is_err());
        }
    }
}
