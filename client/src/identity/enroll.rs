//! Enrolment, the client's half: proves to an agent who we are and that MFA was given, without
//! handing it anything that it could use elsewhere (DESIGN.md section 3).

mod error;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::enroll::{
    Binding, Challenge, EXPORTER, MESSAGE_LIMIT, Outcome, Proof, RefuseCode, StepUp, StsRequest,
    key_challenge,
};
use postern_proto::names::SessionId;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use crate::config::AgentProfile;

use super::aws::{is_region, regional_sts_host};
use super::code::MfaCode;
use super::secret::Keys;
use super::sign::{ClientKey, aws_signature, date};
use super::sts::now;

pub use error::EnrolError;

/// ALPN of the enrolment.
pub const ALPN: &[u8] = b"postern-enroll/1";
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The agent asks AWS twice before it answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(45);
/// Leaf, the agent's intermediate, and room for a root.
const CHAIN_LIMIT: usize = 4;

/// Who wants what of whom.
pub(crate) struct Enrolment<'a> {
    /// The agent, as pinned.
    pub(crate) agent: &'a AgentProfile,
    /// `host[:port]` of the STS that our own profile uses.
    pub(crate) sts_host: &'a str,
    /// They sign: the user session's, or the long-term ones for step-up.
    pub(crate) keys: &'a Keys,
    /// What is to be certified, or approved.
    pub(crate) client_key: &'a ClientKey,
    /// When the user session ends.
    pub(crate) claimed_end: Option<i64>,
    /// The MFA device.
    pub(crate) serial: &'a str,
    /// A fresh act for one `Open`.
    pub(crate) step_up: Option<FreshAct<'a>>,
}

/// What a step-up adds.
pub(crate) struct FreshAct<'a> {
    pub(crate) code: &'a MfaCode,
    pub(crate) session: SessionId,
    pub(crate) open_hash: [u8; 32],
}

/// A certificate that an agent issued.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

