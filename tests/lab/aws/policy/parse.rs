//! Reading policy documents: as strict as IAM, or stricter.

use serde_json::{Map, Value};

use super::{MalformedPolicy, Names, Statement, malformed};
use crate::aws::condition::Condition;

impl Statement {
    pub(super) fn parse(
        statement: &Map<String, Value>,
        resources: Names,
    ) -> Result<Self, MalformedPolicy> {
        const FIELDS: &[&str] = &[
            "Sid",
            "Effect",
            "Principal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        if let Some(unknown) = statement.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return malformed(format!("Unknown or unsupported field {unknown}"));
        }
        let allow = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return malformed("Missing required field Effect"),
        };
        let Some(actions) = names(statement, "Action", "NotAction")? else {
            return malformed("Policy statement must contain actions.");
        };
        Ok(Self {
            allow,
            actions,
            resources,
            conditions: conditions(statement)?,
        })
    }
}

pub(super) fn statements(text: &str) -> Result<Vec<Map<String, Value>>, MalformedPolicy> {
    let Ok(Value::Object(document)) = serde_json::from_str::<Value>(text) else {
        return malformed("This policy contains invalid Json");
    };
    for (key, value) in &document {
        match (key.as_str(), value) {
            // The old version has no variables; a lab needs one language only.
            ("Version", Value::String(version)) if version == "2012-10-17" => {}
            ("Id" | "Statement", _) => {}
            _ => return malformed(format!("Syntax errors in policy at {key}.")),
        }
    }
    if !document.contains_key("Version") {
        return malformed("Policy document must be version 2012-10-17 or greater.");
    }
    let statements = match document.get("Statement") {
        Some(Value::Array(statements)) if !statements.is_empty() => statements.clone(),
        Some(statement @ Value::Object(_)) => vec![statement.clone()],
        _ => return malformed("Missing required field Statement"),
    };
    statements
        .into_iter()
        .map(|statement| match statement {
            Value::Object(statement) => Ok(statement),
            _ => malformed("Syntax errors in policy."),
        })
        .collect()
}

pub(super) fn names(
    statement: &Map<String, Value>,
    name: &str,
    negated: &str,
) -> Result<Option<Names>, MalformedPolicy> {
    let (value, negated) = match (statement.get(name), statement.get(negated)) {
        (Some(_), Some(_)) => return malformed(format!("{name} and {negated} exclude each other")),
        (Some(value), None) => (value, false),
        (None, Some(value)) => (value, true),
        (None, None) => return Ok(None),
    };
    let patterns = texts(value)?;
    if patterns.is_empty() {
        return malformed(format!("{name} is empty"));
    }
    Ok(Some(Names { negated, patterns }))
}

/// Only AWS principals can call here; services and identity providers are read and never match.
pub(super) fn principals(statement: &Map<String, Value>) -> Result<Vec<String>, MalformedPolicy> {
    match statement.get("Principal") {
        Some(Value::String(all)) if all == "*" => Ok(vec!["*".into()]),
        Some(Value::Object(kinds)) => {
            let mut principals = Vec::new();
            for (kind, value) in kinds {
                match kind.as_str() {
                    "AWS" => principals.extend(texts(value)?),
                    "Service" | "Federated" => {}
                    _ => return malformed(format!("Unknown principal type {kind}")),
                }
            }
            Ok(principals)
        }
        _ => malformed("Missing required field Principal"),
    }
}

fn conditions(statement: &Map<String, Value>) -> Result<Vec<Condition>, MalformedPolicy> {
    let operators = match statement.get("Condition") {
        None => return Ok(Vec::new()),
        Some(Value::Object(operators)) => operators,
        Some(_) => return malformed("Syntax errors in policy at Condition."),
    };
    let mut conditions = Vec::new();
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else {
            return malformed(format!("Syntax errors in policy at {operator}."));
        };
        for (key, values) in keys {
            let Some(condition) = Condition::new(operator, key, texts(values)?) else {
                return malformed(format!("Invalid Condition type : {operator}."));
            };
            conditions.push(condition);
        }
    }
    Ok(conditions)
}

fn texts(value: &Value) -> Result<Vec<String>, MalformedPolicy> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => malformed("Syntax errors in policy."),
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        single => Ok(vec![text(single)?]),
    }
}
