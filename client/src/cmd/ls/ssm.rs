//! The nodes that SSM manages.

use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::error::Error;
use crate::ssm::Ssm;
use crate::ssm::target::Node;

/// Those that match every filter, by name: part of a name, id or address, `platform=NAME`,
/// `tag:KEY` or `tag:KEY=VALUE`.
pub(super) async fn nodes(context: &Context, filters: &[String]) -> Result<Vec<Node>, Error> {
    let mut nodes = candidates(context, filters).await?;
    nodes.retain(|node| fits(node, filters));
    nodes.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    Ok(nodes)
}

/// Those whose tags match: AWS knows the tags, and others may know more names of a node.
pub(super) async fn candidates(context: &Context, filters: &[String]) -> Result<Vec<Node>, Error> {
    let tags: Vec<(String, &str)> = filters.iter().filter_map(|filter| tag(filter)).collect();
    let asked: Vec<(&str, &str)> = tags
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    Ok(Ssm::of(context)?.nodes(&asked).await?)
}

/// Whether a node matches the filters that are not about tags.
pub(super) fn fits(node: &Node, filters: &[String]) -> bool {
    let mut rest = filters.iter().filter(|filter| tag(filter).is_none());
    rest.all(|filter| match filter.split_once('=') {
        Some(("platform", platform)) => node.platform.eq_ignore_ascii_case(platform),
        _ => [&node.name, &node.id, &node.address]
            .iter()
            .any(|text| text.contains(filter.as_str())),
    })
}

/// A filter of DescribeInstanceInformation.
fn tag(filter: &str) -> Option<(String, &str)> {
    let tag = filter.strip_prefix("tag:")?;
    Some(match tag.split_once('=') {
        Some((key, value)) => (format!("tag:{key}"), value),
        None => ("tag-key".to_owned(), tag),
    })
}

/// A node in the form of the agent's targets.
pub(super) fn target(node: &Node) -> Map<String, Value> {
    let fields = [
        ("id", node.id.clone().into()),
        ("name", node.name.clone().into()),
        ("address", node.address.clone().into()),
        ("platform", node.platform.to_ascii_lowercase().into()),
        ("routes", json!([super::SSM])),
        (super::SSM, facts(node)),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What SSM alone knows of a target.
pub(super) fn facts(node: &Node) -> Value {
    json!({
        "online": node.is_online(),
        "status": node.status,
        "agent_version": node.agent_version,
    })
}

/// The route as people see it: an offline one is no way at the moment.
pub(super) fn route(status: &str) -> String {
    match Node::is_online_as(status) {
        true => super::SSM.to_owned(),
        false => format!("{} (offline)", super::SSM),
    }
}