impl Enrolment<'_> {
    /// Gets a certificate for the client's key.
    pub(crate) async fn issue(&self) -> Result<Issued, EnrolError> {
        match self.run().await? {
            Outcome::Issued { chain, not_after } => self.check_chain(chain, not_after),
            outcome => Err(self.unexpected(&outcome)),
        }
    }

    /// Gets the approval of one `Open`; returns when it lapses.
    pub(crate) async fn approve(&self) -> Result<i64, EnrolError> {
        match self.run().await? {
            Outcome::Approved { until } => Ok(until),
            outcome => Err(self.unexpected(&outcome)),
        }
    }

    async fn run(&self) -> Result<Outcome, EnrolError> {
        let stream = tokio::time::timeout(CONNECT_DEADLINE, self.connect())
            .await
            .map_err(|_| self.unreachable("it did not answer in time"))??;
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None)
            .map_err(|error| self.protocol(error.to_string()))?;
        let mut stream = BufReader::new(stream);
        let talk = async {
            let challenge: Challenge = self.receive(&mut stream).await?;
            let skew = now() - challenge.time;
            let proof = self.prove(&challenge, &exporter)?;
            self.send(stream.get_mut(), &proof).await?;
            let outcome: Outcome = self.receive(&mut stream).await?;
            Ok::<_, EnrolError>((outcome, skew))
        };
        let (outcome, skew) = tokio::time::timeout(ANSWER_DEADLINE, talk)
            .await
            .map_err(|_| self.unreachable("it did not answer in time"))??;
        match outcome {
            Outcome::Refused {
                code,
                message,
                hint,
            } => Err(EnrolError::Refused {
                agent: self.agent.id.clone(),
                code,
                message,
                hint,
                skew: (code == RefuseCode::Clock).then_some(skew),
            }),
            outcome => Ok(outcome),
        }
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, EnrolError> {
        let config = self.tls()?;
        let name = ServerName::try_from(self.agent.id.to_string())
            .map_err(|error| self.protocol(error.to_string()))?;
        let tcp = TcpStream::connect(&self.agent.address)
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        // Small messages in both directions: none should wait for another.
        let _ = tcp.set_nodelay(true);
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(self.protocol("it did not choose the protocol `postern-enroll/1`"));
        }
        Ok(stream)
    }

    fn tls(&self) -> Result<ClientConfig, EnrolError> {
        let failed = |cause: String| EnrolError::Ca {
            agent: self.agent.id.clone(),
            cause,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.agent.ca) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| failed(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Compares what the agent asks for with what is pinned, then signs.
    fn prove(&self, challenge: &Challenge, exporter: &[u8; 32]) -> Result<Proof, EnrolError> {
        self.check(challenge)?;
        let mut nonce = [0; 32];
        hex::decode_to_slice(&challenge.nonce, &mut nonce)
            .map_err(|_| self.protocol("its nonce is not 32 bytes"))?;
        let public_key = self.client_key.public_key()?;
        let bind = Binding {
            agent: &self.agent.id,
            nonce: &nonce,
            public_key: &public_key,
            exporter,
            step_up: self
                .step_up
                .as_ref()
                .map(|act| (act.session, &act.open_hash)),
        }
        .bind();
        let identity = StsRequest::identity(&challenge.sts_host, &bind);
        // The role comes from our profile, not from the message, equal as they are by now.
        let attest = StsRequest::attest(
            &challenge.sts_host,
            &bind,
            &self.agent.attestation_role,
            self.step_up
                .as_ref()
                .map(|act| (self.serial, act.code.expose())),
        );
        let at = now();
        let sign = |request| aws_signature(request, self.keys, &challenge.region, at);
        let possession = self.client_key.sign(&key_challenge(&nonce, exporter))?;
        Ok(Proof {
            access_key_id: self.keys.access_key_id.clone(),
            session_token: self
                .keys
                .session_token
                .as_ref()
                .map(|token| token.expose().to_owned()),
            date: date(at),
            identity_signature: sign(&identity)?,
            attest_signature: sign(&attest)?,
            public_key: URL_SAFE_NO_PAD.encode(public_key),
            key_signature: URL_SAFE_NO_PAD.encode(possession),
            step_up: self.step_up.as_ref().map(|act| StepUp {
                serial: self.serial.to_owned(),
                code: act.code.expose().to_owned(),
                session: act.session,
                open_hash: hex::encode(act.open_hash),
            }),
            claimed_end: self.claimed_end,
            claimed_serial: Some(self.serial.to_owned()),
        })
    }

    fn check(&self, challenge: &Challenge) -> Result<(), EnrolError> {
        if challenge.agent != self.agent.id {
            return Err(self.not_pinned("id", challenge.agent.as_str(), self.agent.id.as_str()));
        }
        if challenge.role != self.agent.attestation_role {
            let pinned = &self.agent.attestation_role;
            return Err(self.not_pinned("attestation role", &challenge.role, pinned));
        }
        if !is_region(&challenge.region) {
            return Err(self.protocol("its region is none"));
        }
        let host = challenge.sts_host.as_str();
        let regional = regional_sts_host(&challenge.region);
        let known = match &self.agent.sts_host {
            Some(pinned) => host == pinned,
            None => host == self.sts_host || host == regional,
        };
        if !known {
            let pinned = self.agent.sts_host.as_deref().unwrap_or(self.sts_host);
            return Err(self.not_pinned("STS host", host, pinned));
        }
        Ok(())
    }

    /// The certificate must be for our key; its dates come from itself.
    fn check_chain(&self, chain: String, not_after: i64) -> Result<Issued, EnrolError> {
        let wrong = |cause: &str| self.protocol(format!("the certificate {cause}"));
        let certificates = parse_chain(&chain).ok_or_else(|| wrong("is no PEM chain"))?;
        let leaf = certificates.first().ok_or_else(|| wrong("is missing"))?;
        let (_, leaf) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_| wrong("cannot be read"))?;
        if leaf.public_key().raw != self.client_key.public_key()? {
            return Err(wrong("is for another key"));
        }
        let not_after = not_after.min(leaf.validity().not_after.timestamp());
        if not_after <= now() {
            return Err(wrong("is over already"));
        }
        Ok(Issued {
            not_before: leaf.validity().not_before.timestamp(),
            not_after,
            chain,
        })
    }

    async fn receive<T: DeserializeOwned>(
        &self,
        stream: &mut BufReader<TlsStream<TcpStream>>,
    ) -> Result<T, EnrolError> {
        let mut line = Zeroizing::new(Vec::with_capacity(1024));
        stream
            .take(MESSAGE_LIMIT as u64)
            .read_until(b'\n', &mut line)
            .await
            .map_err(|error| self.handshake_failed(&error))?;
        if line.pop() != Some(b'\n') {
            let cause = if line.len() + 1 >= MESSAGE_LIMIT {
                "its message is too long"
            } else {
                "it closed the connection"
            };
            return Err(self.protocol(cause));
        }
        serde_json::from_slice(&line)
            .map_err(|error| self.protocol(format!("its message is not understood: {error}")))
    }

    async fn send<T: Serialize>(
        &self,
        stream: &mut TlsStream<TcpStream>,
        message: &T,
    ) -> Result<(), EnrolError> {
        let mut line = Zeroizing::new(Vec::with_capacity(MESSAGE_LIMIT));
        serde_json::to_writer(&mut *line, message)
            .map_err(|error| self.protocol(error.to_string()))?;
        line.push(b'\n');
        if line.len() > MESSAGE_LIMIT {
            return Err(self.protocol("our session token is too long for it"));
        }
        stream
            .write_all(&line)
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        stream
            .flush()
            .await
            .map_err(|error| self.unreachable(error.to_string()))
    }

    /// rustls hides its reason inside an I/O error.
    fn handshake_failed(&self, error: &std::io::Error) -> EnrolError {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let cause = match tls {
            Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "its certificate is not from the pinned CA".to_owned()
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "its certificate names somebody else".to_owned()
                }
                other => other.to_string(),
            },
            Some(rustls::Error::AlertReceived(alert)) => {
                return self.protocol(format!("it ended the handshake ({alert:?})"));
            }
            Some(other) => return self.protocol(other.to_string()),
            None => return self.unreachable(error.to_string()),
        };
        EnrolError::Untrusted {
            agent: self.agent.id.clone(),
            address: self.agent.address.clone(),
            cause,
        }
    }

    fn unexpected(&self, outcome: &Outcome) -> EnrolError {
        self.protocol(match outcome {
            Outcome::Issued { .. } => "a certificate instead of an approval",
            _ => "an approval instead of a certificate",
        })
    }

    fn not_pinned(&self, what: &'static str, asked: &str, pinned: &str) -> EnrolError {
        EnrolError::Pinned {
            agent: self.agent.id.clone(),
            what,
            asked: asked.chars().take(256).collect(),
            pinned: pinned.to_owned(),
        }
    }

    fn unreachable(&self, cause: impl Into<String>) -> EnrolError {
        EnrolError::Unreachable {
            agent: self.agent.id.clone(),
            address: self.agent.address.clone(),
            cause: cause.into(),
        }
    }

    fn protocol(&self, cause: impl Into<String>) -> EnrolError {
        EnrolError::Protocol {
            agent: self.agent.id.clone(),
            cause: cause.into(),
        }
    }
}

/// The certificates of a PEM text: at least one, not many.
pub(crate) fn parse_chain(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CHAIN_LIMIT + 1)
        .collect::<Result<_, _>>()
        .ok()?;
    (1..=CHAIN_LIMIT).contains(&chain.len()).then_some(chain)
}

#[cfg(test)]
mod tests;
