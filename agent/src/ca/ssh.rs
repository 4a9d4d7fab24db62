//! SSH certificates: for logging in to targets, and for the agent's own host key.

use std::net::IpAddr;
use std::sync::Arc;

use postern_proto::names::{LoginUser, Principal, SessionId};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{LineEnding, PublicKey};
use russh::keys::{Certificate, PrivateKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::CaError;

/// The name that the agent's host certificate is for: clients reach targets as `NAME.postern`.
pub const HOST_PATTERN: &str = "*.postern";
/// How long a user certificate lives: it is used once, at once. Seconds.
const USER_LIFETIME: i64 = 300;
/// How long the agent's host certificate lives. Seconds.
const HOST_LIFETIME: i64 = 90 * 86_400;

/// What a user certificate permits (OpenSSH's PROTOCOL.certkeys). Without one it permits nothing
/// but a command without a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SshExtension {
    /// A terminal.
    Pty,
    /// `direct-tcpip` channels and listeners.
    PortForwarding,
    /// The client's SSH agent.
    AgentForwarding,
}

impl SshExtension {
    fn name(self) -> &'static str {
        match self {
            Self::Pty => "permit-pty",
            Self::PortForwarding => "permit-port-forwarding",
            Self::AgentForwarding => "permit-agent-forwarding",
        }
    }
}

/// For whom and what a user certificate is.
#[derive(Debug, Clone)]
pub struct UserRequest<'a> {
    /// Who asked for the session.
    pub principal: &'a Principal,
    /// The session.
    pub session: SessionId,
    /// The login user: the certificate's only principal.
    pub user: &'a LoginUser,
    /// The address that the agent dials from, when it is known.
    pub source: Option<IpAddr>,
    /// What was granted.
    pub extensions: &'a [SshExtension],
    /// Seconds since 1970.
    pub now: i64,
}

/// The CA that targets trust for user certificates.
pub struct SshUserCa(Arc<PrivateKey>);

/// The CA that clients trust for the agent's host certificate.
pub struct SshHostCa(Arc<PrivateKey>);

impl SshUserCa {
    /// Wraps an Ed25519 key.
    pub fn new(key: PrivateKey) -> Result<Self, CaError> {
        ed25519(key).map(Self)
    }

    /// What targets put into `TrustedUserCAKeys`.
    pub fn public_key(&self) -> &PublicKey {
        self.0.public_key()
    }

    /// Certifies `key` for one login: five minutes, one user, only what was granted.
    pub fn certify(
        &self,
        key: &PublicKey,
        request: &UserRequest<'_>,
    ) -> Result<Certificate, CaError> {
        let mut builder = builder(key, request.now, USER_LIFETIME)?;
        builder.cert_type(CertType::User)?;
        builder.serial(u64::from_be_bytes(super::random()?))?;
        builder.key_id(key_id(request))?;
        builder.valid_principal(request.user.as_str())?;
        if let Some(source) = request.source {
            let source = source.to_canonical();
            let length = if source.is_ipv4() { 32 } else { 128 };
            builder.critical_option("source-address", format!("{source}/{length}"))?;
        }
        let mut extensions = request.extensions.to_vec();
        extensions.sort_unstable();
        extensions.dedup();
        for extension in extensions {
            builder.extension(extension.name(), "")?;
        }
        Ok(builder.sign(&*self.0)?)
    }
}

impl SshHostCa {
    /// Wraps an Ed25519 key.
    pub fn new(key: PrivateKey) -> Result<Self, CaError> {
        ed25519(key).map(Self)
    }

    /// What clients put into `known_hosts` behind `@cert-authority *.postern`.
    pub fn public_key(&self) -> &PublicKey {
        self.0.public_key()
    }

    /// Certifies the agent's host key for `*.postern`, which our own client looks for, and for each
    /// `NAME.postern` of `names`: OpenSSH compares host names literally.
    pub fn certify(
        &self,
        host_key: &PublicKey,
        agent: &str,
        names: &[&str],
        now: i64,
    ) -> Result<Certificate, CaError> {
        let mut builder = builder(host_key, now, HOST_LIFETIME)?;
        builder.cert_type(CertType::Host)?;
        builder.serial(u64::from_be_bytes(super::random()?))?;
        builder.key_id(agent)?;
        builder.valid_principal(HOST_PATTERN)?;
        for name in names {
            // OpenSSH compares in lower case.
            builder.valid_principal(format!("{}.postern", name.to_lowercase()))?;
        }
        Ok(builder.sign(&*self.0)?)
    }
}

/// A new Ed25519 key in OpenSSH's file format.
pub fn generate(comment: &str) -> Result<PrivateKey, CaError> {
    let mut seed: [u8; 32] = super::random()?;
    let pair = Ed25519Keypair::from_seed(&seed);
    seed.zeroize();
    Ok(PrivateKey::new(KeypairData::Ed25519(pair), comment)?)
}

/// The private key as OpenSSH writes it.
pub fn to_openssh(key: &PrivateKey) -> Result<Zeroizing<String>, CaError> {
    Ok(key.to_openssh(LineEnding::LF)?)
}

/// Reads an unencrypted private key in OpenSSH's file format.
pub fn from_openssh(text: &[u8]) -> Result<PrivateKey, CaError> {
    let key = PrivateKey::from_openssh(text)?;
    if key.is_encrypted() {
        return Err(CaError::KeyKind {
            expected: "unencrypted",
        });
    }
    Ok(key)
}

