//! Whether a role's trust policy really demands MFA, and how young (AWS-FACTS.md B.3).

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// Why a trust policy attests nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustPolicyFault {
    /// Not a policy that can be read without doubt.
    #[error("the trust policy cannot be read: {0}")]
    Syntax(String),
    /// Nobody may assume the role.
    #[error("the trust policy allows nobody anything")]
    NoAllow,
    /// A statement allows without MFA.
    #[error(
        "statement {0} of the trust policy allows without `Bool`: {{`aws:MultiFactorAuthPresent`: \
         `true`}} (`BoolIfExists` does not count: an absent key would pass)"
    )]
    Present(usize),
    /// A statement allows without an age limit, or with a longer one than the agent's.
    #[error(
        "statement {number} of the trust policy allows without `NumericLessThan`: \
         {{`aws:MultiFactorAuthAge`: at most `{bound}`}}"
    )]
    Age {
        /// Which, from 1.
        number: usize,
        /// `attestation.mfa_max_age` in seconds.
        bound: u64,
    },
}

/// Checks that every Allow statement demands MFA that is younger than `bound`.
pub fn check_trust_policy(document: &str, bound: Duration) -> Result<(), TrustPolicyFault> {
    let syntax = |error: serde_json::Error| TrustPolicyFault::Syntax(error.to_string());
    let document: Document = serde_json::from_str(document).map_err(syntax)?;
    let allows: Vec<_> = document
        .statement
        .0
        .iter()
        .enumerate()
        .filter(|(_, statement)| statement.effect == Effect::Allow)
        .collect();
    if allows.is_empty() {
        return Err(TrustPolicyFault::NoAllow);
    }
    for (index, statement) in allows {
        let number = index + 1;
        // Several values of one key are alternatives: every one must hold.
        let present = statement.values("Bool", "aws:MultiFactorAuthPresent");
        if present.is_empty() || present.iter().any(|value| *value != "true") {
            return Err(TrustPolicyFault::Present(number));
        }
        let bound = bound.as_secs();
        let ages = statement.values("NumericLessThan", "aws:MultiFactorAuthAge");
        let young = |value: &&str| value.parse::<u64>().is_ok_and(|age| age <= bound);
        if ages.is_empty() || !ages.iter().all(young) {
            return Err(TrustPolicyFault::Age { number, bound });
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    statement: OneOrMore<Statement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    effect: Effect,
    /// Operator, then key, then values. Doubled names stay doubled here and are refused.
    #[serde(default)]
    condition: Pairs<Pairs<OneOrMore<Text>>>,
}

#[derive(Deserialize, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

impl Statement {
    /// The values of a condition. Operators and keys are compared as IAM does: keys in any case.
    fn values(&self, operator: &str, key: &str) -> Vec<&str> {
        let keys = self.condition.0.iter().filter(|(name, _)| name == operator);
        keys.flat_map(|(_, keys)| &keys.0)
            .filter(|(name, _)| name.eq_ignore_ascii_case(key))
            .flat_map(|(_, values)| values.0.iter().map(|text| text.0.as_str()))
            .collect()
    }
}

/// A value or a list of values: IAM writes both.
struct OneOrMore<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form<T> {
            More(Vec<T>),
            One(T),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::More(values) => Self(values),
            Form::One(value) => Self(vec![value]),
        })
    }
}

/// Text, number or boolean: IAM compares all as text.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Bool(value) => Ok(Self(value.to_string())),
            serde_json::Value::Number(value) => Ok(Self(value.to_string())),
            _ => Err(serde::de::Error::custom("a condition's value is no text")),
        }
    }
}

