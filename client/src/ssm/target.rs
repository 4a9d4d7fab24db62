//! What a person typed, made into one managed node.

use std::net::IpAddr;

use postern_proto::ssm::version::Version;

use super::api::Ssm;
use super::error::SsmError;

/// A node that SSM manages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `i-…` or `mi-…`.
    pub id: String,
    /// What the person called it, else what it calls itself.
    pub name: String,
    /// Private address, as SSM knows it.
    pub address: String,
    /// `Online`, `ConnectionLost`, `Inactive`; empty when it is not known.
    pub status: String,
    /// Version of its SSM Agent; empty when it is not known.
    pub agent_version: String,
    /// `Linux`, `Windows`, `MacOS`; empty when it is not known.
    pub platform: String,
}

/// What an SSM Agent must be new enough for: SSM-PROTOCOL.md section 4, from its release notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// Commands without a terminal.
    Command,
    /// Ports of the node, and SSH.
    Port,
    /// Ports of hosts behind the node.
    RemoteHost,
}

impl Feature {
    fn since(self) -> (&'static str, &'static str) {
        match self {
            Self::Command => ("3.0.1124.0", "commands without a terminal"),
            Self::Port => ("2.3.672.0", "tunnels"),
            Self::RemoteHost => ("3.1.1188.0", "tunnels to hosts behind it"),
        }
    }
}

impl Node {
    /// Whether its SSM Agent is connected, as far as SSM knows.
    pub fn is_online(&self) -> bool {
        Self::is_online_as(&self.status)
    }

    /// What SSM's word for it means.
    pub fn is_online_as(status: &str) -> bool {
        status == "Online"
    }

    /// `name (id)`, or the id where that is all.
    pub fn display(&self) -> String {
        if self.name == self.id {
            self.id.clone()
        } else {
            format!("{} ({})", self.name, self.id)
        }
    }

    /// Refuses what its SSM Agent is too old for. One that tells no version is believed.
    pub fn demand(&self, feature: Feature) -> Result<(), SsmError> {
        let (since, what) = feature.since();
        let number = |text: &str| text.parse::<Version>().ok();
        match (number(&self.agent_version), number(since)) {
            (Some(version), Some(since)) if version < since => Err(SsmError::OldAgent {
                target: self.display(),
                version: self.agent_version.clone(),
                what,
            }),
            _ => Ok(()),
        }
    }

    /// One line for a list of several.
    fn line(&self) -> String {
        format!("{} ({}, {})", self.id, self.name, self.address)
    }
}

/// Finds the one node that `typed` names: an id, an address, a host name, a Name tag or
/// `tag:KEY=VALUE`. Several are an error that lists them; one that is offline is an error too.
pub async fn find(ssm: &Ssm, typed: &str) -> Result<Node, SsmError> {
    let found = match Typed::of(typed) {
        Typed::Id => match ssm.nodes(&[("InstanceIds", typed)]).await {
            // The id is all that StartSession needs; it tells what is wrong with it.
            Err(SsmError::Refused { code, .. }) if code.starts_with("AccessDenied") => {
                return Ok(unseen(typed));
            }
            Err(SsmError::Refused { code, .. }) if code == "InvalidInstanceId" => Vec::new(),
            found => found?,
        },
        Typed::Tag(key, value) => ssm.nodes(&[(&format!("tag:{key}"), value)]).await?,
        Typed::Address(address) => {
            let mut all = ssm.nodes(&[]).await?;
            all.retain(|node| node.address.parse() == Ok(address));
            all
        }
        Typed::Name => {
            let mut named = ssm.nodes(&[("tag:Name", typed)]).await?;
            if named.is_empty() {
                named = ssm.nodes(&[]).await?;
                named.retain(|node| calls_itself(&node.name, typed));
            }
            for node in &mut named {
                typed.clone_into(&mut node.name);
            }
            named
        }
    };
    only(found, typed, ssm.region())
}

