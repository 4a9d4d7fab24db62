//! Certificate authorities and server certificates: what `init` makes.

use std::time::Duration;

use postern_proto::names::AgentId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{CaError, certificates_to_pem};

/// Clocks differ: certificates begin this much before they are made.
pub(super) const BACKDATE: i64 = 60;
const YEAR: u64 = 365 * 86_400;
/// How long a CA that is kept offline lives.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * YEAR);
/// How long an agent's client-CA intermediate lives.
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(2 * YEAR);
/// How long an agent's server certificate lives.
const SERVER_LIFETIME: Duration = Duration::from_secs(YEAR);

/// What a CA is for; its certificates serve nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Server certificates of agents.
    Server,
    /// Client certificates.
    Client,
}

impl Purpose {
    fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// A certificate authority with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new self-signed authority.
    pub fn root(purpose: Purpose, name: &str, now: i64) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // The server CA signs servers, the client root signs intermediates.
        let depth = match purpose {
            Purpose::Server => 0,
            Purpose::Client => 1,
        };
        let params = authority(purpose, name, depth, now, ROOT_LIFETIME)?;
        let certificate = params.self_signed(&key)?.into();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// An agent's own client CA, signed by this root.
    pub fn intermediate(&self, agent: &AgentId, now: i64) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let name = format!("Postern client CA of {agent}");
        let params = authority(Purpose::Client, &name, 0, now, INTERMEDIATE_LIFETIME)?;
        let certificate = params.signed_by(&key, &self.issuer)?.into();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// An authority from its PEM files.
    pub fn from_pem(certificate: &[u8], key: &str) -> Result<Self, CaError> {
        let certificate = super::certificates_from_pem(certificate)?.swap_remove(0);
        let key = KeyPair::from_pem(key).map_err(|_| CaError::KeyKind {
            expected: "a private key in PKCS#8 PEM",
        })?;
        if !std::ptr::eq(key.algorithm(), &PKCS_ECDSA_P256_SHA256) {
            return Err(CaError::KeyKind {
                expected: "a P-256 key",
            });
        }
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|_| CaError::Pem {
                expected: "PEM certificate",
            })?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::KeyKind {
                expected: "the one of the certificate beside it",
            });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// A server certificate for an agent, with its new key (PKCS#8 PEM).
    pub fn server_certificate(
        &self,
        agent: &AgentId,
        now: i64,
    ) -> Result<(CertificateDer<'static>, Zeroizing<String>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(
            Purpose::Server,
            agent.as_str(),
            now,
            now.saturating_add(
                // A year of seconds fits.
                SERVER_LIFETIME.as_secs() as i64,
            ),
        )?;
        let name = agent.as_str().try_into()?;
        params.subject_alt_names = vec![SanType::DnsName(name)];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.into(), Zeroizing::new(key.serialize_pem())))
    }

    /// The CA certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        certificates_to_pem(std::slice::from_ref(&self.certificate))
    }

    /// The private key, PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

fn authority(
    purpose: Purpose,
    name: &str,
    depth: u8,
    now: i64,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    let end = now.saturating_add(lifetime.as_secs() as i64);
    let mut params = leaf(purpose, name, now, end)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The parts that all certificates share: dates, a random serial, one extended key usage.
pub(super) fn leaf(
    purpose: Purpose,
    name: &str,
    now: i64,
    end: i64,
) -> Result<CertificateParams, CaError> {
    let mut serial: [u8; 16] = super::random()?;
    // Positive and of full length in DER (RFC 5280 4.1.2.2).
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = date(now.saturating_sub(BACKDATE))?;
    params.not_after = date(end)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose.usage()];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(seconds: i64) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Time(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_reads_back_from_its_files_and_knows_its_key() {
        let root = Authority::root(Purpose::Client, "root", 1_790_000_000).unwrap();
        let other = Authority::root(Purpose::Client, "root", 1_790_000_000).unwrap();
        let pem = root.certificate_pem();
        assert!(Authority::from_pem(pem.as_bytes(), &root.key_pem()).is_ok());
        assert!(Authority::from_pem(pem.as_bytes(), &other.key_pem()).is_err());
        assert!(Authority::from_pem(b"", &root.key_pem()).is_err());
    }

    #[test]
    fn a_server_certificate_names_the_agent_and_nothing_else() {
        let ca = Authority::root(Purpose::Server, "server CA", 1_790_000_000).unwrap();
        let agent = "bastion-1".parse().unwrap();
        let (certificate, _) = ca.server_certificate(&agent, 1_790_000_000).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [x509_parser::extensions::GeneralName::DNSName("bastion-1")]
        );
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth && !usage.any);
    }
}
