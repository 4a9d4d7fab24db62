//! The agent's SSH host key: a host certificate from the CA that came in `Granted`, over the
//! connection that TLS authenticated.

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::known_hosts::KnownHosts;

/// Kinds of host certificates that we ask for.
pub(super) const CERTIFICATES: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
];

/// The name in the agent's certificate: all names that stock clients use.
const PATTERN: &str = "*.postern";

/// Whom to trust.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// The agent, by its CA.
    Agent(AgentKey),
    /// A host, by what is known of it.
    Known(KnownHosts),
}

/// What vouches for the agent's host key.
#[derive(Debug, Clone)]
pub(super) struct AgentKey {
    /// The host CA, an OpenSSH public key line.
    pub(super) ca: String,
    /// The agent's id.
    pub(super) agent: String,
}

impl AgentKey {
    /// Accepts a current host certificate of the CA for this agent, without options that we do
    /// not know; says what is wrong with anything else. `now` in seconds since 1970. russh has
    /// verified that the server holds the certified key.
    pub(super) fn check(&self, shown: &PublicKeyOrCertificate, now: u64) -> Result<(), String> {
        let Some(certificate) = shown.certificate() else {
            return Err("it is a bare key, not a certificate".to_owned());
        };
        let ca = PublicKey::from_openssh(&self.ca)
            .map_err(|_| "the CA in the grant is no SSH key".to_owned())?;
        if certificate.cert_type() != CertType::Host {
            return Err("the certificate is not for a host".to_owned());
        }
        if certificate
            .validate_at(now, [&ca.fingerprint(HashAlg::Sha256)])
            .is_err()
        {
            return Err("the certificate is not from the agent's CA, or not valid now".to_owned());
        }
        if !certificate.critical_options().is_empty() {
            return Err("the certificate holds options that this version does not know".to_owned());
        }
        // No principals: valid for every name that the CA serves. Stock clients know the agent by
        // the names of targets, which all match one pattern.
        let names = certificate.valid_principals();
        if !names.is_empty()
            && !names
                .iter()
                .any(|name| *name == self.agent || name == PATTERN)
        {
            return Err(format!("the certificate is not for agent `{}`", self.agent));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::ssh_key::private::Ed25519Keypair;
    use russh::keys::{Certificate, PrivateKey};

    use super::*;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    fn certificate(kind: CertType, principal: Option<&str>) -> Builder {
        let mut builder = Builder::new([7; 16], key(1).public_key(), 100, 200).unwrap();
        builder.cert_type(kind).unwrap();
        match principal {
            Some(name) => builder.valid_principal(name).unwrap(),
            None => builder.all_principals_valid().unwrap(),
        };
        builder
    }

    fn check(certificate: Certificate, now: u64) -> Result<(), String> {
        let trust = AgentKey {
            ca: key(9).public_key().to_openssh().unwrap(),
            agent: "bastion-1".to_owned(),
        };
        trust.check(&certificate.into(), now)
    }

    #[test]
    fn a_current_host_certificate_of_the_ca_is_accepted() {
        for name in [None, Some("bastion-1"), Some("*.postern")] {
            let good = certificate(CertType::Host, name);
            assert_eq!(check(good.sign(&key(9)).unwrap(), 150), Ok(()));
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let refused = |builder: Builder, ca: u8, now: u64| {
            check(builder.sign(&key(ca)).unwrap(), now).unwrap_err()
        };
        let host = |name| certificate(CertType::Host, name);
        let mut odd = host(None);
        odd.critical_option("verify-required", "").unwrap();
        let reasons = [
            refused(host(None), 8, 150),
            refused(host(None), 9, 99),
            refused(host(None), 9, 200),
            refused(host(Some("bastion-2")), 9, 150),
            refused(certificate(CertType::User, None), 9, 150),
            refused(odd, 9, 150),
        ];
        insta::assert_snapshot!(reasons.join("\n"), @r"
        the certificate is not from the agent's CA, or not valid now
        the certificate is not from the agent's CA, or not valid now
        the certificate is not from the agent's CA, or not valid now
        the certificate is not for agent `bastion-1`
        the certificate is not for a host
        the certificate holds options that this version does not know
        ");
        let trust = AgentKey {
            ca: String::new(),
            agent: "bastion-1".to_owned(),
        };
        let bare = PublicKeyOrCertificate::from(key(9).public_key().clone());
        assert_eq!(
            trust.check(&bare, 150).unwrap_err(),
            "it is a bare key, not a certificate"
        );
    }
}
