//! What a proof gets: the rules of AWS-FACTS.md B.4.

use std::net::SocketAddr;
use std::time::Duration;

use postern_proto::audit::event::Actor;
use postern_proto::enroll::Binding;
use postern_proto::names::{Assurance, Principal};

use super::{Enroller, now};
use crate::ca::ClientSubject;
use crate::config::format_duration;
use crate::identity::attestation::AttestationState;
use crate::identity::proof::{CheckedProof, CheckedStepUp};
use crate::identity::sts::StsFault;
use crate::identity::{Refusal, caller};

/// What was decided, before it is written and told.
pub(super) enum Decision {
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
pub(super) struct Refused(pub(super) Refusal, pub(super) Option<Principal>);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal, None)
    }
}

impl Enroller {
    /// The rules, in order. The nonce is burnt by being here: a connection
    /// gets one attempt.
    pub(super) async fn decide(
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
