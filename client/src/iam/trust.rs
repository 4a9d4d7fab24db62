//! Who may assume a role without having proved MFA: read from its trust policy.
//!
//! A role session carries no MFA, so what its own policies say of MFA is worth nothing. Only the
//! trust policy sees the MFA of the caller.

use serde_json::{Map, Value};

/// Everybody whom the trust policy lets in without MFA that is younger than `max_age` seconds, as
/// phrases. Empty: nobody.
///
/// # Errors
/// When the document cannot be read without doubt.
pub fn unproven(document: &str, max_age: u64) -> Result<Vec<String>, String> {
    let document: Value = serde_json::from_str(document).map_err(|error| error.to_string())?;
    let statements = match document.get("Statement") {
        Some(Value::Array(statements)) if !statements.is_empty() => statements.iter().collect(),
        Some(statement @ Value::Object(_)) => vec![statement],
        _ => return Err("it has no statement".to_owned()),
    };
    let mut let_in = Vec::new();
    for statement in statements {
        let statement = statement.as_object().ok_or("a statement is no object")?;
        let allows = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err("a statement neither allows nor denies".to_owned()),
        };
        if allows && lets_assume(statement)? {
            let doubt = doubt(statement, max_age);
            let_in.extend(
                principals(statement)?
                    .into_iter()
                    .filter_map(|who| who.unproven(doubt)),
            );
        }
    }
    Ok(let_in)
}

/// What a statement lacks to prove MFA of AWS identities.
fn doubt(statement: &Map<String, Value>, max_age: u64) -> Option<&'static str> {
    let values = |operators: &[&str], key: &str| -> Vec<String> {
        let conditions = statement.get("Condition").and_then(Value::as_object);
        conditions
            .into_iter()
            .flatten()
            .filter(|(operator, _)| operators.contains(&operator.as_str()))
            .filter_map(|(_, keys)| keys.as_object())
            .flatten()
            .filter(|(name, _)| name.eq_ignore_ascii_case(key))
            .flat_map(|(_, values)| texts(values))
            .collect()
    };
    // `BoolIfExists` does not count: an absent key would pass.
    let present = values(&["Bool"], "aws:MultiFactorAuthPresent");
    if present.is_empty() || present.iter().any(|value| value != "true") {
        return Some("without MFA");
    }
    let ages = values(
        &["NumericLessThan", "NumericLessThanEquals"],
        "aws:MultiFactorAuthAge",
    );
    let young = |age: &String| age.parse::<u64>().is_ok_and(|age| age <= max_age);
    // Several values are alternatives, so each must be young enough.
    if ages.is_empty() || !ages.iter().all(young) {
        return Some("with MFA of any age, or of an older one than --max-age");
    }
    None
}

/// Whether the statement is about assuming the role at all, and not only about tags or the like.
fn lets_assume(statement: &Map<String, Value>) -> Result<bool, String> {
    if statement.contains_key("NotAction") {
        return Ok(true);
    }
    let actions = statement.get("Action").ok_or("a statement has no action")?;
    Ok(texts(actions).iter().any(|action| {
        let action = action.to_ascii_lowercase();
        action.contains(['*', '?']) || action.starts_with("sts:assumerole")
    }))
}

enum Who {
    /// AWS sees whether they proved MFA.
    Aws(String),
    Service(String),
    Federated(String),
    Other(String),
}

impl Who {
    fn unproven(self, doubt: Option<&str>) -> Option<String> {
        match self {
            Self::Aws(who) => Some(format!("`{who}` {}", doubt?)),
            Self::Service(who) => Some(format!("the service `{who}`, which proves no MFA")),
            Self::Federated(who) => Some(format!(
                "people of the identity provider `{who}`, whose MFA AWS does not see"
            )),
            Self::Other(who) => Some(format!("{who}, whose MFA is not known")),
        }
    }
}

