//! `postern ls [FILTER...]`: targets, how each can be reached, what policy lets you do.

mod ssm;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::{LsArgs, Via};
use crate::context::Context;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::http::{Client, percent_encoded};

/// The agent's answer. It may say more than this version shows.
#[derive(Debug, Deserialize)]
struct Listing {
    targets: Vec<Target>,
    /// Why the listing may not be complete.
    #[serde(default)]
    trouble: Value,
}

#[derive(Debug, Deserialize)]
struct Target {
    id: String,
    name: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    platform: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    allowed: Allowed,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Allowed {
    users: Vec<String>,
    any_user: bool,
    ports: Vec<u16>,
    any_port: bool,
}

/// Lists the agent's targets where one is configured, else those that SSM manages.
pub async fn run(context: &Context, args: LsArgs) -> Result<ExitCode, Error> {
    match args.via.unwrap_or(context.via) {
        Via::Ssm => ssm::run(context, &args.filters).await,
        Via::Auto if context.agents.is_empty() => ssm::run(context, &args.filters).await,
        Via::Auto | Via::Bastion => bastion(context, args).await,
    }
}

async fn bastion(context: &Context, args: LsArgs) -> Result<ExitCode, Error> {
    let gateway = Gateway::of(context).await?;
    let filters: Vec<String> = args
        .filters
        .iter()
        .map(|filter| format!("filter={}", percent_encoded(filter)))
        .collect();
    let path = match filters.is_empty() {
        true => "/v1/targets".to_owned(),
        false => format!("/v1/targets?{}", filters.join("&")),
    };
    let answer: Value = Client::connect(gateway).await?.get_json(&path).await?;
    if context.printer.json {
        context.printer.json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let listing: Listing = serde_json::from_value(answer).map_err(|error| {
        Error::failed(format!(
            "the agent's list of targets cannot be read: {error}"
        ))
    })?;
    for trouble in sentences(&listing.trouble) {
        context.printer.warning(trouble);
    }
    if listing.targets.is_empty() {
        context.printer.note(match args.filters.is_empty() {
            true => "the agent knows no targets",
            false => "no target matches",
        });
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = listing.targets.into_iter().map(Target::row).collect();
    context.printer.table(
        &["name", "id", "address", "platform", "tags", "allowed"],
        &rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

impl Target {
    fn row(self) -> Vec<String> {
        // The name stands in a column of its own.
        let tags = self.tags.iter().filter(|(key, _)| *key != "Name");
        let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={value}")).collect();
        let allowed = self.allowed.sentence();
        vec![
            self.name,
            self.id,
            self.address,
            self.platform,
            tags.join(" "),
            allowed,
        ]
    }
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

    #[test]
    fn a_newer_agents_answer_is_still_read() {
        let answer = r#"{"targets":[{"id":"i-1","name":"web-1","new":1,"allowed":{"users":["a"],"more":[]}}],"trouble":["EC2 did not answer"]}"#;
        let listing: Listing = serde_json::from_str(answer).unwrap();
        assert_eq!(listing.targets[0].allowed.users, ["a"]);
        assert_eq!(sentences(&listing.trouble), ["EC2 did not answer"]);
    }
}
