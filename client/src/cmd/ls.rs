//! `postern ls [FILTER...]`: targets, how each can be reached, what policy lets you do.
//!
//! Both ways are asked where both are configured: the agent, and SSM for what it manages. A target
//! that both know is one row with both routes.

mod bastion;
mod ssm;

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};

use self::bastion::Listing;
use crate::cli::{LsArgs, Via};
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::ssm::target::Node;

const BASTION: &str = "bastion";
const SSM: &str = "ssm";

/// The stable form: what the agent says of its targets, with the ways to each.
#[derive(Serialize)]
struct Answer {
    targets: Vec<Map<String, Value>>,
    /// Why the listing may not be complete.
    trouble: Vec<String>,
}

/// Lists targets of the way that was named, or of both.
pub async fn run(context: &Context, args: LsArgs) -> Result<ExitCode, Error> {
    let filters = &args.filters;
    match args.via.unwrap_or(context.via) {
        Via::Auto if !context.agents.is_empty() => both(context, filters).await,
        Via::Auto | Via::Ssm => {
            let nodes = ssm::nodes(context, filters).await?;
            show_nodes(context, filters, nodes, Vec::new())
        }
        Via::Bastion => {
            let listing = bastion::list(context, filters).await?;
            show(context, filters, merged(listing, Vec::new(), filters))
        }
    }
}

/// The agent first: if anybody is asked for a code, then once.
async fn both(context: &Context, filters: &[String]) -> Result<ExitCode, Error> {
    let listing = match bastion::list(context, filters).await {
        Ok(listing) => listing,
        // Whoever says no means the person; an agent that is away does not hide what SSM knows.
        Err(error) if error.kind == Kind::Unreachable => {
            let Ok(nodes) = ssm::nodes(context, filters).await else {
                return Err(error);
            };
            let trouble = format!("the agent's targets are not listed: {error}");
            return show_nodes(context, filters, nodes, vec![trouble]);
        }
        Err(error) => return Err(error),
    };
    let mut trouble = None;
    let nodes = match ssm::candidates(context, filters).await {
        Ok(nodes) => nodes,
        Err(error) => {
            // Many may not look there, and need not.
            match error.kind {
                Kind::Denied => context.printer.detail(unlisted(&error)),
                _ => trouble = Some(unlisted(&error)),
            }
            Vec::new()
        }
    };
    let mut answer = merged(listing, nodes, filters);
    answer.trouble.extend(trouble);
    show(context, filters, answer)
}

fn unlisted(error: &Error) -> String {
    format!("what SSM manages is not listed: {error}")
}

/// One list: targets that both know once, and of the other nodes those that the filters leave.
fn merged(listing: Listing, mut nodes: Vec<Node>, filters: &[String]) -> Answer {
    let mut targets = listing.targets;
    for target in &mut targets {
        let id = target.get("id").and_then(Value::as_str).unwrap_or_default();
        let at = nodes.iter().position(|node| node.id == id);
        let node = at.map(|at| nodes.swap_remove(at));
        let mut routes = vec![Value::from(BASTION)];
        if let Some(node) = node {
            routes.push(SSM.into());
            target.insert(SSM.to_owned(), ssm::facts(&node));
        }
        target.insert("routes".to_owned(), routes.into());
    }
    nodes.retain(|node| ssm::fits(node, filters));
    targets.extend(nodes.iter().map(ssm::target));
    targets.sort_by(|one, other| {
        let key = |target: &Map<String, Value>| {
            ["name", "id"].map(|field| {
                let text = target.get(field).and_then(Value::as_str);
                text.unwrap_or_default().to_owned()
            })
        };
        key(one).cmp(&key(other))
    });
    Answer {
        targets,
        trouble: listing.trouble,
    }
}

fn show(context: &Context, filters: &[String], answer: Answer) -> Result<ExitCode, Error> {
    if context.printer.json {
        context.printer.json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    for trouble in &answer.trouble {
        context.printer.warning(trouble);
    }
    if answer.targets.is_empty() {
        context.printer.note(match filters.is_empty() {
            true => "no target is known",
            false => "no target matches",
        });
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = answer
        .targets
        .into_iter()
        .map(bastion::row)
        .collect::<Result<_, _>>()?;
    context.printer.table(
        &[
            "name", "id", "address", "platform", "tags", "route", "allowed",
        ],
        &rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn show_nodes(
    context: &Context,
    filters: &[String],
    nodes: Vec<Node>,
    trouble: Vec<String>,
) -> Result<ExitCode, Error> {
    if context.printer.json {
        return show(
            context,
            filters,
            Answer {
                targets: nodes.iter().map(ssm::target).collect(),
                trouble,
            },
        );
    }
    for trouble in &trouble {
        context.printer.warning(trouble);
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
            let route = ssm::route(&node.status);
            vec![
                node.name,
                node.id,
                node.address,
                node.platform,
                route,
                node.status,
                node.agent_version,
            ]
        })
        .collect();
    let headings = [
        "name",
        "id",
        "address",
        "platform",
        "route",
        "status",
        "SSM Agent",
    ];
    context.printer.table(&headings, &rows)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
