//! Statements of the policies, each with what it is for.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::ssm::document::{INTERACTIVE, NON_INTERACTIVE, PORT, REMOTE_HOST, SHELL, SSH};

use super::shape::{Shape, Tags};

/// The session documents that Postern names in StartSession; no other is needed.
pub const DOCUMENTS: [&str; 6] = [SHELL, INTERACTIVE, NON_INTERACTIVE, SSH, PORT, REMOTE_HOST];

/// The tag that Session Manager gives each session: the `aws:userid` of who started it. The id of a
/// session begins with a user's or role session's name, which is ambiguous (`al-*` fits the
/// sessions of `al-ice`) and, for roles, no policy variable; this tag fits one identity, be it a
/// user with a GetSessionToken session or a session of a role.
pub const OWNER_TAG: &str = "ssm:resourceTag/aws:ssmmessages:session-id";
/// What a session's owner tag must be.
const SELF: &str = "${aws:userid}";

/// What every data key of an SSM session is bound to: their encryption context.
pub const SESSION_CONTEXT: &str = "kms:EncryptionContext:aws:ssm:SessionId";

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    sid: String,
    effect: Effect,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<BTreeMap<&'static str, String>>,
    action: Texts,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<Texts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_resource: Option<Texts>,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    condition: Conditions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Effect {
    Allow,
    Deny,
}

/// One text stands for itself, several are a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Texts(Vec<String>);

/// Operator, key, values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Conditions(BTreeMap<&'static str, BTreeMap<String, Texts>>);

impl Statement {
    /// StartSession on tagged targets. The access check makes AWS ask for a permission on the
    /// session document too, also when none is named.
    pub(super) fn start(shape: &Shape) -> Self {
        let mut targets = shape.everywhere("ec2", "instance/*");
        targets.extend(shape.everywhere("ssm", "managed-instance/*"));
        Self::allow("StartOnTargets", ["ssm:StartSession"], targets)
            .with_young_mfa(shape)
            .tagged("StringEquals", "ssm:resourceTag/", &shape.tags)
            // `IfExists`: AWS sets the key on the look at the target and not on that at the
            // document ("Enforce a session document permission check", Session Manager guide).
            .when("BoolIfExists", "ssm:SessionDocumentAccessCheck", ["true"])
    }

    /// StartSession through the documents that Postern uses.
    pub(super) fn documents(shape: &Shape) -> Self {
        let names = shape.documents.iter();
        let documents: Vec<String> = names.flat_map(|name| shape.document(name)).collect();
        Self::allow("StartThroughDocuments", ["ssm:StartSession"], documents).with_young_mfa(shape)
    }

    /// A session that is running goes on also when its MFA is older than what starts one.
    pub(super) fn resume(shape: &Shape) -> Self {
        Self::own("ResumeOwnSessions", "ssm:ResumeSession", shape).with_mfa()
    }

    /// To end one's own session needs nothing.
    pub(super) fn end(shape: &Shape) -> Self {
        Self::own("EndOwnSessions", "ssm:TerminateSession", shape)
    }

    fn own(sid: &str, action: &str, shape: &Shape) -> Self {
        Self::allow(sid, [action], shape.everywhere("ssm", "session/*")).when(
            "StringEquals",
            OWNER_TAG,
            [SELF],
        )
    }

    pub(super) fn look_up(shape: &Shape) -> Self {
        let actions = ["ssm:DescribeInstanceInformation", "ssm:GetConnectionStatus"];
        let regions = shape.regions.clone();
        Self::allow("FindTargets", actions, ["*"]).when(
            "StringEquals",
            "aws:RequestedRegion",
            regions,
        )
    }

    /// The role itself demands MFA.
    pub(super) fn attest(shape: &Shape) -> Self {
        let role = shape.attestation_role.clone();
        Self::allow("AttestMfa", ["sts:AssumeRole"], [role])
    }

    /// For the key of an SSM session and nothing else that the KMS key may protect.
    pub(super) fn encrypt(shape: &Shape) -> Option<Self> {
        if shape.kms_keys.is_empty() {
            return None;
        }
        let keys = shape.kms_keys.clone();
        let statement = Self::allow("EncryptSessions", ["kms:GenerateDataKey"], keys)
            .with_mfa()
            .when("StringLike", SESSION_CONTEXT, ["*"]);
        Some(statement)
    }

    /// `BoolIfExists` with `false`: denied too where the key is absent, as with long-term keys.
    pub(super) fn no_mfa() -> Self {
        let actions = ["ssm:StartSession", "ssm:ResumeSession"];
        Self::deny("NothingWithoutMfa", actions, ["*"]).when(
            "BoolIfExists",
            "aws:MultiFactorAuthPresent",
            ["false"],
        )
    }

    pub(super) fn old_mfa(shape: &Shape) -> Self {
        Self::deny("NothingWithOldMfa", ["ssm:StartSession"], ["*"]).when(
            "NumericGreaterThanEquals",
            "aws:MultiFactorAuthAge",
            [shape.max_age.to_string()],
        )
    }

