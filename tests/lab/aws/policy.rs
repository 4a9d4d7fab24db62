//! Identity, session and trust policies: parsed strictly, evaluated as IAM does.
//!
//! Source: "Policy evaluation logic" and "IAM JSON policy elements reference" in the IAM user guide. What cannot be
//! decided (an unknown condition key, a variable without value) counts as a match for Deny and as none for Allow.

mod parse;

use serde_json::{Map, Value};

use super::condition::{Condition, Context, Match};
use super::pattern::{Pattern, variables};
use parse::{names, principals, statements};

/// What one policy, or several together, say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// Nothing allows it.
    ImplicitDeny,
    ExplicitDeny,
}

impl Verdict {
    /// Policies of one kind side by side: any deny wins, else any allow.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::ExplicitDeny, _) | (_, Self::ExplicitDeny) => Self::ExplicitDeny,
            (Self::Allowed, _) | (_, Self::Allowed) => Self::Allowed,
            _ => Self::ImplicitDeny,
        }
    }

    /// Kinds of policies that must all allow: identity, boundary, session.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::ExplicitDeny, _) | (_, Self::ExplicitDeny) => Self::ExplicitDeny,
            (Self::Allowed, Self::Allowed) => Self::Allowed,
            _ => Self::ImplicitDeny,
        }
    }
}

/// A policy document that IAM would not store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedPolicy(String);

pub(crate) fn malformed<T>(why: impl Into<String>) -> Result<T, MalformedPolicy> {
    Err(MalformedPolicy(why.into()))
}

/// A policy attached to an identity or given with a session: it names resources, never principals.
#[derive(Clone, Debug)]
pub(crate) struct Policy(Vec<Statement>);

/// A role's trust policy: it names principals, never resources. Names stay texts until IAM's users are known.
#[derive(Clone, Debug)]
pub(crate) struct TrustPolicy(Vec<TrustStatement>);

#[derive(Clone, Debug)]
pub(crate) struct TrustStatement {
    statement: Statement,
    principals: Vec<String>,
}

/// How a trust policy names somebody who may assume the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Not at all.
    None,
    /// By account: an identity policy must allow it too.
    Account,
    /// By user or role, or everybody: no identity policy needed in the same account.
    Identity,
    /// By this very role session: not even its session policy bounds it.
    Session,
}

#[derive(Clone, Debug)]
struct Statement {
    allow: bool,
    actions: Names,
    resources: Names,
    conditions: Vec<Condition>,
}

/// `Action` or `NotAction`, `Resource` or `NotResource`.
#[derive(Clone, Debug)]
struct Names {
    negated: bool,
    patterns: Vec<String>,
}

impl Policy {
    pub(crate) fn parse(text: &str) -> Result<Self, MalformedPolicy> {
        let statements = statements(text)?;
        let parse = |statement: &Map<String, Value>| {
            if statement.contains_key("Principal") {
                return malformed("Policy document should not specify a principal.");
            }
            let resources = names(statement, "Resource", "NotResource")?;
            let Some(resources) = resources else {
                return malformed("Policy statement must contain resources.");
            };
            Statement::parse(statement, resources)
        };
        Ok(Self(
            statements.iter().map(parse).collect::<Result<_, _>>()?,
        ))
    }

    pub(crate) fn evaluate(&self, action: &str, resource: &str, context: &Context) -> Verdict {
        self.0
            .iter()
            .fold(Verdict::ImplicitDeny, |so_far, statement| {
                so_far.or(statement.evaluate(action, resource, context))
            })
    }
}

impl Policy {
    /// Condition keys that statements about this action and resource read and that have no value: what a simulation
    /// tells as missing.
    pub(crate) fn missing(&self, action: &str, resource: &str, context: &Context) -> Vec<String> {
        let about =
            |statement: &&Statement| statement.is_about(action, resource, context) != Match::No;
        let missing = |statement: &'_ Statement| -> Vec<String> {
            let resources = statement.resources.patterns.iter();
            let in_resources = resources
                .flat_map(|pattern| variables(pattern))
                .filter(|key| context.get(key).is_none());
            let conditions = statement.conditions.iter();
            let in_conditions = conditions.flat_map(|condition| condition.missing(context));
            in_resources
                .chain(in_conditions)
                .map(str::to_owned)
                .collect()
        };
        self.0.iter().filter(about).flat_map(missing).collect()
    }
}