fn principals(statement: &Map<String, Value>) -> Result<Vec<Who>, String> {
    match statement.get("Principal") {
        Some(Value::String(all)) => Ok(vec![Who::Aws(all.clone())]),
        Some(Value::Object(kinds)) => Ok(kinds
            .iter()
            .flat_map(|(kind, names)| {
                texts(names)
                    .into_iter()
                    .map(move |name| match kind.as_str() {
                        "AWS" => Who::Aws(name),
                        "Service" => Who::Service(name),
                        "Federated" => Who::Federated(name),
                        _ => Who::Other(format!("`{name}` ({kind})")),
                    })
            })
            .collect()),
        _ if statement.contains_key("NotPrincipal") => {
            Ok(vec![Who::Other("everybody but those named".to_owned())])
        }
        _ => Err("a statement has no principal".to_owned()),
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Bool(flag) => vec![flag.to_string()],
        Value::Number(number) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

/// IAM sends policies percent-encoded (RFC 3986). `None`: not so.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        (rest, _) = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let mut one = [0];
                hex::decode_to_slice([*high, *low], &mut one).ok()?;
                (tail, bytes.push(one[0]))
            }
            (b'%', _) => return None,
            (byte, tail) => (tail, bytes.push(*byte)),
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(statement: Value) -> Result<Vec<String>, String> {
        let document = json!({"Version": "2012-10-17", "Statement": statement});
        unproven(&document.to_string(), 43_200)
    }

    fn root(condition: Value) -> Value {
        json!({"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
            "Action": "sts:AssumeRole", "Condition": condition})
    }

    #[test]
    fn young_mfa_in_every_statement_proves_everybody() {
        let good = json!({"Bool": {"aws:multifactorauthpresent": "true"},
            "NumericLessThan": {"aws:MultiFactorAuthAge": 3600}});
        assert_eq!(ask(json!([root(good.clone())])), Ok(vec![]));
        let tagging =
            json!({"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:TagSession"});
        let deny = json!({"Effect": "Deny", "Principal": "*", "Action": "*"});
        assert_eq!(ask(json!([root(good), tagging, deny])), Ok(vec![]));
    }

    #[test]
    fn whoever_proves_nothing_is_named() {
        let age = json!({"aws:MultiFactorAuthAge": "3600"});
        let said = [
            ask(json!({"Effect": "Allow", "Principal": "*", "Action": "sts:*"})),
            ask(root(
                json!({"BoolIfExists": {"aws:MultiFactorAuthPresent": "true"}, "NumericLessThan": age}),
            )),
            ask(root(
                json!({"Bool": {"aws:MultiFactorAuthPresent": ["true", "false"]}, "NumericLessThan": age}),
            )),
            ask(root(json!({"Bool": {"aws:MultiFactorAuthPresent": true}}))),
            ask(root(json!({"Bool": {"aws:MultiFactorAuthPresent": "true"},
                "NumericLessThan": {"aws:MultiFactorAuthAge": "86400"}}))),
            ask(
                json!({"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}),
            ),
            ask(
                json!({"Effect": "Allow", "Principal": {"Federated": "arn:aws:iam::1:saml-provider/x"},
                "Action": "sts:AssumeRoleWithSAML"}),
            ),
            ask(
                json!({"Effect": "Allow", "NotPrincipal": {"AWS": "x"}, "Action": "sts:AssumeRole"}),
            ),
            unproven("{", 1),
            ask(json!([])),
            ask(json!({"Effect": "Allow", "Action": "sts:AssumeRole"})),
        ];
        let lines: Vec<String> = said
            .into_iter()
            .map(|said| match said {
                Ok(who) => who.join("; "),
                Err(error) => format!("error: {error}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn documents_come_percent_encoded() {
        assert_eq!(decoded("%7B%22a%22%7D+b").as_deref(), Some("{\"a\"}+b"));
        assert_eq!(decoded("%7"), None);
        assert_eq!(decoded("%zz"), None);
    }
}
