//! Targets from a file.
//!
//! ```toml
//! [[target]]
//! name = "db-1"                  # its id too
//! address = "10.0.2.20"          # or a DNS name that the bastion resolves
//! aliases = ["db"]
//! ssh_port = 22
//! login = "certificate"          # or "instance-connect", for an EC2 instance
//! platform = "linux"             # or "windows"
//! tags = { env = "prod" }
//! # For an EC2 instance: id, account, region, vpc, zone. The entry wins over what EC2 says.
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use postern_proto::names::{AccountId, HostName, TargetId};
use serde::Deserialize;
use toml::Spanned;

use super::{Target, TargetLogin};
use crate::config::unknown_key;
use crate::files::{self, FileError};

/// Why an inventory file is not used.
#[derive(Debug, thiserror::Error)]
pub enum InventoryFileError {
    /// It cannot be read, or not be trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something in it is wrong.
    #[error("{} line {line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl InventoryFileError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => Some(error.hint()),
            Self::Invalid { hint, .. } => hint.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    target: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<TargetId>,
    address: HostName,
    id: Option<Spanned<TargetId>>,
    #[serde(default)]
    aliases: Vec<HostName>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    account: Option<AccountId>,
    region: Option<String>,
    vpc: Option<String>,
    zone: Option<String>,
    #[serde(default)]
    platform: Platform,
    #[serde(default = "ssh_port")]
    ssh_port: std::num::NonZeroU16,
    #[serde(default)]
    login: TargetLogin,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Platform {
    #[default]
    Linux,
    Windows,
}

/// Reads the file. Blocks.
pub(super) fn load(path: &Path) -> Result<Vec<Target>, InventoryFileError> {
    parse(path, &files::read(path, MAX_FILE)?)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Target>, InventoryFileError> {
    let invalid = |at: usize, message: String, hint: Option<String>| InventoryFileError::Invalid {
        path: path.to_owned(),
        line: line_of(text, at),
        message,
        hint,
    };
    let content: Content = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().trim().to_owned();
        match unknown_key(&message) {
            Some((key, hint)) => invalid(at, format!("there is no key `{key}` here"), Some(hint)),
            None => invalid(at, message, None),
        }
    })?;
    if content.target.len() > MAX_TARGETS {
        let message = format!("more than {MAX_TARGETS} targets");
        return Err(invalid(0, message, None));
    }
    let mut lines: BTreeMap<TargetId, usize> = BTreeMap::new();
    let mut targets = Vec::new();
    for entry in content.target {
        let key = entry.id.as_ref().unwrap_or(&entry.name);
        let at = key.span().start;
        if let Some(first) = lines.insert(key.get_ref().clone(), line_of(text, at)) {
            let message = format!("the target `{}` is in line {first} already", key.get_ref());
            return Err(invalid(
                at,
                message,
                Some("give each an id of its own".to_owned()),
            ));
        }
        targets.push(entry.into_target());
    }
    Ok(targets)
}

impl Entry {
    fn into_target(self) -> Target {
        let name = self.name.into_inner();
        Target {
            name: name.to_string(),
            id: self.id.map_or(name, Spanned::into_inner),
            tags: self.tags,
            account: self.account.map(String::from),
            region: self.region,
            vpc: self.vpc,
            zone: self.zone,
            platform: match self.platform {
                Platform::Linux => "linux".to_owned(),
                Platform::Windows => "windows".to_owned(),
            },
            address: self.address.into(),
            aliases: self.aliases.into_iter().map(String::from).collect(),
            ssh_port: self.ssh_port.get(),
            login: self.login,
        }
    }
}

fn ssh_port() -> std::num::NonZeroU16 {
    const SSH: std::num::NonZeroU16 = std::num::NonZeroU16::new(22).expect("22 is not 0");
    SSH
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

/// Bytes.
const MAX_FILE: u64 = 16 << 20;
const MAX_TARGETS: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Target>, InventoryFileError> {
        parse(Path::new("inventory.toml"), text)
    }

    #[test]
    fn a_whole_entry_becomes_a_target() {
        let text = r#"
            [[target]]
            name = "db-1"
            address = "db.internal"
            id = "i-0123456789abcdef0"
            aliases = ["db"]
            tags = { env = "prod" }
            account = "111122223333"
            region = "eu-central-1"
            vpc = "vpc-1"
            zone = "eu-central-1a"
            platform = "windows"
            ssh_port = 2222
            login = "instance-connect"
            [[target]]
            name = "web-1"
            address = "10.0.0.1"
        "#;
        let targets = read(text).unwrap();
        assert_eq!(
            targets[0],
            Target {
                id: "i-0123456789abcdef0".parse().unwrap(),
                name: "db-1".to_owned(),
                tags: [("env".to_owned(), "prod".to_owned())].into(),
                account: Some("111122223333".to_owned()),
                region: Some("eu-central-1".to_owned()),
                vpc: Some("vpc-1".to_owned()),
                zone: Some("eu-central-1a".to_owned()),
                platform: "windows".to_owned(),
                address: "db.internal".to_owned(),
                aliases: vec!["db".to_owned()],
                ssh_port: 2222,
                login: TargetLogin::InstanceConnect,
            }
        );
        assert_eq!(targets[1].id.as_str(), "web-1");
        assert_eq!(targets[1].platform, "linux");
        assert_eq!(
            (targets[1].ssh_port, targets[1].login),
            (22, TargetLogin::Certificate)
        );
    }

    #[test]
    fn an_empty_file_is_an_empty_inventory() {
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_hint() {
        let entry = "[[target]]\nname = \"a\"\naddress = \"10.0.0.1\"\n";
        let rows = [
            (
                format!("{entry}shh_port = 22\n"),
                4,
                "no key `shh_port`",
                Some("did you mean `ssh_port`?"),
            ),
            (
                "[[targets]]\n".to_owned(),
                1,
                "no key `targets`",
                Some("did you mean `target`?"),
            ),
            (
                format!("{entry}{entry}"),
                5,
                "`a` is in line 2 already",
                None,
            ),
            (format!("{entry}ssh_port = 0\n"), 4, "zero", None),
            (format!("{entry}platform = \"beos\"\n"), 4, "`beos`", None),
            (
                format!("{entry}login = \"password\"\n"),
                4,
                "`password`",
                None,
            ),
            (
                "[[target]]\nname = \"a b\"\naddress = \"10.0.0.1\"".to_owned(),
                2,
                "not a valid target id",
                None,
            ),
            (
                "[[target]]\nname = \"a\"\naddress = \"10.0.0.1/8\"".to_owned(),
                3,
                "not a valid host name",
                None,
            ),
            (
                "[[target]]\nname = \"a\"\n".to_owned(),
                1,
                "missing field `address`",
                None,
            ),
            ("[[target]\n".to_owned(), 1, "", None),
        ];
        for (text, line, message, hint) in rows {
            let error = read(&text).unwrap_err();
            let shown = error.to_string();
            assert!(
                shown.starts_with(&format!("inventory.toml line {line}: ")),
                "{text}: {shown}"
            );
            assert!(shown.contains(message), "{text}: {shown}");
            if let Some(hint) = hint {
                assert_eq!(error.hint().as_deref(), Some(hint), "{text}");
            }
        }
    }
}
