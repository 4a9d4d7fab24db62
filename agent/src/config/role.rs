//! The ARN of an IAM role, parsed once.

use std::fmt;
use std::str::FromStr;

use postern_proto::names::AccountId;
use serde::Deserialize;

/// `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct RoleArn {
    text: String,
    partition: String,
    account: AccountId,
    name: String,
}

impl RoleArn {
    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `aws`, `aws-cn`, `aws-us-gov`, …
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The role's account.
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    /// The role's name, without its path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ARN that STS gives to a session of this role; the role's path is not in it.
    pub fn session(&self, name: &str) -> String {
        format!(
            "arn:{}:sts::{}:assumed-role/{}/{name}",
            self.partition, self.account, self.name
        )
    }
}

impl TryFrom<String> for RoleArn {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.splitn(6, ':');
            let mut next = || parts.next();
            let ("arn", partition, "iam", "", account, resource) =
                (next()?, next()?, next()?, next()?, next()?, next()?)
            else {
                return None;
            };
            let account: AccountId = account.parse().ok()?;
            let path = resource.strip_prefix("role/")?;
            let name = path.rsplit('/').next()?;
            // IAM's own pattern for role names: [\w+=,.@-]{1,64}; paths are printable ASCII.
            let named = (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
            let legal = named
                && path.len() <= 512
                && path.bytes().all(|b| b.is_ascii_graphic())
                && partition.starts_with("aws")
                && partition
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-');
            legal.then(|| (partition.to_owned(), account, name.to_owned()))
        };
        let (partition, account, name) = parse().ok_or_else(|| {
            let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
            format!("`{shown}` is not the ARN of a role: expected `arn:aws:iam::ACCOUNT:role/NAME`")
        })?;
        Ok(Self {
            text,
            partition,
            account,
            name,
        })
    }
}

impl FromStr for RoleArn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_with_a_path_keeps_its_name_alone_in_the_session() {
        let role: RoleArn = "arn:aws:iam::111122223333:role/postern/attest"
            .parse()
            .unwrap();
        assert_eq!(role.name(), "attest");
        assert_eq!(
            role.session("b"),
            "arn:aws:sts::111122223333:assumed-role/attest/b"
        );
    }

    #[test]
    fn what_is_not_a_role_is_refused() {
        for bad in [
            "",
            "attest",
            "arn:aws:iam::111122223333:user/alice",
            "arn:aws:iam::1111:role/attest",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a b",
            "arn:aws:sts::111122223333:assumed-role/attest/x",
            "arn:aws:iam:eu:111122223333:role/attest",
        ] {
            assert!(bad.parse::<RoleArn>().is_err(), "{bad}");
        }
    }
}