/// A JSON object whose doubled names are an error.
struct Pairs<T>(Vec<(String, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(String, T)> = vec![];
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if pairs
                        .iter()
                        .any(|(other, _)| other.eq_ignore_ascii_case(&name))
                    {
                        return Err(serde::de::Error::custom(format!("`{name}` occurs twice")));
                    }
                    pairs.push((name, value));
                }
                Ok(Pairs(pairs))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
                Err(serde::de::Error::custom("a list where an object belongs"))
            }
        }
        deserializer.deserialize_map(Reader(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"Version":"2012-10-17","Statement":[{
        "Effect":"Allow",
        "Principal":{"AWS":"arn:aws:iam::111122223333:root"},
        "Action":"sts:AssumeRole",
        "Condition":{
          "Bool":{"aws:MultiFactorAuthPresent":"true"},
          "NumericLessThan":{"aws:MultiFactorAuthAge":"3600"},
          "IpAddress":{"aws:SourceIp":["192.0.2.1"]}}}]}"#;

    fn check(document: &str) -> Result<(), TrustPolicyFault> {
        check_trust_policy(document, Duration::from_secs(3600))
    }

    #[test]
    fn a_policy_that_demands_young_mfa_passes() {
        assert_eq!(check(GOOD), Ok(()));
        for form in [
            GOOD.replace("\"true\"", "true"),
            GOOD.replace("\"true\"", "[\"true\"]"),
            GOOD.replace("\"3600\"", "900"),
            GOOD.replace("aws:MultiFactorAuthPresent", "AWS:multifactorauthpresent"),
            GOOD.replace("[{", "{").replace("}]}", "}}"),
        ] {
            assert_eq!(check(&form), Ok(()), "{form}");
        }
    }

    #[test]
    fn a_policy_that_lost_its_mfa_condition_is_refused() {
        for form in [
            GOOD.replace("\"Bool\"", "\"BoolIfExists\""),
            GOOD.replace("\"Bool\"", "\"ForAnyValue:Bool\""),
            GOOD.replace("\"true\"", "\"false\""),
            GOOD.replace("\"true\"", "[\"true\",\"false\"]"),
            GOOD.replace("\"true\"", "[]"),
            GOOD.replace("MultiFactorAuthPresent", "MultiFactorAuthPresence"),
            GOOD.replace("\"Bool\"", "\"Null\""),
        ] {
            assert_eq!(check(&form), Err(TrustPolicyFault::Present(1)), "{form}");
        }
        let bare = r#"{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole"}}"#;
        assert_eq!(check(bare), Err(TrustPolicyFault::Present(1)));
    }

    #[test]
    fn a_policy_that_accepts_older_mfa_than_the_agent_is_refused() {
        let fault = Err(TrustPolicyFault::Age {
            number: 1,
            bound: 3600,
        });
        for form in [
            GOOD.replace("3600", "3601"),
            GOOD.replace("\"3600\"", "[\"60\",\"99999\"]"),
            GOOD.replace("3600", "-1"),
            GOOD.replace("3600", "soon"),
            GOOD.replace("NumericLessThan", "NumericLessThanIfExists"),
            GOOD.replace("NumericLessThan", "NumericGreaterThan"),
        ] {
            assert_eq!(check(&form), fault, "{form}");
        }
    }

    #[test]
    fn one_weak_statement_among_good_ones_is_refused() {
        let weak = GOOD.replace(
            "[{",
            r#"[{"Effect":"Deny","Action":"sts:TagSession"},{"Effect":"Allow","Action":"sts:AssumeRole"},{"#,
        );
        assert_eq!(check(&weak), Err(TrustPolicyFault::Present(2)));
    }

    #[test]
    fn a_policy_that_can_be_read_in_two_ways_is_refused() {
        for form in [
            GOOD.replace("\"Bool\":", "\"Bool\":{\"x\":\"y\"},\"Bool\":"),
            GOOD.replace("\"Effect\":\"Allow\"", "\"Effect\":\"Allow\",\"Effect\":\"Deny\""),
            GOOD.replace(
                "{\"aws:MultiFactorAuthPresent\":\"true\"}",
                "{\"aws:MultiFactorAuthPresent\":\"true\",\"aws:multifactorauthpresent\":\"false\"}",
            ),
            GOOD.replace("\"Allow\"", "\"allow\""),
            String::new(),
            "[]".to_owned(),
            "{\"Statement\":[]} x".to_owned(),
        ] {
            assert!(
                matches!(check(&form), Err(TrustPolicyFault::Syntax(_))),
                "{form}"
            );
        }
        assert_eq!(check("{\"Statement\":[]}"), Err(TrustPolicyFault::NoAllow));
    }
}
