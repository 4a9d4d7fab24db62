//! Why an answer is what it is, without opening anything: for `postern why`, and for the hint of
//! a default deny.

use cedar_policy::Effect;
use postern_proto::names::LoginUser;
use serde::Serialize;

use super::condition::Part;
use super::decide::{Outcome, quoted};
use super::load::{Policies, Rule};
use super::question::{Facts, Question};
use super::{Action, Decision, Denial, Request};

/// An answer with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The answer.
    pub verdict: Verdict,
    /// What was asked.
    pub action: String,
    /// Who asked: `account/user id`.
    pub principal: String,
    /// The target's name, where one was asked about.
    pub target: Option<String>,
    /// The policies that made the answer: permits for an allow, else forbids and failures.
    pub policies: Vec<String>,
    /// One sentence; absent for an allow.
    pub message: Option<String>,
    /// What would be needed, where that can be told.
    pub hint: Option<String>,
    /// The permits that are about this action and target, the nearest to holding first.
    pub permits: Vec<PermitState>,
    /// Login users that would be allowed instead, among those that policies name.
    pub users: Vec<String>,
    /// Ports that would be allowed instead, among those that policies name.
    pub ports: Vec<u16>,
    /// Which policies these were ([`Policies::digest`]).
    pub digest: String,
}

/// The kinds of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Yes.
    Allow,
    /// Yes, with a fresh code.
    StepUp,
    /// No.
    Deny,
}

/// One permit that is about the action and target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PermitState {
    /// Its id.
    pub id: String,
    /// Its file in the policy folder.
    pub file: String,
    /// Its line there.
    pub line: usize,
    /// Whether it is for this principal.
    pub for_you: bool,
    /// Whether all of it holds.
    pub holds: bool,
    /// Whether a fresh code would make all of it hold.
    pub with_fresh_mfa: bool,
    /// Its conditions; none are shown of a permit for others.
    pub conditions: Vec<ConditionState>,
}

/// One condition of a permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConditionState {
    /// In Cedar.
    pub text: String,
    /// Whether it holds; `None` when it cannot be told on its own, since it relies on another.
    pub holds: Option<bool>,
}

impl Policies {
    /// The decision with its reasons. Costs some evaluations for each policy.
    pub fn explain(&self, request: &Request) -> Explanation {
        let facts = Facts::of(request);
        let permits = self.permits_about(&facts);
        let (verdict, policies, message, hint) = match self.decide(request) {
            Decision::Allow(grant) => (Verdict::Allow, grant.policies, None, None),
            Decision::StepUp { policies } => {
                let message = "this needs an MFA code given for this very request".to_owned();
                (Verdict::StepUp, policies, Some(message), None)
            }
            Decision::Deny(no) => (Verdict::Deny, no.policies, Some(no.message), no.hint),
        };
        let (users, ports) = if verdict == Verdict::Deny {
            (self.users_instead(&facts), self.ports_instead(&facts))
        } else {
            (Vec::new(), Vec::new())
        };
        Explanation {
            verdict,
            action: request.action.to_string(),
            principal: request.who.principal().key(),
            target: request.target.as_ref().map(|target| target.name.clone()),
            policies,
            message,
            hint,
            permits,
            users,
            ports,
            digest: self.digest().to_owned(),
        }
    }

    /// The login users for whom `connect` to the request's target would be allowed now (or with a
    /// fresh code), among those that policies name: what `ls` shows. A policy that allows any user
    /// names none.
    pub fn login_users(&self, request: &Request) -> Vec<String> {
        let facts = Facts {
            action: Action::Connect,
            ..Facts::of(request)
        };
        self.users_instead(&facts)
    }

    /// Nothing permits it: says what comes nearest.
    pub(super) fn default_denial(&self, facts: &Facts<'_>) -> Denial {
        Denial {
            policies: Vec::new(),
            message: format!("no policy allows {}", wish(facts)),
            hint: Some(self.nearest(facts)),
        }
    }

    fn nearest(&self, facts: &Facts<'_>) -> String {
        let users = self.users_instead(facts);
        if !users.is_empty() {
            return format!("policy allows it as user {}", quoted(&users));
        }
        let ports = self.ports_instead(facts);
        if !ports.is_empty() {
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            return format!("policy allows port {} there", ports.join(", "));
        }
        if facts.action == Action::Tunnel && facts.host.is_some() {
            let itself = Facts {
                host: None,
                ..*facts
            };
            if self.would_allow(&itself) {
                return "policy allows this port of the target itself; a host behind it needs a \
                        permit that speaks of `context.host`"
                    .to_owned();
            }
        }
        let permits = self.permits_about(facts);
        let near = permits.iter().find(|permit| permit.for_you);
        match near.and_then(|permit| Some((permit, permit.failed()?))) {
            Some((permit, failed)) => format!(
                "policy `{}` would, but this does not hold: {failed}",
                permit.id
            ),
            None => "ask an administrator for a policy that permits it".to_owned(),
        }
    }

