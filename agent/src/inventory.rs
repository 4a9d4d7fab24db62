//! Targets: what can be reached, from EC2 and from a file.

use std::collections::BTreeMap;

use postern_proto::names::TargetId;

/// A private host that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its key: EC2 instance id, or name in the file inventory.
    pub id: TargetId,
    /// Its name for people.
    pub name: String,
    /// Tags (EC2), or labels (file).
    pub tags: BTreeMap<String, String>,
    /// AWS account, where known.
    pub account: Option<String>,
    /// AWS region, where known.
    pub region: Option<String>,
    /// VPC, where known.
    pub vpc: Option<String>,
    /// Availability zone, where known: EC2 Instance Connect wants it.
    pub zone: Option<String>,
    /// `linux` or `windows`.
    pub platform: String,
    /// Private address or DNS name that the agent resolves and dials.
    pub address: String,
    /// Further names that find it (private DNS name, aliases).
    pub aliases: Vec<String>,
    /// Where its sshd listens.
    pub ssh_port: u16,
    /// How the agent logs in.
    pub login: TargetLogin,
}

/// How the agent authenticates to a target's sshd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetLogin {
    /// A certificate of the agent's SSH user CA.
    Certificate,
    /// A key pushed with EC2 Instance Connect.
    InstanceConnect,
}