/// Several policies of one identity.
pub(crate) fn evaluate_all<'a>(
    policies: impl Iterator<Item = &'a Policy>,
    action: &str,
    resource: &str,
    context: &Context,
) -> Verdict {
    policies.fold(Verdict::ImplicitDeny, |so_far, policy| {
        so_far.or(policy.evaluate(action, resource, context))
    })
}

impl TrustPolicy {
    pub(crate) fn parse(text: &str) -> Result<Self, MalformedPolicy> {
        let statements = statements(text)?;
        let parse = |statement: &Map<String, Value>| {
            if statement.contains_key("Resource") || statement.contains_key("NotResource") {
                return malformed("Has prohibited field Resource");
            }
            let everything = Names {
                negated: false,
                patterns: vec!["*".into()],
            };
            Ok(TrustStatement {
                principals: principals(statement)?,
                statement: Statement::parse(statement, everything)?,
            })
        };
        Ok(Self(
            statements.iter().map(parse).collect::<Result<_, _>>()?,
        ))
    }

    /// Every AWS principal named, so that the account can check that it exists.
    pub(crate) fn principals_mut(&mut self) -> impl Iterator<Item = &mut String> {
        self.0
            .iter_mut()
            .flat_map(|statement| &mut statement.principals)
    }

    /// `named` tells how a principal text names the caller. An explicit deny that names the caller wins.
    pub(crate) fn evaluate(
        &self,
        action: &str,
        context: &Context,
        named: impl Fn(&str) -> Trust,
    ) -> Result<Trust, Verdict> {
        let mut best = Trust::None;
        for TrustStatement {
            statement,
            principals,
        } in &self.0
        {
            for trust in principals.iter().map(|principal| named(principal)) {
                match (trust, statement.evaluate(action, "*", context)) {
                    (Trust::None, _) | (_, Verdict::ImplicitDeny) => {}
                    (_, Verdict::ExplicitDeny) => return Err(Verdict::ExplicitDeny),
                    (trust, Verdict::Allowed) => {
                        best = if best as u8 > trust as u8 {
                            best
                        } else {
                            trust
                        };
                    }
                }
            }
        }
        match best {
            Trust::None => Err(Verdict::ImplicitDeny),
            trust => Ok(trust),
        }
    }
}

impl Statement {
    fn is_about(&self, action: &str, resource: &str, context: &Context) -> Match {
        self.actions
            .matches(&action.to_ascii_lowercase(), |name| {
                Some(Pattern::plain(&name.to_ascii_lowercase()))
            })
            .and(
                self.resources
                    .matches(resource, |name| Pattern::parse(name, context)),
            )
    }

    fn evaluate(&self, action: &str, resource: &str, context: &Context) -> Verdict {
        let applies = self.is_about(action, resource, context);
        let applies = self.conditions.iter().fold(applies, |so_far, condition| {
            so_far.and(condition.evaluate(context))
        });
        match (self.allow, applies) {
            (true, Match::Yes) => Verdict::Allowed,
            (false, Match::Yes | Match::Doubt) => Verdict::ExplicitDeny,
            _ => Verdict::ImplicitDeny,
        }
    }
}