    /// One statement for each key: several conditions of one would have to hold together.
    pub(super) fn recorded(shape: &Shape) -> Vec<Self> {
        Self::per_key(&shape.recorded, "StringEquals", "NotWhereTheAgentRecords")
    }

    /// Denies what other policies allow on targets that are not meant.
    pub(super) fn untagged(shape: &Shape) -> Vec<Self> {
        let mut statements = Self::per_key(&shape.tags, "StringNotEquals", "NotOnOtherTargets");
        let mut targets = shape.everywhere("ec2", "instance/*");
        targets.extend(shape.everywhere("ssm", "managed-instance/*"));
        for statement in &mut statements {
            // A document has no such tag and must not be denied for it.
            statement.resource = Some(Texts(targets.clone()));
        }
        statements
    }

    fn per_key(tags: &Tags, operator: &'static str, sid: &str) -> Vec<Self> {
        let deny = |(index, (key, values)): (usize, (&String, &Vec<String>))| {
            // IAM wants every Sid of a policy once.
            let sid = match index {
                0 => sid.to_owned(),
                index => format!("{sid}{}", index + 1),
            };
            let key = format!("ssm:resourceTag/{key}");
            Self::deny(&sid, ["ssm:StartSession"], ["*"]).when(operator, &key, values.clone())
        };
        tags.iter().enumerate().map(deny).collect()
    }

    /// Denies what other policies allow through other documents.
    pub(super) fn other_documents(shape: &Shape) -> Self {
        let mut spared = shape.everywhere("ec2", "instance/*");
        spared.extend(shape.everywhere("ssm", "managed-instance/*"));
        spared.extend(shape.documents.iter().flat_map(|name| shape.document(name)));
        let mut statement = Self::deny("NotThroughOtherDocuments", ["ssm:StartSession"], ["*"]);
        statement.resource = None;
        statement.not_resource = Some(Texts(spared));
        statement
    }

    /// Denies what other policies allow with others' sessions.
    pub(super) fn others_sessions(shape: &Shape) -> Self {
        let actions = ["ssm:ResumeSession", "ssm:TerminateSession"];
        let sessions = shape.everywhere("ssm", "session/*");
        Self::deny("NotOthersSessions", actions, sessions).when(
            "StringNotEquals",
            OWNER_TAG,
            [SELF],
        )
    }

    /// Who in the account proved MFA may assume the role. `Bool`: an absent key must fail.
    pub(super) fn trust(shape: &Shape) -> Self {
        let root = format!("arn:{}:iam::{}:root", shape.partition(), shape.account);
        let mut statement =
            Self::allow("WhoProvedMfa", ["sts:AssumeRole"], ["*"]).with_young_mfa(shape);
        statement.resource = None;
        statement.principal = Some(BTreeMap::from([("AWS", root)]));
        statement
    }

    pub(super) fn allow<T: Into<String>, R: Into<String>>(
        sid: &str,
        actions: impl IntoIterator<Item = T>,
        resources: impl IntoIterator<Item = R>,
    ) -> Self {
        Self {
            sid: sid.to_owned(),
            effect: Effect::Allow,
            principal: None,
            action: Texts::new(actions),
            resource: Some(Texts::new(resources)),
            not_resource: None,
            condition: Conditions::default(),
        }
    }

    fn deny<T: Into<String>, R: Into<String>>(
        sid: &str,
        actions: impl IntoIterator<Item = T>,
        resources: impl IntoIterator<Item = R>,
    ) -> Self {
        let mut statement = Self::allow(sid, actions, resources);
        statement.effect = Effect::Deny;
        statement
    }

    pub(super) fn when<T: Into<String>>(
        mut self,
        operator: &'static str,
        key: &str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let keys = self.condition.0.entry(operator).or_default();
        keys.insert(key.to_owned(), Texts::new(values));
        self
    }

    pub(super) fn tagged(mut self, operator: &'static str, prefix: &str, tags: &Tags) -> Self {
        for (key, values) in tags {
            self = self.when(operator, &format!("{prefix}{key}"), values.clone());
        }
        self
    }

    pub(super) fn with_mfa(self) -> Self {
        self.when("Bool", "aws:MultiFactorAuthPresent", ["true"])
    }

    pub(super) fn with_young_mfa(self, shape: &Shape) -> Self {
        let age = shape.max_age.to_string();
        self.with_mfa()
            .when("NumericLessThan", "aws:MultiFactorAuthAge", [age])
    }

    /// The conditions that no role session can meet, taken away.
    pub(super) fn without_mfa(mut self) -> Self {
        for keys in self.condition.0.values_mut() {
            keys.retain(|key, _| !key.starts_with("aws:MultiFactorAuth"));
        }
        self.condition.0.retain(|_, keys| !keys.is_empty());
        self
    }
}

impl Texts {
    fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }
}

impl Conditions {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}
