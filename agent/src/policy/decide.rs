//! The one function that decides.

use std::net::IpAddr;

use cedar_policy::{Authorizer, Decision as CedarDecision, PolicyId, PolicySet, Response};
use postern_proto::names::{Assurance, Principal};
use time::OffsetDateTime;

use super::load::{Policies, shown};
use super::question::{Facts, Question};
use super::{Action, Decision, Denial, Grant, Request};

impl Policies {
    /// Decides. Pure: the same request and policies give the same answer. What cannot be decided
    /// (no MFA evidence, a policy that fails to evaluate, a request that does not fit the schema)
    /// is a denial.
    pub fn decide(&self, request: &Request) -> Decision {
        let facts = Facts::of(request);
        // The certificate's own level counts too: a caller cannot lift it by mistake.
        if request.who.assurance() == Assurance::None {
            return Decision::Deny(no_mfa());
        }
        match self.outcome(&facts) {
            Outcome::Allowed(policies) => Decision::Allow(Grant {
                request: request.clone(),
                policies,
            }),
            Outcome::Fresh(policies) => Decision::StepUp { policies },
            Outcome::Denied(no) => Decision::Deny(self.denial(&facts, no)),
        }
    }

    /// Whether policy bars somebody altogether: a `forbid` on the principal or the certificate's
    /// serial that names neither action nor target. Asked at enrolment (`serial` is `None` before
    /// there is a certificate), after every handshake and for each live session. An unspecified
    /// source (`0.0.0.0`) is one that is not known: forbids that speak of it are left out.
    pub fn admit(
        &self,
        principal: &Principal,
        serial: Option<&str>,
        source: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(), Denial> {
        let bars = if source.is_unspecified() {
            &self.bars_anywhere
        } else {
            &self.bars
        };
        if bars.is_empty() {
            return Ok(());
        }
        // The most favourable question: what it is forbidden now, everything is.
        let facts = Facts {
            principal,
            certificate: serial.unwrap_or_default(),
            action: Action::SessionList,
            target: None,
            source,
            user: None,
            port: None,
            host: None,
            assurance: Assurance::AwsMfaFresh,
            mfa_not_before: now.unix_timestamp(),
            now,
        };
        match self.ask(bars, &facts) {
            Ok(Answer::NothingAllows) => Ok(()),
            // Only forbids were asked: an allow is impossible, and no reason to admit.
            Ok(Answer::Allow(_)) => Err(self.denial(&facts, No::Default)),
            Ok(Answer::Forbidden(policies)) => Err(self.denial(&facts, No::Forbidden(policies))),
            Err(no) => Err(self.denial(&facts, no)),
        }
    }

    pub(super) fn outcome(&self, facts: &Facts<'_>) -> Outcome {
        if facts.assurance == Assurance::None {
            return Outcome::Denied(No::Unproven);
        }
        let no = match self.ask(self.set_for(facts), facts) {
            Ok(Answer::Allow(policies)) => return Outcome::Allowed(policies),
            Ok(Answer::Forbidden(policies)) => No::Forbidden(policies),
            Ok(Answer::NothingAllows) => No::Default,
            Err(no) => return Outcome::Denied(no),
        };
        // A forbid that holds after a fresh code too keeps this from being an allow.
        if facts.assurance < Assurance::AwsMfaFresh
            && let Ok(Answer::Allow(policies)) =
                self.ask(self.set_for(facts), &facts.with_fresh_mfa())
        {
            return Outcome::Fresh(policies);
        }
        Outcome::Denied(no)
    }

    /// A host behind a target is opened only by permits that speak of hosts: a permit for port
    /// 5432 of `web-1` must not open port 5432 of everything that the bastion reaches.
    pub(super) fn set_for(&self, facts: &Facts<'_>) -> &PolicySet {
        if facts.action == Action::Tunnel && facts.host.is_some() {
            &self.behind
        } else {
            &self.all
        }
    }

    /// Asks Cedar; any policy that fails to evaluate is an error.
    pub(super) fn ask(&self, set: &PolicySet, facts: &Facts<'_>) -> Result<Answer, No> {
        let question = Question::new(facts).map_err(No::Unfit)?;
        let response = Authorizer::new().is_authorized(&question.request, set, &question.entities);
        let mut failed: Vec<_> = response.diagnostics().errors().map(failure).collect();
        if !failed.is_empty() {
            failed.sort();
            return Err(No::Failed(failed));
        }
        let policies = deciding(&response);
        Ok(match response.decision() {
            CedarDecision::Allow => Answer::Allow(policies),
            CedarDecision::Deny if policies.is_empty() => Answer::NothingAllows,
            CedarDecision::Deny => Answer::Forbidden(policies),
        })
    }

    fn denial(&self, facts: &Facts<'_>, no: No) -> Denial {
        match no {
            No::Unproven => no_mfa(),
            No::Default => self.default_denial(facts),
            No::Forbidden(policies) => {
                let reason = policies
                    .iter()
                    .find_map(|id| self.rules.get(id)?.reason.clone());
                let names = quoted(&policies);
                Denial {
                    message: match reason {
                        Some(reason) => format!("policy {names} forbids it: {reason}"),
                        None => format!("policy {names} forbids it"),
                    },
                    hint: None,
                    policies,
                }
            }
            No::Failed(failed) => {
                let hint = failed.first().and_then(|(id, _)| {
                    let rule = self.rules.get(id)?;
                    Some(format!(
                        "an administrator must mend {} line {}",
                        rule.file, rule.line
                    ))
                });
                let why = failed.first().map_or("", |(_, why)| why.as_str());
                let policies: Vec<_> = failed.iter().map(|(id, _)| id.clone()).collect();
                Denial {
                    message: format!(
                        "policy {} could not be evaluated, so nothing is allowed: {why}",
                        quoted(&policies)
                    ),
                    hint,
                    policies,
                }
            }
            No::Unfit(why) => Denial {
                policies: Vec::new(),
                message: format!("this request cannot be decided: {}", shown(&why)),
                hint: None,
            },
        }
    }
}

/// What comes of a request.
pub(super) enum Outcome {
    /// Ids of the permits.
    Allowed(Vec<String>),
    /// Ids of the permits, once a fresh code is given.
    Fresh(Vec<String>),
    /// No.
    Denied(No),
}

/// Cedar's answer when every policy could be evaluated.
pub(super) enum Answer {
    Allow(Vec<String>),
    Forbidden(Vec<String>),
    NothingAllows,
}

/// The kinds of no.
pub(super) enum No {
    /// No evidence of MFA.
    Unproven,
    Default,
    Forbidden(Vec<String>),
    /// Policies that failed to evaluate, and why.
    Failed(Vec<(String, String)>),
    /// The request lacks what its action needs.
    Unfit(String),
}

fn deciding(response: &Response) -> Vec<String> {
    let ids = response.diagnostics().reason();
    let mut ids: Vec<String> = ids.map(|id: &PolicyId| id.to_string()).collect();
    ids.sort();
    ids
}

fn failure(error: &cedar_policy::AuthorizationError) -> (String, String) {
    let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
    (
        error.policy_id().to_string(),
        shown(&error.inner().to_string()),
    )
}

fn no_mfa() -> Denial {
    Denial {
        policies: Vec::new(),
        message: "these credentials carry no evidence of MFA".to_owned(),
        hint: Some("postern login".to_owned()),
    }
}

/// `` `a`, `b` ``.
pub(super) fn quoted(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