    /// Users that policies name and that would be allowed in place of the one asked for.
    fn users_instead(&self, facts: &Facts<'_>) -> Vec<String> {
        if !matches!(facts.action, Action::Connect) {
            return Vec::new();
        }
        // A literal next to `context.user` may be anything: only what may be a login user counts.
        let named = self
            .permits_of(facts)
            .flat_map(|rule| &rule.parts.users)
            .filter(|user| user.parse::<LoginUser>().is_ok());
        keep(named.cloned().collect(), |user| {
            self.would_allow(&Facts {
                user: Some(user),
                ..*facts
            })
        })
    }

    /// Ports that policies name and that would be allowed in place of the one asked for.
    fn ports_instead(&self, facts: &Facts<'_>) -> Vec<u16> {
        if !matches!(facts.action, Action::Tunnel | Action::Reverse) {
            return Vec::new();
        }
        let named = self.permits_of(facts).flat_map(|rule| &rule.parts.ports);
        keep(named.copied().collect(), |port| {
            self.would_allow(&Facts {
                port: Some(*port),
                ..*facts
            })
        })
    }

    /// The permits whose scope is this principal, action and target: others have nothing to
    /// suggest, and each suggestion costs a decision.
    fn permits_of(&self, facts: &Facts<'_>) -> impl Iterator<Item = &Rule> {
        // Scopes do not look at user and port, but the question must have them.
        let scope = Question::new(&Facts {
            user: facts.user.or(Some("user")),
            port: facts.port.or(Some(1)),
            ..*facts
        });
        let question = scope.ok();
        self.rules.values().filter(move |rule| {
            let question = question.as_ref();
            rule.effect == Effect::Permit
                && question.is_some_and(|q| rule.is_about(q) && rule.parts.principal.is_true(q))
        })
    }

    fn would_allow(&self, facts: &Facts<'_>) -> bool {
        matches!(self.outcome(facts), Outcome::Allowed(_) | Outcome::Fresh(_))
    }

    fn permits_about(&self, facts: &Facts<'_>) -> Vec<PermitState> {
        let Ok(question) = Question::new(facts) else {
            return Vec::new();
        };
        let fresh = Question::new(&facts.with_fresh_mfa()).ok();
        let mut permits: Vec<_> = self
            .rules
            .iter()
            .filter(|(_, rule)| rule.effect == Effect::Permit && rule.is_about(&question))
            .map(|(id, rule)| {
                let for_you = rule.parts.principal.is_true(&question);
                PermitState {
                    id: id.clone(),
                    file: rule.file.clone(),
                    line: rule.line,
                    for_you,
                    holds: rule.holds(&question),
                    with_fresh_mfa: fresh.as_ref().is_some_and(|fresh| rule.holds(fresh)),
                    conditions: if for_you {
                        rule.states(&question)
                    } else {
                        Vec::new()
                    },
                }
            })
            .collect();
        permits.sort_by_key(|permit| (!permit.for_you, !permit.with_fresh_mfa, permit.missing()));
        permits.truncate(MAX_PERMITS);
        permits
    }
}

impl Rule {
    pub(super) fn is_about(&self, question: &Question) -> bool {
        self.parts.action.is_true(question) && self.parts.resource.is_true(question)
    }

    fn holds(&self, question: &Question) -> bool {
        self.parts.principal.is_true(question)
            && self
                .parts
                .conditions
                .iter()
                .all(|part| part.is_true(question))
    }

    fn states(&self, question: &Question) -> Vec<ConditionState> {
        let state = |part: &Part| ConditionState {
            text: part.text.clone(),
            holds: part.holds(&question.request, &question.entities),
        };
        self.parts.conditions.iter().map(state).collect()
    }
}

impl Part {
    pub(super) fn is_true(&self, question: &Question) -> bool {
        self.holds(&question.request, &question.entities) == Some(true)
    }
}

impl PermitState {
    fn missing(&self) -> usize {
        let fails = |condition: &&ConditionState| condition.holds != Some(true);
        self.conditions.iter().filter(fails).count()
    }

    /// The first condition that does not hold.
    fn failed(&self) -> Option<&str> {
        let mut conditions = self.conditions.iter();
        let failed = conditions.find(|condition| condition.holds != Some(true))?;
        Some(&failed.text)
    }
}

/// The candidates that a test keeps, each tried once, in order.
fn keep<T: Ord>(mut candidates: Vec<T>, test: impl Fn(&T) -> bool) -> Vec<T> {
    candidates.sort();
    candidates.dedup();
    candidates.truncate(MAX_CANDIDATES);
    candidates.retain(test);
    candidates
}

/// What was asked, in words.
fn wish(facts: &Facts<'_>) -> String {
    let on = facts
        .target
        .map_or_else(String::new, |target| format!(" on `{}`", target.name));
    let port = facts
        .port
        .map_or_else(|| "a port".to_owned(), |port| format!("port {port}"));
    match (facts.action, facts.user, facts.host) {
        (Action::Connect, Some(user), _) => format!("`connect`{on} as user `{user}`"),
        (Action::Tunnel, _, Some(host)) => {
            format!(
                "`tunnel` to {port} of `{}` behind the target{on}",
                super::load::shown(host)
            )
        }
        (Action::Tunnel | Action::Reverse, ..) => format!("`{}` to {port}{on}", facts.action),
        _ => format!("`{}`{on}", facts.action),
    }
}

/// Permits listed in an explanation.
const MAX_PERMITS: usize = 32;
/// Users or ports tried for an explanation.
const MAX_CANDIDATES: usize = 32;
