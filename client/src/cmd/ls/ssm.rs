//! The nodes that SSM manages.

use std::process::ExitCode;

use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::ssm::Ssm;
use crate::ssm::target::Node;

/// The stable form.
#[derive(Serialize)]
struct Listing {
    targets: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    address: String,
    platform: String,
    status: String,
    agent_version: String,
    via: &'static str,
}

/// Lists the nodes that match every filter: part of a name, id or address, or `tag:KEY=VALUE`.
pub(super) async fn run(context: &Context, filters: &[String]) -> Result<ExitCode, Error> {
    // AWS knows the tags; the rest is looked at here.
    let tag = |filter: &String| {
        let (key, value) = filter.strip_prefix("tag:")?.split_once('=')?;
        Some((format!("tag:{key}"), value.to_owned()))
    };
    let tags: Vec<(String, String)> = filters.iter().filter_map(tag).collect();
    let asked: Vec<(&str, &str)> = tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let mut nodes = Ssm::of(context)?.nodes(&asked).await?;
    nodes.retain(|node| {
        let parts = filters.iter().filter(|filter| tag(filter).is_none());
        parts.into_iter().all(|part| matches(node, part))
    });
    nodes.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    if context.printer.json {
        let targets = nodes.into_iter().map(row).collect();
        context.printer.json(&Listing { targets })?;
        return Ok(ExitCode::SUCCESS);
    }
    if nodes.is_empty() {
        context.printer.note(match filters.is_empty() {
            true => "SSM manages no targets here",
            false => "no target matches",
        });
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = nodes
        .into_iter()
        .map(|node| {
            vec![
                node.name,
                node.id,
                node.address,
                node.platform,
                node.status,
                node.agent_version,
            ]
        })
        .collect();
    let headings = ["name", "id", "address", "platform", "status", "SSM Agent"];
    context.printer.table(&headings, &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn matches(node: &Node, part: &str) -> bool {
    [&node.name, &node.id, &node.address]
        .iter()
        .any(|text| text.contains(part))
}

fn row(node: Node) -> Row {
    Row {
        id: node.id,
        name: node.name,
        address: node.address,
        platform: node.platform,
        status: node.status,
        agent_version: node.agent_version,
        via: "ssm",
    }
}
