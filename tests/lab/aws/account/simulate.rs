//! What the policies of an identity would say to a request that nobody makes.

use super::Account;
use crate::aws::condition::Context;
use crate::aws::policy::{self, Policy, Verdict};

/// The answer to one imagined request.
pub(crate) struct Simulated {
    pub(crate) verdict: Verdict,
    /// Names of the policies that decided it.
    pub(crate) policies: Vec<String>,
    /// Condition keys that were not given and that statements about the request read.
    pub(crate) missing: Vec<String>,
}

/// Whose policies are simulated.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    User(&'a str),
    Role(&'a str),
}

impl Account {
    /// `None`: there is no such identity. `more` are policies that it does not have.
    pub(crate) fn simulate(
        &self,
        source: Source<'_>,
        more: &[Policy],
        action: &str,
        resource: &str,
        context: &Context,
    ) -> Option<Simulated> {
        let (names, policies, boundary) = match source {
            Source::User(name) => {
                let user = self.users.get(name)?;
                (&user.seed.policies, &user.policies, &user.boundary)
            }
            Source::Role(name) => {
                let role = self.roles.get(name)?;
                (&role.seed.policies, &role.policies, &role.boundary)
            }
        };
        let names = names.iter().map(|(name, _)| name.as_str());
        let names = names.chain(std::iter::repeat("PolicyInputList"));
        let all: Vec<&Policy> = policies.iter().chain(more).collect();
        let identity = policy::evaluate_all(all.iter().copied(), action, resource, context);
        let mut verdict = identity;
        let mut missing: Vec<String> = all
            .iter()
            .flat_map(|policy| policy.missing(action, resource, context))
            .collect();
        if let Some(boundary) = boundary {
            verdict = verdict.and(boundary.evaluate(action, resource, context));
            missing.extend(boundary.missing(action, resource, context));
        }
        missing.sort();
        missing.dedup();
        let decided = |policy: &Policy| {
            identity != Verdict::ImplicitDeny
                && policy.evaluate(action, resource, context) == identity
        };
        let policies = all.iter().zip(names).filter(|(policy, _)| decided(policy));
        Some(Simulated {
            verdict,
            policies: policies.map(|(_, name)| name.to_owned()).collect(),
            missing,
        })
    }
}
