//! Condition operators of IAM policies, and the request context that they read.
//!
//! Source: "IAM JSON policy elements: Condition operators" in the IAM user guide. Absent keys are what makes or breaks
//! an MFA condition: a positive operator is false, a negated one true, `IfExists` true, `Null` looks at absence.

mod operator;

use std::collections::BTreeMap;

use super::pattern::variables;
use operator::{Test, test_named};

/// Condition keys that the emulator can answer for: set, or knowingly absent. About any other it cannot tell what AWS
/// would see, so a statement that reads it is in doubt and never in the caller's favour.
const KNOWN_KEYS: &[&str] = &[
    "aws:currenttime",
    "aws:epochtime",
    "aws:multifactorauthage",
    "aws:multifactorauthpresent",
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principaltype",
    "aws:requestedregion",
    "aws:securetransport",
    "aws:sourceip",
    "aws:sourcevpc",
    "aws:sourcevpce",
    "aws:tokenissuetime",
    "aws:useragent",
    "aws:userid",
    "aws:username",
    "aws:viaawsservice",
    "ec2:instanceid",
    "ec2:osuser",
    "ec2:region",
    "ssm:sessiondocumentaccesscheck",
    "sts:externalid",
    "sts:rolesessionname",
];
const KNOWN_PREFIXES: &[&str] = &[
    "aws:principaltag/",
    "aws:resourcetag/",
    "aws:requesttag/",
    "ec2:resourcetag/",
    "kms:encryptioncontext:",
    "ssm:resourcetag/",
];

/// The facts of one request, by condition key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context(BTreeMap<String, String>);

impl Context {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.0.insert(key.to_ascii_lowercase(), value.into());
    }

    /// Keys are compared without regard to case.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(&key.to_ascii_lowercase()).map(String::as_str)
    }
}

/// Whether something in a policy applies. `Doubt` must never be read in the caller's favour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    Yes,
    No,
    Doubt,
}

impl Match {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Doubt, _) | (_, Self::Doubt) => Self::Doubt,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }

    pub(crate) fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Doubt => Self::Doubt,
        }
    }

    /// Yes if any is; in doubt if none is but one may be.
    pub(crate) fn any(items: impl Iterator<Item = Self>) -> Self {
        items.fold(Self::No, |so_far, item| so_far.not().and(item.not()).not())
    }
}

impl From<bool> for Match {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// One operator, one key, its values.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    test: Test,
    negated: bool,
    if_exists: bool,
    key: String,
    /// The key as it stands in the policy.
    spelled: String,
    values: Vec<String>,
}

impl Condition {
    /// `None` for an operator that does not exist (or is not known here).
    pub(crate) fn new(operator: &str, key: &str, values: Vec<String>) -> Option<Self> {
        // With one value per key, as all keys here have, both quantifiers look at that one value; they differ when it
        // is absent: ForAllValues is then true, ForAnyValue false.
        let (for_all, for_any, operator) = match operator.split_once(':') {
            None => (false, false, operator),
            Some(("ForAllValues", rest)) => (true, false, rest),
            Some(("ForAnyValue", rest)) => (false, true, rest),
            Some(_) => return None,
        };
        let (operator, if_exists) = match operator.strip_suffix("IfExists") {
            Some(rest) => (rest, true),
            None => (operator, false),
        };
        let (test, negated) = test_named(operator)?;
        if test == Test::Null && (if_exists || for_all || for_any) || for_any && negated {
            return None;
        }
        Some(Self {
            test,
            negated,
            if_exists: if_exists || for_all,
            key: key.to_ascii_lowercase(),
            spelled: key.to_owned(),
            values,
        })
    }

    /// Keys that it reads, in itself and in the variables of its values, and that have no value.
    pub(crate) fn missing<'a>(&'a self, context: &'a Context) -> impl Iterator<Item = &'a str> {
        let variables = self.values.iter().flat_map(|value| variables(value));
        std::iter::once(self.spelled.as_str())
            .chain(variables)
            .filter(|key| context.get(key).is_none())
    }

