//! The agent's targets.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ssm;
use crate::context::Context;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::http::{Client, percent_encoded};

/// The agent's answer. It may say more of a target than this version shows.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) targets: Vec<Map<String, Value>>,
    pub(super) trouble: Vec<String>,
}

/// What is shown of a target.
#[derive(Debug, Deserialize)]
struct Shown {
    id: String,
    name: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    platform: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    routes: Vec<String>,
    #[serde(default)]
    ssm: Option<Managed>,
    /// Only the agent knows what its policy allows.
    #[serde(default)]
    allowed: Option<Allowed>,
}

#[derive(Debug, Deserialize)]
struct Managed {
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Allowed {
    users: Vec<String>,
    any_user: bool,
    ports: Vec<u16>,
    any_port: bool,
}

/// Those that match every filter.
pub(super) async fn list(context: &Context, filters: &[String]) -> Result<Listing, Error> {
    let gateway = Gateway::of(context).await?;
    let filters: Vec<String> = filters
        .iter()
        .map(|filter| format!("filter={}", percent_encoded(filter)))
        .collect();
    let path = match filters.is_empty() {
        true => "/v1/targets".to_owned(),
        false => format!("/v1/targets?{}", filters.join("&")),
    };
    let answer: Value = Client::connect(gateway).await?.get_json(&path).await?;
    Listing::of(answer)
}

impl Listing {
    pub(super) fn of(answer: Value) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Wire {
            targets: Vec<Map<String, Value>>,
            #[serde(default)]
            trouble: Value,
        }
        let wire: Wire = serde_json::from_value(answer).map_err(unreadable)?;
        Ok(Self {
            targets: wire.targets,
            trouble: sentences(&wire.trouble),
        })
    }
}

/// One target of the merged list, as it is shown.
pub(super) fn row(target: Map<String, Value>) -> Result<Vec<String>, Error> {
    let shown: Shown = serde_json::from_value(Value::Object(target)).map_err(unreadable)?;
    let status = shown.ssm.map(|managed| managed.status);
    let routes: Vec<String> = shown
        .routes
        .into_iter()
        .map(|route| match &status {
            Some(status) if route == super::SSM => ssm::route(status),
            _ => route,
        })
        .collect();
    // The name stands in a column of its own.
    let tags = shown.tags.iter().filter(|(key, _)| *key != "Name");
    let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={value}")).collect();
    let allowed = shown
        .allowed
        .map_or_else(|| "as IAM allows".to_owned(), |it| it.sentence());
    Ok(vec![
        shown.name,
        shown.id,
        shown.address,
        shown.platform,
        tags.join(" "),
        routes.join(", "),
        allowed,
    ])
}

impl Allowed {
    fn sentence(&self) -> String {
        let mut parts = Vec::new();
        match (self.any_user, self.users.is_empty()) {
            (true, _) => parts.push("connect as any user".to_owned()),
            (false, false) => parts.push(format!("connect as {}", self.users.join(", "))),
            (false, true) => {}
        }
        match (self.any_port, self.ports.is_empty()) {
            (true, _) => parts.push("tunnel to any port".to_owned()),
            (false, false) => {
                let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
                parts.push(format!("tunnel to {}", ports.join(", ")));
            }
            (false, true) => {}
        }
        if parts.is_empty() {
            "-".to_owned()
        } else {
            parts.join("; ")
        }
    }
}

/// One sentence or several, whatever the agent calls trouble.
fn sentences(trouble: &Value) -> Vec<String> {
    match trouble {
        Value::Null => Vec::new(),
        Value::String(sentence) => vec![sentence.clone()],
        Value::Array(sentences) => sentences
            .iter()
            .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
            .collect(),
        other => vec![other.to_string()],
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::failed(format!(
        "the agent's list of targets cannot be read: {error}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_one_sentence() {
        let allowed = |users: &[&str], any_user, ports: &[u16], any_port| {
            Allowed {
                users: users.iter().map(|user| (*user).to_owned()).collect(),
                any_user,
                ports: ports.to_vec(),
                any_port,
            }
            .sentence()
        };
        assert_eq!(allowed(&[], false, &[], false), "-");
        assert_eq!(
            allowed(&["ec2-user", "root"], false, &[5432], false),
            "connect as ec2-user, root; tunnel to 5432"
        );
        assert_eq!(
            allowed(&["x"], true, &[1], true),
            "connect as any user; tunnel to any port"
        );
    }
}
