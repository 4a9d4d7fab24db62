//! What the policies are about, checked once: account, regions, tags, keys.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::names::{AccountId, LoginUser};

use crate::identity::aws::is_region;

use super::error::PolicyError;
use super::statement::DOCUMENTS;

/// Tag of the targets of Postern, unless another one is named.
pub const TARGET_TAG: (&str, &str) = ("postern:target", "true");
/// Tag of the targets whose sessions the agent must record, unless another one is named.
pub const RECORDED_TAG: (&str, &str) = ("postern:recording", "agent");
/// GetSessionToken's own bounds: MFA can be no older, and a younger bound would be met by nobody.
const AGES: std::ops::RangeInclusive<u64> = 15 * 60..=36 * 3600;

/// Tags: the values of a key are alternatives, all keys must fit.
pub type Tags = BTreeMap<String, Vec<String>>;

/// What the policies are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The account of targets and people.
    pub account: AccountId,
    /// Where the targets are; never empty, all of one partition.
    pub regions: Vec<String>,
    /// Which targets may be reached.
    pub tags: Tags,
    /// Where the agent must record.
    pub recorded: Tags,
    /// Session documents that may be used: Postern's and the account's own that were named.
    pub documents: Vec<String>,
    /// Seconds that MFA may be old.
    pub max_age: u64,
    /// ARNs of the keys that encrypt SSM sessions.
    pub kms_keys: Vec<String>,
    /// ARN of the role that attests MFA.
    pub attestation_role: String,
    /// Users that the agent pushes keys for.
    pub login_users: Vec<LoginUser>,
    /// Where agents call from; empty: anywhere.
    pub sources: Vec<String>,
}

/// The same as typed.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    /// Twelve digits.
    pub account: String,
    /// Regions.
    pub regions: Vec<String>,
    /// `KEY=VALUE`.
    pub tags: Vec<String>,
    /// `KEY=VALUE`.
    pub recorded: Vec<String>,
    /// Names.
    pub documents: Vec<String>,
    /// MFA's age.
    pub max_age: Duration,
    /// ARNs.
    pub kms_keys: Vec<String>,
    /// ARN.
    pub attestation_role: Option<String>,
    /// Names.
    pub login_users: Vec<String>,
    /// Addresses or networks.
    pub sources: Vec<String>,
}

impl Shape {
    /// Checks every part.
    pub fn new(typed: Typed) -> Result<Self, PolicyError> {
        let account: AccountId = typed.account.parse()?;
        for region in &typed.regions {
            if !is_region(region) {
                return Err(PolicyError::Region(region.clone()));
            }
        }
        let first = typed.regions.first().ok_or(PolicyError::NoRegion)?;
        let partition = partition(first);
        if let Some(other) = typed
            .regions
            .iter()
            .find(|r| self::partition(r) != partition)
        {
            return Err(PolicyError::Partitions(first.clone(), other.clone()));
        }
        if !AGES.contains(&typed.max_age.as_secs()) {
            return Err(PolicyError::Age(typed.max_age.as_secs()));
        }
        for key in &typed.kms_keys {
            if !is_kms_key(key) {
                return Err(PolicyError::KmsKey(key.clone()));
            }
        }
        for source in &typed.sources {
            if !is_network(source) {
                return Err(PolicyError::Source(source.clone()));
            }
        }
        if let Some(wrong) = typed.documents.iter().find(|name| !is_document(name)) {
            return Err(PolicyError::Document(wrong.clone()));
        }
        let known = DOCUMENTS.iter().map(ToString::to_string);
        let attestation_role = typed
            .attestation_role
            .unwrap_or_else(|| format!("arn:{partition}:iam::{account}:role/postern-attestation"));
        if !is_role(&attestation_role) {
            return Err(PolicyError::Role(attestation_role));
        }
        Ok(Self {
            tags: tags(&typed.tags, TARGET_TAG)?,
            recorded: tags(&typed.recorded, RECORDED_TAG)?,
            documents: unique(known.chain(typed.documents).collect()),
            max_age: typed.max_age.as_secs(),
            kms_keys: typed.kms_keys,
            login_users: typed
                .login_users
                .iter()
                .map(|user| user.parse())
                .collect::<Result<_, _>>()?,
            sources: typed.sources,
            regions: unique(typed.regions),
            attestation_role,
            account,
        })
    }

    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub fn partition(&self) -> &'static str {
        self.regions
            .first()
            .map_or("aws", |region| partition(region))
    }

    /// ARNs of something in every region: `instance/*` of `ec2`.
    pub fn everywhere(&self, service: &str, resource: &str) -> Vec<String> {
        let (partition, account) = (self.partition(), &self.account);
        self.regions
            .iter()
            .map(|region| format!("arn:{partition}:{service}:{region}:{account}:{resource}"))
            .collect()
    }

    /// ARNs of a session document in every region. AWS owns those of its own name, without account.
    pub fn document(&self, name: &str) -> Vec<String> {
        let partition = self.partition();
        let account = match name.starts_with("AWS-") {
            true => "",
            false => self.account.as_str(),
        };
        self.regions
            .iter()
            .map(|region| format!("arn:{partition}:ssm:{region}:{account}:document/{name}"))
            .collect()
    }
}