/// The one node, which is online.
fn only(mut found: Vec<Node>, typed: &str, region: &str) -> Result<Node, SsmError> {
    if found.len() > 1 {
        return Err(SsmError::Ambiguous {
            name: typed.to_owned(),
            several: found.iter().map(Node::line).collect(),
        });
    }
    let node = found.pop().ok_or_else(|| SsmError::NoTarget {
        name: typed.to_owned(),
        region: region.to_owned(),
    })?;
    if !node.is_online() {
        return Err(SsmError::Offline {
            target: node.display(),
            status: node.status,
        });
    }
    Ok(node)
}

#[derive(Debug, PartialEq)]
enum Typed<'a> {
    Id,
    Tag(&'a str, &'a str),
    Address(IpAddr),
    Name,
}

impl<'a> Typed<'a> {
    fn of(text: &'a str) -> Self {
        if let Some((key, value)) = text
            .strip_prefix("tag:")
            .and_then(|tag| tag.split_once('='))
        {
            return Self::Tag(key, value);
        }
        if let Ok(address) = text.parse() {
            return Self::Address(address);
        }
        let hex = text
            .strip_prefix("i-")
            .or_else(|| text.strip_prefix("mi-"))
            .unwrap_or_default();
        let is_id = (8..=20).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
        if is_id { Self::Id } else { Self::Name }
    }
}

/// A host name, whole or its first label.
fn calls_itself(name: &str, typed: &str) -> bool {
    name.eq_ignore_ascii_case(typed)
        || name
            .split_once('.')
            .is_some_and(|(label, _)| label.eq_ignore_ascii_case(typed))
}

fn unseen(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        name: id.to_owned(),
        address: String::new(),
        status: String::new(),
        agent_version: String::new(),
        platform: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, status: &str, version: &str) -> Node {
        Node {
            name: "app-1".to_owned(),
            address: "10.0.0.5".to_owned(),
            status: status.to_owned(),
            agent_version: version.to_owned(),
            ..unseen(id)
        }
    }

    #[test]
    fn what_was_typed_is_understood_by_its_form() {
        assert_eq!(Typed::of("i-0123456789abcdef0"), Typed::Id);
        assert_eq!(Typed::of("mi-0123456789abcdef0"), Typed::Id);
        assert_eq!(Typed::of("i-beam"), Typed::Name);
        assert_eq!(Typed::of("tag:env=a=b"), Typed::Tag("env", "a=b"));
        assert_eq!(
            Typed::of("10.0.0.5"),
            Typed::Address("10.0.0.5".parse().unwrap())
        );
        assert_eq!(Typed::of("app-1"), Typed::Name);
        assert!(calls_itself("IP-10-0-0-5.ec2.internal", "ip-10-0-0-5"));
        assert!(!calls_itself("app-12", "app-1"));
    }

    #[test]
    fn one_node_that_is_online_is_taken_and_nothing_else() {
        let online = node("i-1", "Online", "3.3.0.0");
        assert_eq!(only(vec![online.clone()], "app-1", "r"), Ok(online.clone()));
        let errors = [
            only(Vec::new(), "app-1", "eu-west-1").unwrap_err(),
            only(
                vec![online, node("i-2", "ConnectionLost", "")],
                "app-1",
                "r",
            )
            .unwrap_err(),
            only(vec![node("i-2", "ConnectionLost", "")], "app-1", "r").unwrap_err(),
        ];
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"), @r"
        SSM manages no target `app-1` in eu-west-1
        `app-1` is the name of several targets: i-1 (app-1, 10.0.0.5), i-2 (app-1, 10.0.0.5)
        the SSM Agent of app-1 (i-2) is not connected to AWS (ConnectionLost)
        ");
    }

    #[test]
    fn an_old_ssm_agent_is_told_before_it_is_asked() {
        let old = node("i-1", "Online", "3.0.1000.0");
        assert!(old.demand(Feature::Port).is_ok());
        assert!(matches!(
            old.demand(Feature::Command),
            Err(SsmError::OldAgent { .. })
        ));
        assert!(
            node("i-1", "Online", "")
                .demand(Feature::RemoteHost)
                .is_ok()
        );
    }
}