fn ed25519(key: PrivateKey) -> Result<Arc<PrivateKey>, CaError> {
    match key.key_data() {
        KeypairData::Ed25519(_) => Ok(Arc::new(key)),
        _ => Err(CaError::KeyKind {
            expected: "an Ed25519 key",
        }),
    }
}

fn builder(key: &PublicKey, now: i64, lifetime: i64) -> Result<Builder, CaError> {
    let nonce: [u8; 32] = super::random()?;
    let seconds = |at: i64| u64::try_from(at).map_err(|_| CaError::Time(at));
    let start = seconds(now.saturating_sub(super::x509::BACKDATE))?;
    let end = seconds(now.saturating_add(lifetime))?;
    Ok(Builder::new(nonce, key.key_data().clone(), start, end)?)
}

/// sshd logs the key id: it ties the target's log to ours. The ARN is for people; only printable
/// ASCII of it gets there.
fn key_id(request: &UserRequest<'_>) -> String {
    let arn: String = request
        .principal
        .arn
        .chars()
        .filter(char::is_ascii_graphic)
        .collect();
    let mut id = format!("{} {} {arn}", request.principal.key(), request.session);
    id.truncate(512);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::subject::tests::alice;
    use russh::keys::HashAlg;

    const NOW: i64 = 1_790_000_000;

    fn certify(source: Option<&str>, extensions: &[SshExtension]) -> (SshUserCa, Certificate) {
        let ca = SshUserCa::new(generate("user CA").unwrap()).unwrap();
        let key = generate("").unwrap();
        let principal = alice().principal;
        let certificate = ca
            .certify(
                key.public_key(),
                &UserRequest {
                    principal: &principal,
                    session: SessionId::from_parts(1, 2),
                    user: &"ec2-user".parse().unwrap(),
                    source: source.map(|text| text.parse().unwrap()),
                    extensions,
                    now: NOW,
                },
            )
            .unwrap();
        (ca, certificate)
    }

    #[test]
    fn a_user_certificate_is_for_one_user_and_five_minutes() {
        let (ca, certificate) = certify(None, &[]);
        assert_eq!(certificate.valid_principals(), ["ec2-user"]);
        assert_eq!(certificate.cert_type(), CertType::User);
        assert_eq!(certificate.valid_before(), NOW as u64 + 300);
        assert!(certificate.extensions().is_empty());
        assert!(certificate.critical_options().is_empty());
        assert!(
            certificate
                .key_id()
                .starts_with("111122223333/AIDAALICEALICEALICE1 0000000001")
        );
        let trusted = ca.public_key().fingerprint(HashAlg::Sha256);
        certificate.validate_at(NOW as u64, [&trusted]).unwrap();
        assert!(
            certificate
                .validate_at(NOW as u64 + 301, [&trusted])
                .is_err()
        );
    }

    #[test]
    fn a_user_certificate_permits_only_what_was_granted() {
        let (_, certificate) = certify(
            Some("::ffff:10.0.0.5"),
            &[
                SshExtension::Pty,
                SshExtension::AgentForwarding,
                SshExtension::Pty,
            ],
        );
        let names: Vec<_> = certificate.extensions().keys().collect();
        assert_eq!(names, ["permit-agent-forwarding", "permit-pty"]);
        assert_eq!(
            certificate
                .critical_options()
                .get("source-address")
                .unwrap(),
            "10.0.0.5/32"
        );
    }

    #[test]
    fn the_host_certificate_is_for_names_under_postern_alone() {
        let ca = SshHostCa::new(generate("host CA").unwrap()).unwrap();
        let host = generate("host").unwrap();
        let certificate = ca
            .certify(host.public_key(), "bastion-1", &["Web-1"], NOW)
            .unwrap();
        assert_eq!(certificate.cert_type(), CertType::Host);
        assert_eq!(
            certificate.valid_principals(),
            [HOST_PATTERN, "web-1.postern"]
        );
        assert!(certificate.critical_options().is_empty());
    }

    /// OpenSSH itself reads what is signed here: nobody agrees with himself alone.
    #[test]
    fn openssh_reads_the_certificates_as_they_are_meant() {
        let (ca, user) = certify(Some("10.0.0.5"), &[SshExtension::Pty]);
        let host_ca = SshHostCa::new(generate("host CA").unwrap()).unwrap();
        let host = host_ca
            .certify(generate("").unwrap().public_key(), "bastion-1", &[], NOW)
            .unwrap();
        let shown = ssh_keygen(&user);
        for part in [
            "ssh-ed25519-cert-v01@openssh.com user certificate",
            &ca.public_key().fingerprint(HashAlg::Sha256).to_string(),
            "Key ID: \"111122223333/AIDAALICEALICEALICE1 ",
            "Principals: \n                ec2-user\n",
            "source-address 10.0.0.5/32",
            "Extensions: \n                permit-pty\n",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        let shown = ssh_keygen(&host);
        for part in ["host certificate", "*.postern", "Critical Options: (none)"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
    }

    fn ssh_keygen(certificate: &Certificate) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), certificate.to_openssh().unwrap()).unwrap();
        let output = std::process::Command::new("ssh-keygen")
            .arg("-Lf")
            .arg(file.path())
            .output()
            .expect("this test needs OpenSSH's ssh-keygen: tests/setup installs it");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_key_reads_back_as_it_was_written() {
        let key = generate("x").unwrap();
        let read = from_openssh(to_openssh(&key).unwrap().as_bytes()).unwrap();
        assert_eq!(read.public_key(), key.public_key());
        assert!(from_openssh(b"nothing").is_err());
    }
}
