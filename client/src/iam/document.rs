//! The policies: what each kind of identity needs, and nothing else.
//!
//! Sources: the service authorization reference of Systems Manager, EC2, EC2 Instance Connect,
//! IAM and KMS for actions, resources and condition keys; "Configuring MFA-protected API access"
//! for what carries MFA; "Additional sample IAM policies for Session Manager" for sessions of one's
//! own.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::error::PolicyError;
use super::shape::Shape;
use super::statement::Statement;

/// Characters of a managed policy, white space not counted (IAM quotas).
const MANAGED_LIMIT: usize = 6_144;
/// Characters of a trust policy.
const TRUST_LIMIT: usize = 2_048;

/// A policy document, as IAM stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

/// Every policy by name, in the order of the help.
#[derive(Debug, Clone)]
pub struct All(Vec<(&'static str, Document)>);

impl Document {
    /// For IAM users and groups: their GetSessionToken sessions carry MFA into every call.
    pub fn operators(shape: &Shape) -> Result<Self, PolicyError> {
        let mut statements = vec![
            Statement::start(shape),
            Statement::documents(shape),
            Statement::resume(shape),
            Statement::end(shape),
            Statement::look_up(shape),
            Statement::attest(shape),
        ];
        statements.extend(Statement::encrypt(shape));
        statements.push(Statement::no_mfa());
        statements.push(Statement::old_mfa(shape));
        Self::managed("operators", statements)
    }

    /// For a role: AWS puts no MFA into a role session, so a condition on it would shut everybody
    /// out. The role's trust policy demands it instead.
    pub fn operators_role(shape: &Shape) -> Result<Self, PolicyError> {
        let mut statements = vec![
            Statement::start(shape).without_mfa(),
            Statement::documents(shape).without_mfa(),
            Statement::resume(shape).without_mfa(),
            Statement::end(shape),
            Statement::look_up(shape),
        ];
        statements.extend(Statement::encrypt(shape).map(Statement::without_mfa));
        Self::managed("operators-role", statements)
    }

    /// What the agent calls with its own credentials. It may call AssumeRole so that it can see,
    /// each hour, that AWS denies it without MFA.
    pub fn bastion(shape: &Shape) -> Result<Self, PolicyError> {
        let users = shape.login_users.iter().map(ToString::to_string);
        let statements = vec![
            Statement::allow("SeeInstances", ["ec2:DescribeInstances"], ["*"]).when(
                "StringEquals",
                "aws:RequestedRegion",
                shape.regions.clone(),
            ),
            Statement::allow(
                "PushKeys",
                ["ec2-instance-connect:SendSSHPublicKey"],
                shape.everywhere("ec2", "instance/*"),
            )
            .when("StringEquals", "ec2:osuser", users)
            .tagged("StringEquals", "aws:ResourceTag/", &shape.tags),
            Statement::allow(
                "ReadAttestationRole",
                ["iam:GetRole"],
                [shape.attestation_role.clone()],
            ),
            Statement::attest(shape),
        ];
        Self::managed("bastion", statements)
    }

    /// The trust policy of a role that nobody assumes without MFA.
    pub fn attestation(shape: &Shape) -> Result<Self, PolicyError> {
        let mut statement = Statement::trust(shape);
        if !shape.sources.is_empty() {
            let sources = shape.sources.clone();
            statement = statement.when("IpAddress", "aws:SourceIp", sources);
        }
        Self::sized("attestation", vec![statement], TRUST_LIMIT)
    }

    /// Shuts SSM where the agent must record, whatever else is attached.
    pub fn recorded(shape: &Shape) -> Result<Self, PolicyError> {
        Self::managed("recorded", Statement::recorded(shape))
    }

    /// For whoever runs `postern policy check`.
    pub fn checker() -> Result<Self, PolicyError> {
        let actions = [
            "iam:ListUsers",
            "iam:ListRoles",
            "iam:GetUser",
            "iam:GetRole",
            "iam:SimulatePrincipalPolicy",
        ];
        Self::managed(
            "checker",
            vec![Statement::allow("AskWhoMayWhat", actions, ["*"])],
        )
    }

    fn managed(name: &'static str, statements: Vec<Statement>) -> Result<Self, PolicyError> {
        Self::sized(name, statements, MANAGED_LIMIT)
    }

    fn sized(
        name: &'static str,
        statement: Vec<Statement>,
        limit: usize,
    ) -> Result<Self, PolicyError> {
        let document = Self {
            version: "2012-10-17",
            statement,
        };
        // IAM does not count white space; that inside of texts it does, so this counts too much
        // rather than too little.
        let length = compact(&document).chars().count();
        if length > limit {
            return Err(PolicyError::TooLong {
                name,
                length,
                limit,
            });
        }
        Ok(document)
    }
}

impl All {
    /// All of them.
    pub fn new(shape: &Shape) -> Result<Self, PolicyError> {
        Ok(Self(vec![
            ("operators", Document::operators(shape)?),
            ("operators-role", Document::operators_role(shape)?),
            ("bastion", Document::bastion(shape)?),
            ("attestation", Document::attestation(shape)?),
            ("recorded", Document::recorded(shape)?),
            ("checker", Document::checker()?),
        ]))
    }
}

/// JSON on one line.
pub(super) fn compact(value: &impl Serialize) -> String {
    // Texts and maps with text keys: what could fail is not in it.
    serde_json::to_string(value).unwrap_or_default()
}

impl Serialize for All {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, document) in &self.0 {
            map.serialize_entry(name, document)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