/// The partition that a region belongs to.
/// Source: "Amazon Resource Names (ARNs)" in the AWS general reference.
fn partition(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else if region.starts_with("us-isob-") {
        "aws-iso-b"
    } else if region.starts_with("us-iso-") {
        "aws-iso"
    } else {
        "aws"
    }
}

fn unique(mut texts: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    texts.retain(|text| seen.insert(text.clone()));
    texts
}

/// `KEY=VALUE` as AWS allows tags. Neither `$` nor `*` is among their characters, so no value
/// reads as a policy variable or a wildcard.
fn tags(typed: &[String], default: (&str, &str)) -> Result<Tags, PolicyError> {
    let mut tags = Tags::new();
    for text in typed {
        let parts = text.split_once('=').filter(|(key, value)| {
            (1..=128).contains(&key.chars().count())
                && value.chars().count() <= 256
                && !key.starts_with("aws:")
                && key.chars().chain(value.chars()).all(is_of_tag)
        });
        let (key, value) = parts.ok_or_else(|| PolicyError::Tag(text.clone()))?;
        let values = tags.entry(key.to_owned()).or_default();
        if !values.iter().any(|known| known == value) {
            values.push(value.to_owned());
        }
    }
    if tags.is_empty() {
        tags.insert(default.0.to_owned(), vec![default.1.to_owned()]);
    }
    Ok(tags)
}

/// Source: "Tag naming limits and requirements" in the guide to tagging AWS resources.
fn is_of_tag(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

/// Source: `DocumentName` of StartSession in the SSM API model.
fn is_document(text: &str) -> bool {
    (3..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

fn is_kms_key(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    matches!(parts[..], ["arn", partition, "kms", region, account, key]
        if partition.starts_with("aws")
            && plain(partition)
            && is_region(region)
            && account.parse::<AccountId>().is_ok()
            && key.strip_prefix("key/").is_some_and(plain))
}

fn is_role(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let plain = |path: &str| {
        !path.is_empty()
            && path
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&b))
    };
    matches!(parts[..], ["arn", partition, "iam", "", account, role]
        if partition.starts_with("aws")
            && account.parse::<AccountId>().is_ok()
            && role.strip_prefix("role/").is_some_and(plain))
}

/// An address, or a network with its prefix length.
fn is_network(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= longest))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn typed() -> Typed {
        Typed {
            account: "111122223333".to_owned(),
            regions: vec!["eu-west-1".to_owned()],
            max_age: Duration::from_secs(43_200),
            login_users: vec!["ec2-user".to_owned()],
            ..Typed::default()
        }
    }

    fn error(change: impl FnOnce(&mut Typed)) -> String {
        let mut typed = typed();
        change(&mut typed);
        let error = Shape::new(typed).unwrap_err();
        match error.hint() {
            Some(hint) => format!("{error}; hint: {hint}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = [
            error(|t| t.account = "1111".into()),
            error(|t| t.regions.clear()),
            error(|t| t.regions = vec!["Ireland".into()]),
            error(|t| t.regions = vec!["eu-west-1".into(), "cn-north-1".into()]),
            error(|t| t.tags = vec!["env".into()]),
            error(|t| t.tags = vec!["env=${aws:username}".into()]),
            error(|t| t.tags = vec!["aws:x=y".into()]),
            error(|t| t.documents = vec!["My document".into()]),
            error(|t| t.max_age = Duration::from_secs(60)),
            error(|t| t.kms_keys = vec!["alias/x".into()]),
            error(|t| t.attestation_role = Some("postern".into())),
            error(|t| t.login_users = vec!["a,b".into()]),
            error(|t| t.sources = vec!["10.0.0.0/33".into()]),
        ];
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn arns_are_those_of_the_partition_and_aws_owns_its_documents() {
        let mut typed = typed();
        typed.regions = vec!["cn-north-1".into(), "cn-north-1".into()];
        let shape = Shape::new(typed).unwrap();
        assert_eq!(
            shape.everywhere("ec2", "instance/*"),
            ["arn:aws-cn:ec2:cn-north-1:111122223333:instance/*"]
        );
        assert_eq!(
            shape.document("AWS-StartSSHSession"),
            ["arn:aws-cn:ssm:cn-north-1::document/AWS-StartSSHSession"]
        );
        assert_eq!(
            shape.document("SSM-SessionManagerRunShell"),
            ["arn:aws-cn:ssm:cn-north-1:111122223333:document/SSM-SessionManagerRunShell"]
        );
    }

    #[test]
    fn values_of_a_key_are_collected() {
        let mut typed = typed();
        typed.tags = vec![
            "env=a".into(),
            "env=b".into(),
            "team=x=y".into(),
            "env=a".into(),
        ];
        let shape = Shape::new(typed).unwrap();
        assert_eq!(shape.tags["env"], ["a", "b"]);
        assert_eq!(shape.tags["team"], ["x=y"]);
        assert_eq!(shape.recorded["postern:recording"], ["agent"]);
    }
}