    pub(crate) fn evaluate(&self, context: &Context) -> Match {
        let known = KNOWN_KEYS.contains(&&*self.key)
            || KNOWN_PREFIXES
                .iter()
                .any(|prefix| self.key.starts_with(prefix));
        if !known {
            return Match::Doubt;
        }
        let actual = context.get(&self.key);
        if self.test == Test::Null {
            let absent = if actual.is_none() { "true" } else { "false" };
            return self
                .values
                .iter()
                .any(|value| value.eq_ignore_ascii_case(absent))
                .into();
        }
        let Some(actual) = actual else {
            return (self.if_exists || self.negated).into();
        };
        let found = Match::any(
            self.values
                .iter()
                .map(|wanted| self.test.compare(actual, wanted, context)),
        );
        if self.negated { found.not() } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Context {
        let mut context = Context::default();
        for (key, value) in pairs {
            context.set(key, *value);
        }
        context
    }

    fn test(operator: &str, key: &str, value: &str, facts: &[(&str, &str)]) -> Match {
        Condition::new(operator, key, vec![value.into()])
            .expect("a known operator")
            .evaluate(&context(facts))
    }

    const PRESENT: &str = "aws:MultiFactorAuthPresent";
    const AGE: &str = "aws:MultiFactorAuthAge";

    #[test]
    fn an_absent_mfa_key_passes_only_what_tolerates_absence() {
        let absent = |operator, value| test(operator, PRESENT, value, &[]);
        assert_eq!(absent("Bool", "true"), Match::No);
        assert_eq!(absent("Bool", "false"), Match::No);
        assert_eq!(absent("BoolIfExists", "true"), Match::Yes);
        assert_eq!(absent("BoolIfExists", "false"), Match::Yes);
        assert_eq!(absent("Null", "true"), Match::Yes);
        assert_eq!(absent("Null", "false"), Match::No);
        assert_eq!(absent("StringEquals", "true"), Match::No);
        assert_eq!(absent("StringNotEquals", "true"), Match::Yes);
        assert_eq!(absent("ForAllValues:StringEquals", "true"), Match::Yes);
        assert_eq!(absent("ForAnyValue:StringEquals", "true"), Match::No);
        assert_eq!(test("NumericLessThan", AGE, "3600", &[]), Match::No);
        assert_eq!(
            test("NumericLessThanIfExists", AGE, "3600", &[]),
            Match::Yes
        );
    }

    #[test]
    fn present_values_are_compared_by_type() {
        let facts = [
            (PRESENT, "true"),
            (AGE, "90"),
            ("aws:SourceIp", "127.0.0.9"),
            ("aws:CurrentTime", "2026-11-21T20:00:00Z"),
            (
                "aws:PrincipalArn",
                "arn:aws:iam::111122223333:user/team/alice",
            ),
            ("aws:username", "alice"),
        ];
        let check = |operator, key, value| test(operator, key, value, &facts);
        assert_eq!(
            check("Bool", "AWS:multifactorauthpresent", "true"),
            Match::Yes
        );
        assert_eq!(check("BoolIfExists", PRESENT, "false"), Match::No);
        assert_eq!(check("NumericLessThan", AGE, "100"), Match::Yes);
        assert_eq!(check("NumericLessThan", AGE, "90"), Match::No);
        assert_eq!(check("NumericLessThanEquals", AGE, "90"), Match::Yes);
        assert_eq!(
            check("NumericGreaterThan", AGE, "9"),
            Match::Yes,
            "numbers, not text"
        );
        assert_eq!(check("NumericNotEquals", AGE, "90.0"), Match::No);
        assert_eq!(check("NumericLessThan", AGE, "soon"), Match::Doubt);
        assert_eq!(
            check("IpAddress", "aws:SourceIp", "127.0.0.0/24"),
            Match::Yes
        );
        assert_eq!(check("IpAddress", "aws:SourceIp", "127.0.0.9"), Match::Yes);
        assert_eq!(
            check("NotIpAddress", "aws:SourceIp", "10.0.0.0/8"),
            Match::Yes
        );
        assert_eq!(
            check("DateLessThan", "aws:CurrentTime", "2026-11-22"),
            Match::Yes
        );
        assert_eq!(
            check("DateGreaterThan", "aws:CurrentTime", "2026-11-22T00:00:00Z"),
            Match::No
        );
        let arn = "aws:PrincipalArn";
        assert_eq!(check("ArnLike", arn, "arn:aws:iam::*:user/*"), Match::Yes);
        assert_eq!(
            check("ArnLike", arn, "arn:aws:*:user/*"),
            Match::No,
            "parts do not run together"
        );
        assert_eq!(
            check("ArnNotEquals", arn, "arn:aws:iam::111122223333:user/bob"),
            Match::Yes
        );
        assert_eq!(check("StringLike", "aws:username", "a*e"), Match::Yes);
        assert_eq!(check("StringEquals", "aws:username", "a*e"), Match::No);
        assert_eq!(
            check("StringEqualsIgnoreCase", "aws:username", "ALICE"),
            Match::Yes
        );
        assert_eq!(
            check("StringEquals", "aws:username", "${aws:username}"),
            Match::Yes
        );
        assert_eq!(
            check("StringEquals", "aws:username", "${aws:userid}"),
            Match::Doubt
        );
    }

    #[test]
    fn unknown_operators_do_not_exist_and_unknown_keys_are_doubtful() {
        for operator in [
            "Boolean",
            "StringMatches",
            "bool",
            "NullIfExists",
            "Numeric",
            "For:Bool",
        ] {
            assert!(
                Condition::new(operator, PRESENT, vec![]).is_none(),
                "{operator}"
            );
        }
        assert_eq!(
            test("StringNotEquals", "aws:SourceOrgId", "o-1", &[]),
            Match::Doubt
        );
        assert_eq!(test("BoolIfExists", "made:Up", "true", &[]), Match::Doubt);
    }
}