impl Names {
    fn matches(&self, text: &str, parse: impl Fn(&str) -> Option<Pattern>) -> Match {
        let found = Match::any(self.patterns.iter().map(|pattern| {
            parse(pattern).map_or(Match::Doubt, |pattern| pattern.matches(text).into())
        }));
        if self.negated { found.not() } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn context(mfa: Option<&str>) -> Context {
        let mut context = Context::default();
        context.set("aws:username", "alice");
        if let Some(mfa) = mfa {
            context.set("aws:MultiFactorAuthPresent", mfa);
        }
        context
    }

    fn policy(statement: Value) -> Policy {
        let document = json!({"Version": "2012-10-17", "Statement": statement});
        Policy::parse(&document.to_string()).expect("a valid policy")
    }

    #[test]
    fn actions_ignore_case_and_resources_do_not() {
        let policy = policy(json!([{"Effect": "Allow", "Action": "EC2:describe*",
            "Resource": "arn:aws:iam::1:user/${aws:username}"}]));
        let verdict = |action, resource| policy.evaluate(action, resource, &context(None));
        assert_eq!(
            verdict("ec2:DescribeInstances", "arn:aws:iam::1:user/alice"),
            Verdict::Allowed
        );
        assert_eq!(
            verdict("ec2:DescribeInstances", "arn:aws:iam::1:user/Alice"),
            Verdict::ImplicitDeny
        );
        assert_eq!(
            verdict("ec2:RunInstances", "arn:aws:iam::1:user/alice"),
            Verdict::ImplicitDeny
        );
    }

    #[test]
    fn an_explicit_deny_wins_over_every_allow() {
        let policy = policy(json!([
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
            {"Effect": "Deny", "NotAction": "iam:*", "Resource": "*",
             "Condition": {"BoolIfExists": {"aws:MultiFactorAuthPresent": "false"}}},
        ]));
        let verdict = |action, mfa| policy.evaluate(action, "x", &context(mfa));
        assert_eq!(verdict("ec2:X", None), Verdict::ExplicitDeny);
        assert_eq!(verdict("ec2:X", Some("false")), Verdict::ExplicitDeny);
        assert_eq!(verdict("ec2:X", Some("true")), Verdict::Allowed);
        assert_eq!(verdict("iam:X", None), Verdict::Allowed);
    }

    #[test]
    fn doubt_never_favours_the_caller() {
        let with = |effect| {
            policy(json!({"Effect": effect, "Action": "*", "Resource": "*",
                "Condition": {"StringNotEquals": {"made:Up": "x"}}}))
            .evaluate("a:B", "*", &context(None))
        };
        assert_eq!(with("Allow"), Verdict::ImplicitDeny);
        assert_eq!(with("Deny"), Verdict::ExplicitDeny);
    }

    #[test]
    fn kinds_of_policies_intersect() {
        use Verdict::{Allowed, ExplicitDeny, ImplicitDeny};
        assert_eq!(Allowed.and(Allowed), Allowed);
        assert_eq!(Allowed.and(ImplicitDeny), ImplicitDeny);
        assert_eq!(Allowed.and(ExplicitDeny), ExplicitDeny);
        assert_eq!(ImplicitDeny.or(Allowed), Allowed);
    }

    #[test]
    fn a_trust_policy_tells_how_it_names_the_caller() {
        let document = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": ["root", "alice"]}, "Action": "sts:AssumeRole",
             "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}},
            {"Effect": "Deny", "Principal": {"AWS": "mallory"}, "Action": "*"},
            {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
        ]});
        let trust = TrustPolicy::parse(&document.to_string()).expect("a valid policy");
        let names = |who: &'static str| {
            move |principal: &str| match principal {
                "root" => Trust::Account,
                name if name == who => Trust::Identity,
                _ => Trust::None,
            }
        };
        let evaluate = |who, mfa| trust.evaluate("sts:AssumeRole", &context(mfa), names(who));
        assert_eq!(evaluate("alice", Some("true")), Ok(Trust::Identity));
        assert_eq!(evaluate("bob", Some("true")), Ok(Trust::Account));
        assert_eq!(evaluate("alice", Some("false")), Err(Verdict::ImplicitDeny));
        assert_eq!(evaluate("alice", None), Err(Verdict::ImplicitDeny));
        assert_eq!(
            evaluate("mallory", Some("true")),
            Err(Verdict::ExplicitDeny)
        );
    }

    #[test]
    fn documents_that_iam_would_refuse_are_refused() {
        let bad = [
            "{".to_owned(),
            json!({"Statement": []}).to_string(),
            json!({"Version": "2008-10-17", "Statement": {}}).to_string(),
            json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*"}}).to_string(),
            json!({"Version": "2012-10-17", "Statement": {"Effect": "allow", "Action": "*", "Resource": "*"}})
                .to_string(),
            json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*",
                "Condition": {"Boolean": {"a": "b"}}}})
            .to_string(),
            json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*",
                "Extra": 1}})
            .to_string(),
        ];
        for document in bad {
            assert!(Policy::parse(&document).is_err(), "{document}");
        }
    }
}
