//! A decision written down, then told.

use std::net::SocketAddr;

use postern_proto::audit::event::{Actor, Event, Fact};
use postern_proto::enroll::Outcome;
use postern_proto::names::{Assurance, Principal, SessionId};

use super::decide::{Decision, Refused};
use super::{EnrollEnd, Enroller};
use crate::evidence::agent_event;
use crate::identity::Refusal;
use crate::identity::approvals::Approval;

impl Enroller {
    /// Writes the event, then lets the decision take effect: nothing is told before it is durable.
    pub(super) async fn conclude(
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
