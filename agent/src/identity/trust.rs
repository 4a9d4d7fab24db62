//! Whose client certificates are accepted, and whether one is good right now.

use std::sync::{Arc, RwLock};

use postern_proto::names::AgentId;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConnection,
    SignatureScheme,
};
use tokio::sync::watch;

use super::{DenyFault, DenyHook, DenyList, VerifiedPrincipal};
use crate::ca::client::{ClientCertificate, MalformedCertificate};
use crate::config::Config;
use crate::crypto::provider;
use crate::keys::{self, KeyFault};

mod reload;

/// Whose client certificates are accepted. The trust anchors are the agents' intermediates
/// themselves: withdrawing one needs no revocation list. Can be replaced while connections live.
pub struct PeerTrust {
    state: RwLock<Arc<State>>,
    changes: watch::Sender<u64>,
    trouble: watch::Sender<Option<Arc<str>>>,
    hook: Option<DenyHook>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(PartialEq, Eq)]
struct State {
    issuers: Vec<Issuer>,
    withdrawn: Vec<AgentId>,
    deny: DenyList,
}

/// One agent's intermediate.
struct Issuer {
    agent: AgentId,
    name: Vec<u8>,
    not_before: i64,
    not_after: i64,
    certificate: CertificateDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The certificate decides; the rest is read out of it.
impl PartialEq for Issuer {
    fn eq(&self, other: &Self) -> bool {
        self.agent == other.agent && self.certificate == other.certificate
    }
}

impl Eq for Issuer {}

/// Why a client certificate is not accepted now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// None was presented.
    #[error("the client presented no certificate")]
    Absent,
    /// It is not one of ours in form.
    #[error("the client's certificate is malformed: {0}")]
    Malformed(#[from] MalformedCertificate),
    /// No trusted agent issued it.
    #[error("the client's certificate was issued by no agent that this one trusts")]
    UnknownIssuer,
    /// The agent that issued it is not trusted any more.
    #[error("the client's certificate was issued by `{0}`, which is withdrawn")]
    Withdrawn(AgentId),
    /// The issuing intermediate is outside of its dates.
    #[error("the client's certificate was issued by `{0}`, whose own certificate is not valid now")]
    IssuerDates(AgentId),
    /// It ended.
    #[error("the client's certificate has expired")]
    Expired,
    /// It has not begun.
    #[error("the client's certificate is not valid yet")]
    NotYetValid,
    /// It is not for client authentication.
    #[error("the client's certificate is not for client authentication")]
    Usage,
    /// The signature, or something else that X.509 demands, is wrong.
    #[error("the client's certificate does not verify")]
    Signature,
    /// The user or the certificate is denied.
    #[error("{0}")]
    Denied(String),
}

/// Why a set of trusted agents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustFault {
    /// An intermediate cannot be read.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The deny list cannot be read.
    #[error(transparent)]
    Deny(#[from] DenyFault),
    /// An intermediate is no CA certificate.
    #[error("the client CA certificate of `{agent}` cannot be used: {reason}")]
    Intermediate {
        /// Whose.
        agent: AgentId,
        /// Why.
        reason: String,
    },
    /// Two intermediates with one name could not be told apart.
    #[error("the client CA certificates of `{0}` and `{1}` have the same name")]
    SameName(AgentId, AgentId),
}

impl CertificateFault {
    /// What the person can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Denied(_) => "ask the operators of this agent",
            Self::NotYetValid => "compare the clocks of the two machines, then run `postern login`",
            Self::Absent | Self::Expired => {
                "run the command again; `postern login` if that asks for it"
            }
            _ => "enrol again: `postern logout`, then `postern login`",
        }
    }
}

