//! What the policies of a caller, and of a role that it wants, say together.
//!
//! Source: "Policy evaluation logic" and "Principal" in the IAM user guide, for one account.

use super::{Account, Role};
use crate::aws::caller::{Caller, Identity};
use crate::aws::condition::Context;
use crate::aws::policy::{self, Trust, Verdict};

impl Account {
    /// What identity policy, boundary and session policy say together.
    pub(crate) fn decide(
        &self,
        caller: &Caller,
        action: &str,
        resource: &str,
        context: &Context,
    ) -> Verdict {
        let (policies, boundary) = match &caller.identity {
            Identity::Root => return Verdict::Allowed,
            Identity::User { name, .. } => match self.users.get(name) {
                Some(user) => (&user.policies, &user.boundary),
                None => return Verdict::ImplicitDeny,
            },
            Identity::Role { name, .. } => match self.roles.get(name) {
                Some(role) => (&role.policies, &role.boundary),
                None => return Verdict::ImplicitDeny,
            },
        };
        let session = caller
            .session
            .as_ref()
            .and_then(|session| session.policy.as_ref());
        let bounds = [boundary.as_ref(), session];
        let identity = policy::evaluate_all(policies.iter(), action, resource, context);
        bounds
            .into_iter()
            .flatten()
            .fold(identity, |so_far, bound| {
                so_far.and(bound.evaluate(action, resource, context))
            })
    }

    /// Whether the caller may assume the role: its trust policy, and the caller's own policies where it says so.
    pub(crate) fn decide_assume(&self, caller: &Caller, role: &Role, context: &Context) -> Verdict {
        const ACTION: &str = "sts:AssumeRole";
        let own = self.decide(caller, ACTION, &self.role_arn(role), context);
        if own == Verdict::ExplicitDeny {
            return own;
        }
        let session = caller
            .session
            .as_ref()
            .and_then(|session| session.policy.as_ref());
        match role
            .trust
            .evaluate(ACTION, context, |name| self.names(name, caller))
        {
            Err(verdict) => verdict,
            Ok(Trust::Session) => Verdict::Allowed,
            // A role that is named still acts within its session policy and boundary.
            Ok(Trust::Identity) if caller.is_role() => {
                let boundary = match &caller.identity {
                    Identity::Role { name, .. } => {
                        self.roles.get(name).and_then(|r| r.boundary.as_ref())
                    }
                    _ => None,
                };
                let arn = self.role_arn(role);
                [boundary, session]
                    .into_iter()
                    .flatten()
                    .fold(Verdict::Allowed, |so_far, bound| {
                        so_far.and(bound.evaluate(ACTION, &arn, context))
                    })
            }
            Ok(Trust::Identity) => Verdict::Allowed,
            Ok(Trust::Account) => own,
            Ok(Trust::None) => Verdict::ImplicitDeny,
        }
    }

    /// How a resolved principal names the caller.
    fn names(&self, principal: &str, caller: &Caller) -> Trust {
        if principal == format!("arn:aws:iam::{}:root", self.id) {
            return Trust::Account;
        }
        let unique_id = match &caller.identity {
            Identity::Root => return Trust::None,
            Identity::User { unique_id, .. } | Identity::Role { unique_id, .. } => unique_id,
        };
        if caller.is_role() && principal == caller.arn() {
            Trust::Session
        } else if principal == "*" || principal == unique_id {
            Trust::Identity
        } else {
            Trust::None
        }
    }
}
