//! One enrolment, from the challenge to the outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::audit::event::{Actor, Event, Fact};
use postern_proto::enroll::{Binding, Challenge, EXPORTER, MESSAGE_LIMIT, Outcome};
use postern_proto::names::{AgentId, Assurance, Principal, SessionId};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::approvals::{Approval, Approvals};
use super::attestation::AttestationState;
use super::proof::{CheckedProof, CheckedStepUp};
use super::slots::Slots;
use super::sts::{StsClient, StsFault};
use super::{PeerTrust, Record, Refusal, caller, lines};
use crate::ca;
use crate::ca::ClientSubject;
use crate::ca::client::ClientCa;
use crate::config::{Config, RoleArn, format_duration};
use crate::evidence::agent_event;

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
    accounts: Vec<postern_proto::names::AccountId>,
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

/// What was decided, before it is written and told.
enum Decision {
    Issue {
        actor: Actor,
        chain: String,
        not_after: i64,
        claimed_end: Option<i64>,
        claimed_serial: Option<String>,
    },
    Approve {
        actor: Actor,
        step_up: CheckedStepUp,
        key_hash: [u8; 32],
    },
}

/// A refusal, and who it was as far as AWS had said so.
struct Refused(Refusal, Option<Principal>);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal, None)
    }
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

    /// The rules of AWS-FACTS.md B.4, in order. The nonce is burnt by being here: a connection
    /// gets one attempt.
    async fn decide(
        &self,
        message: &[u8],
        nonce: &[u8; 32],
        exporter: &[u8; 32],
        source: SocketAddr,
    ) -> Result<Decision, Refused> {
        let proof = CheckedProof::read(message, nonce, exporter, now())?;
        if let AttestationState::Closed(reason) = &*self.parts.attestation.borrow() {
            return Err(Refusal::closed(reason).into());
        }
        let _slot = self.slots.take(source.ip()).ok_or_else(Refusal::busy)?;
        let bind = Binding {
            agent: &self.agent,
            nonce,
            public_key: &proof.spki,
            exporter,
            step_up: proof
                .step_up
                .as_ref()
                .map(|step_up| (step_up.session, &step_up.open_hash)),
        }
        .bind();

        let identity = self.parts.sts.identity(proof.proof(), &bind).await;
        let identity = identity.map_err(|fault| identity_refusal(&fault))?;
        let principal = caller::principal(&identity, &self.accounts, self.role.partition())?;
        let known = |refusal| Refused(refusal, Some(principal.clone()));
        if let Some(reason) = self.parts.trust.denies(&principal, "") {
            return Err(known(Refusal::denied(reason)));
        }
        if let Some((serial, _)) = proof.code()
            && !caller::owns_serial(&principal, self.role.partition(), serial)
        {
            return Err(known(Refusal::serial()));
        }

        let attested = self
            .parts
            .sts
            .attest(proof.proof(), &bind, self.role.as_str(), proof.code())
            .await
            .map_err(|fault| known(self.attest_refusal(&fault, proof.step_up.is_some())))?;
        // The echo: this answer belongs to this login and to our role.
        if attested.arn != self.role.session(&bind) {
            return Err(known(Refusal::sts(
                "AssumeRole answered for another role or session name",
            )));
        }
        let requests = vec![identity.request_id, attested.request_id];
        match proof.step_up {
            Some(step_up) => Ok(Decision::Approve {
                actor: Actor {
                    principal: principal.clone(),
                    assurance: Assurance::AwsMfaFresh,
                    mfa_not_before: now(),
                    certificate: String::new(),
                    aws_request_ids: requests,
                },
                step_up,
                key_hash: proof.key_hash,
            }),
            None => self.issue(&proof, &principal, requests).map_err(known),
        }
    }

    fn issue(
        &self,
        proof: &CheckedProof,
        principal: &Principal,
        aws_request_ids: Vec<String>,
    ) -> Result<Decision, Refusal> {
        let now = now();
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let claimed_end = proof.proof().claimed_end;
        // A claim may only shorten.
        let longest = now.saturating_add(seconds(self.lifetime));
        let not_after = claimed_end.map_or(longest, |end| end.min(longest));
        let subject = ClientSubject {
            principal: principal.clone(),
            assurance: Assurance::AwsMfa,
            // AWS attests only that MFA is younger than the bound.
            mfa_not_before: now.saturating_sub(seconds(self.mfa_max_age)),
            claimed_end,
            claimed_serial: proof.proof().claimed_serial.clone(),
            aws_request_ids,
        };
        let issued = self
            .parts
            .ca
            .issue(&subject, &proof.spki, now, not_after)
            .map_err(|error| Refusal::internal(error.to_string()))?;
        Ok(Decision::Issue {
            chain: issued.chain_pem(),
            not_after,
            claimed_end,
            claimed_serial: subject.claimed_serial,
            actor: Actor {
                principal: subject.principal,
                assurance: subject.assurance,
                mfa_not_before: subject.mfa_not_before,
                certificate: issued.serial,
                aws_request_ids: subject.aws_request_ids,
            },
        })
    }

    /// Writes the event, then lets the decision take effect: nothing is told before it is durable.
    async fn conclude(
        &self,
        decided: Result<Decision, Refused>,
        source: SocketAddr,
    ) -> (Outcome, EnrollEnd) {
        let concluded = match decided {
            Ok(decision) => self.grant(decision, source).await,
            Err(refused) => Err(refused),
        };
        let Refused(refusal, principal) = match concluded {
            Ok(granted) => return granted,
            Err(refused) => refused,
        };
        if let Some(principal) = &principal {
            self.log_refusal(&refusal, principal, source).await;
        }
        tracing::info!(%source, code = refusal.code_name(), reason = %refusal.reason, "enrolment refused");
        (refusal.outcome(), EnrollEnd::Refused { refusal, principal })
    }

    async fn grant(
        &self,
        decision: Decision,
        source: SocketAddr,
    ) -> Result<(Outcome, EnrollEnd), Refused> {
        let (fact, actor, session) = match &decision {
            Decision::Issue {
                actor,
                not_after,
                claimed_end,
                claimed_serial,
                ..
            } => {
                let fact = Fact::Enrolled {
                    not_after: *not_after,
                    claimed_end: *claimed_end,
                    claimed_serial: claimed_serial.clone(),
                };
                (fact, actor, None)
            }
            Decision::Approve { actor, step_up, .. } => {
                let fact = Fact::StepUpApproved {
                    open_hash: hex::encode(step_up.open_hash),
                };
                (fact, actor, Some(step_up.session))
            }
        };
        let principal = actor.principal.clone();
        let event = event(fact, Some(actor.clone()), session, source);
        if let Err(error) = (self.parts.record)(event).await {
            return Err(Refused(Refusal::evidence(error), None));
        }
        match decision {
            Decision::Issue {
                chain, not_after, ..
            } => Ok((
                Outcome::Issued { chain, not_after },
                EnrollEnd::Issued { principal },
            )),
            Decision::Approve {
                actor,
                step_up,
                key_hash,
            } => {
                let approval = Approval {
                    principal: principal.clone(),
                    aws_request_ids: actor.aws_request_ids,
                    given_at: actor.mfa_not_before,
                };
                let session = step_up.session;
                let until = self
                    .parts
                    .approvals
                    .hold(key_hash, step_up.open_hash, session, approval)
                    .map_err(|_| Refused(Refusal::too_many_approvals(), Some(principal.clone())))?;
                Ok((
                    Outcome::Approved { until },
                    EnrollEnd::Approved { principal, session },
                ))
            }
        }
    }

    /// Refusals of somebody whom AWS named are events of their own.
    async fn log_refusal(&self, refusal: &Refusal, principal: &Principal, source: SocketAddr) {
        let actor = Actor {
            principal: principal.clone(),
            assurance: Assurance::None,
            mfa_not_before: 0,
            certificate: String::new(),
            aws_request_ids: vec![],
        };
        let fact = Fact::EnrollmentRefused {
            code: refusal.code_name().to_owned(),
            reason: refusal.reason.clone(),
        };
        let event = event(fact, Some(actor), None, source);
        if let Err(error) = (self.parts.record)(event).await {
            tracing::error!(%error, "a refused enrolment could not be written to the audit log");
        }
    }

    fn attest_refusal(&self, fault: &StsFault, step_up: bool) -> Refusal {
        match fault {
            StsFault::Refused(code) if code == "AccessDenied" && step_up => Refusal::wrong_code(),
            StsFault::Refused(code) if code == "AccessDenied" => {
                Refusal::no_mfa(&format_duration(self.mfa_max_age))
            }
            other => identity_refusal(other),
        }
    }
}

/// STS's error codes, from its API reference and the common errors.
fn identity_refusal(fault: &StsFault) -> Refusal {
    let StsFault::Refused(code) = fault else {
        return Refusal::sts(fault.to_string());
    };
    let refusal = match code.as_str() {
        "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidAccessKeyId" => {
            Refusal::unknown_credentials()
        }
        "ExpiredToken" | "ExpiredTokenException" => Refusal::session_ended(),
        "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "RequestExpired" => Refusal::wrong_signature(),
        _ => return Refusal::sts(fault.to_string()),
    };
    refusal.because(fault.to_string())
}

fn event(
    fact: Fact,
    actor: Option<Actor>,
    session: Option<SessionId>,
    source: SocketAddr,
) -> Event {
    Event {
        session,
        actor,
        source: Some(source.to_string()),
        ..agent_event(fact)
    }
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

#[cfg(test)]
mod tests;