impl PeerTrust {
    /// Trusts `own` (this agent's intermediate) and what `config` names.
    pub fn load(
        config: &Config,
        own: &CertificateDer<'static>,
        hook: Option<DenyHook>,
    ) -> Result<Self, TrustFault> {
        Ok(Self {
            state: RwLock::new(Arc::new(State::load(config, own)?)),
            changes: watch::Sender::new(0),
            trouble: watch::Sender::new(None),
            hook,
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// Reads the deny list and the trusted agents again; `true` when they are other ones now. On
    /// an error the old ones stay, and [`Self::trouble`] tells why. Blocks on files.
    pub fn reload(
        &self,
        config: &Config,
        own: &CertificateDer<'static>,
    ) -> Result<bool, TrustFault> {
        let loaded = State::load(config, own);
        let trouble = loaded.as_ref().err().map(|error| {
            let text = error.to_string();
            Arc::from(text.lines().next().unwrap_or_default())
        });
        self.trouble.send_if_modified(|current| {
            let other = *current != trouble;
            *current = trouble;
            other
        });
        let loaded = loaded?;
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        if **state == loaded {
            return Ok(false);
        }
        *state = Arc::new(loaded);
        drop(state);
        self.changes.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// Counts up when the deny list or the trusted agents became other ones: live sessions are
    /// looked at again.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// `Some(why)` while the files are broken and older ones stay in use: `/readyz` is red.
    pub fn trouble(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.trouble.subscribe()
    }

    /// Checks the certificate that a connection presented, at `now` (seconds since 1970):
    /// presence, form, issuer, dates, usage, signature, deny list. Call it after every handshake
    /// and for every `Open`, `Resume` and HTTP request.
    pub fn verify_peer(
        &self,
        connection: &ServerConnection,
        now: i64,
    ) -> Result<VerifiedPrincipal, CertificateFault> {
        match connection.peer_certificates() {
            Some([leaf, ..]) => self.verify_certificate(leaf, now),
            _ => Err(CertificateFault::Absent),
        }
    }

    /// The same for a certificate that was kept from its connection.
    pub fn verify_certificate(
        &self,
        leaf: &CertificateDer<'_>,
        now: i64,
    ) -> Result<VerifiedPrincipal, CertificateFault> {
        let state = self.state();
        let read = ClientCertificate::from_der(leaf)?;
        let issuer = state
            .issuers
            .iter()
            .find(|issuer| issuer.name == read.issuer)
            .ok_or(CertificateFault::UnknownIssuer)?;
        if state.withdrawn.contains(&issuer.agent) {
            return Err(CertificateFault::Withdrawn(issuer.agent.clone()));
        }
        // webpki does not look at the dates of a trust anchor.
        if now < issuer.not_before || now > issuer.not_after {
            return Err(CertificateFault::IssuerDates(issuer.agent.clone()));
        }
        let seconds = u64::try_from(now).map_err(|_| CertificateFault::NotYetValid)?;
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        issuer
            .verifier
            .verify_client_cert(leaf, &[], time)
            .map_err(|error| fault_of(&error))?;
        let subject = &read.subject;
        if let Some(reason) = self.denies(&subject.principal, &read.serial) {
            return Err(CertificateFault::Denied(reason));
        }
        Ok(VerifiedPrincipal {
            principal: read.subject.principal,
            assurance: read.subject.assurance,
            mfa_not_before: read.subject.mfa_not_before,
            serial: read.serial,
            not_after: read.not_after,
            claimed_end: read.subject.claimed_end,
            key_hash: read.key_hash,
            aws_request_ids: read.subject.aws_request_ids,
        })
    }

    /// Why this principal, or its certificate with this serial (hex; empty at enrolment), may not
    /// come in any more.
    pub fn denies(
        &self,
        principal: &postern_proto::names::Principal,
        serial: &str,
    ) -> Option<String> {
        self.listed(principal, serial)
            .or_else(|| self.hook.as_ref()?(principal, serial))
    }

    /// The same by the deny list alone.
    pub fn listed(
        &self,
        principal: &postern_proto::names::Principal,
        serial: &str,
    ) -> Option<String> {
        self.state().deny.denies(principal, serial)
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl State {
    fn load(config: &Config, own: &CertificateDer<'static>) -> Result<Self, TrustFault> {
        let mut issuers = vec![Issuer::new(config.id.clone(), own)?];
        for trusted in &config.trust.agents {
            let chain = keys::certificates_of(&trusted.intermediate)?;
            // `certificates_of` returns at least one.
            let Some(certificate) = chain.first() else {
                continue;
            };
            issuers.push(Issuer::new(trusted.id.clone(), certificate)?);
        }
        for (index, issuer) in issuers.iter().enumerate() {
            let twin = issuers
                .iter()
                .skip(index + 1)
                .find(|i| i.name == issuer.name);
            if let Some(twin) = twin {
                return Err(TrustFault::SameName(
                    issuer.agent.clone(),
                    twin.agent.clone(),
                ));
            }
        }
        Ok(Self {
            issuers,
            withdrawn: config.trust.withdrawn.clone(),
            deny: DenyList::load(&config.deny)?,
        })
    }
}

impl Issuer {
    fn new(agent: AgentId, certificate: &CertificateDer<'static>) -> Result<Self, TrustFault> {
        let fault = |reason: String| TrustFault::Intermediate {
            agent: agent.clone(),
            reason,
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| fault("it is not an X.509 certificate".to_owned()))?;
        if !parsed.is_ca() {
            return Err(fault("it is not a CA certificate".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate.clone())
            .map_err(|error| fault(error.to_string()))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| fault(error.to_string()))?;
        Ok(Self {
            name: parsed.subject().as_raw().to_vec(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            agent,
            certificate: certificate.clone(),
            verifier,
        })
    }
}

fn fault_of(error: &rustls::Error) -> CertificateFault {
    let rustls::Error::InvalidCertificate(error) = error else {
        return CertificateFault::Signature;
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            CertificateFault::Expired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateFault::NotYetValid
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::Usage
        }
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        _ => CertificateFault::Signature,
    }
}

/// What the peer may know in its TLS alert.
fn alert_of(fault: &CertificateFault) -> CertificateError {
    match fault {
        CertificateFault::Expired => CertificateError::Expired,
        CertificateFault::NotYetValid => CertificateError::NotValidYet,
        CertificateFault::Usage => CertificateError::InvalidPurpose,
        CertificateFault::UnknownIssuer
        | CertificateFault::Withdrawn(_)
        | CertificateFault::IssuerDates(_) => CertificateError::UnknownIssuer,
        CertificateFault::Denied(_) => CertificateError::Revoked,
        CertificateFault::Signature => CertificateError::BadSignature,
        CertificateFault::Absent | CertificateFault::Malformed(_) => CertificateError::BadEncoding,
    }
}

impl ClientCertVerifier for PeerTrust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Clients have one certificate for one agent; no list to choose from is needed.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match self.verify_certificate(end_entity, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(fault) => Err(rustls::Error::InvalidCertificate(alert_of(&fault))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::Tls12NotOfferedOrEnabled,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for PeerTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("PeerTrust")
            .field(
                "agents",
                &state.issuers.iter().map(|i| &i.agent).collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
