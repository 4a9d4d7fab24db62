//! One enrolment, from the challenge to the outcome.

mod conclude;
mod decide;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::enroll::{Challenge, EXPORTER, MESSAGE_LIMIT};
use postern_proto::names::{AccountId, AgentId, Principal, SessionId};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::approvals::Approvals;
use super::attestation::AttestationState;
use super::slots::Slots;
use super::sts::StsClient;
use super::{PeerTrust, Record, Refusal, lines};
use crate::ca;
use crate::ca::client::ClientCa;
use crate::config::{Config, RoleArn};

/// How long the client has to answer the challenge: it only signs.
const PROOF_DEADLINE: Duration = Duration::from_secs(10);
/// How long writing the outcome and closing may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// What an enroller works with.
pub struct EnrollerParts {
    /// The STS endpoint.
    pub sts: StsClient,
    /// Signs client certificates.
    pub ca: Arc<ClientCa>,
    /// The deny list, which blocks renewal.
    pub trust: Arc<PeerTrust>,
    /// Where step-up approvals wait.
    pub approvals: Arc<Approvals>,
    /// Whether the attestation role is sound.
    pub attestation: watch::Receiver<AttestationState>,
    /// Writes outcomes to the audit log before they are told.
    pub record: Record,
}

/// Enrols clients.
pub struct Enroller {
    agent: AgentId,
    role: RoleArn,
    accounts: Vec<AccountId>,
    mfa_max_age: Duration,
    lifetime: Duration,
    parts: EnrollerParts,
    slots: Slots,
    proof_deadline: Duration,
}

/// How an enrolment ended. What is due to the audit log has been written.
#[derive(Debug)]
pub enum EnrollEnd {
    /// A certificate was issued.
    Issued {
        /// To whom.
        principal: Principal,
    },
    /// A step-up was approved.
    Approved {
        /// Whose.
        principal: Principal,
        /// For which session.
        session: SessionId,
    },
    /// Refused. Without `principal` it was before authentication: for the caller to count and to
    /// log once a minute for each source.
    Refused {
        /// Why.
        refusal: Refusal,
        /// Who it was, if AWS had said so.
        principal: Option<Principal>,
    },
    /// The connection broke, or no proof came in time. To count, too.
    Broken(std::io::Error),
}

impl Enroller {
    /// An enroller for this agent.
    pub fn new(config: &Config, parts: EnrollerParts) -> Self {
        Self {
            agent: config.id.clone(),
            role: config.attestation.role.clone(),
            accounts: config.accounts(),
            mfa_max_age: config.attestation.mfa_max_age,
            lifetime: config.certificate.lifetime,
            slots: Slots::new(
                config.limits.enrollments,
                config.limits.enrollments_per_address,
            ),
            parts,
            proof_deadline: PROOF_DEADLINE,
        }
    }

    /// Serves one connection of ALPN `postern-enroll/1`, from challenge to close.
    pub async fn serve_tls<IO>(&self, stream: TlsStream<IO>, source: SocketAddr) -> EnrollEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let exported = stream
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None);
        match exported {
            Ok(exporter) => self.serve(stream, &exporter, source).await,
            Err(error) => EnrollEnd::Broken(std::io::Error::other(error)),
        }
    }

    /// The same for any stream, with the 32 bytes of its TLS exporter
    /// [`postern_proto::enroll::EXPORTER`]. Every wait inside has a deadline.
    pub async fn serve<S>(
        &self,
        mut stream: S,
        exporter: &[u8; 32],
        source: SocketAddr,
    ) -> EnrollEnd
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let nonce: [u8; 32] = match ca::random() {
            Ok(nonce) => nonce,
            Err(error) => return EnrollEnd::Broken(std::io::Error::other(error.to_string())),
        };
        let message = match self.challenge(&mut stream, &nonce).await {
            Ok(message) => message,
            Err(error) => return EnrollEnd::Broken(error),
        };
        let decided = self.decide(&message, &nonce, exporter, source).await;
        drop(message);
        let (outcome, end) = self.conclude(decided, source).await;
        // The decision stands whether the client hears of it or not.
        let told = async {
            lines::write_line(&mut stream, &outcome).await?;
            stream.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_DEADLINE, told).await {
            tracing::debug!(%source, %error, "the outcome of an enrolment could not be told");
        }
        end
    }

    async fn challenge<S>(
        &self,
        stream: &mut S,
        nonce: &[u8; 32],
    ) -> std::io::Result<zeroize::Zeroizing<Vec<u8>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let challenge = Challenge {
            nonce: hex::encode(nonce),
            agent: self.agent.clone(),
            role: self.role.as_str().to_owned(),
            sts_host: self.parts.sts.authority().to_owned(),
            region: self.parts.sts.region().to_owned(),
            time: now(),
        };
        let exchange = async {
            lines::write_line(stream, &challenge).await?;
            lines::read_line(stream, MESSAGE_LIMIT).await
        };
        match tokio::time::timeout(self.proof_deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

#[cfg(test)]
mod tests;
