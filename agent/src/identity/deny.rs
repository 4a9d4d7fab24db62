//! The deny list: who may not come in any more, whatever their certificates say.
//!
//! ```text
//! # left the company
//! user 111122223333/AIDAEXAMPLEEXAMPLE1
//! # lost laptop
//! certificate 4f0c2a…
//! ```

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_proto::names::{AccountId, Principal, UserId};

/// The longest deny list, in bytes.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// Policy's own say: why this principal, or its certificate with this serial (hex; empty at
/// enrolment), is denied altogether.
pub type DenyHook = Arc<dyn Fn(&Principal, &str) -> Option<String> + Send + Sync>;

/// Users and certificates that are denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenyList {
    users: HashSet<String>,
    certificates: HashSet<String>,
}

/// Why a deny list cannot be used. The old one stays.
#[derive(Debug, thiserror::Error)]
pub enum DenyFault {
    /// It cannot be read.
    #[error("cannot read the deny list {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too long.
    #[error("the deny list {} is longer than {FILE_LIMIT} bytes", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line that means nothing: the whole list is refused, since that line was meant to deny
    /// somebody.
    #[error(
        "{}:{line}: `{text}` denies nobody\nhint: write `user ACCOUNT/USERID` or `certificate SERIAL`",
        .path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
}

impl DenyList {
    /// Reads a list; a file that does not exist denies nobody.
    pub fn load(path: &Path) -> Result<Self, DenyFault> {
        let fault = |source| DenyFault::Read {
            path: path.to_owned(),
            source,
        };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(fault(error)),
        };
        let mut text = String::new();
        file.take(FILE_LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(fault)?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(DenyFault::TooLong {
                path: path.to_owned(),
            });
        }
        Self::parse(&text, path)
    }

    /// Reads a text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, DenyFault> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            list.add(entry).ok_or_else(|| DenyFault::Line {
                path: path.to_owned(),
                line: index + 1,
                text: entry
                    .chars()
                    .take(80)
                    .flat_map(char::escape_debug)
                    .collect(),
            })?;
        }
        Ok(list)
    }

    fn add(&mut self, entry: &str) -> Option<()> {
        let (kind, value) = entry.split_once(char::is_whitespace)?;
        let value = value.trim();
        match kind {
            "user" => {
                let (account, id) = value.split_once('/')?;
                let account: AccountId = account.parse().ok()?;
                let id: UserId = id.parse().ok()?;
                self.users.insert(format!("{account}/{id}"));
            }
            "certificate" => {
                let serial = value.replace(':', "").to_ascii_lowercase();
                hex::decode(&serial)
                    .ok()
                    .filter(|bytes| bytes.len() == 16)?;
                self.certificates.insert(serial);
            }
            _ => return None,
        }
        Some(())
    }

    /// Why this principal or certificate (serial, hex) is denied.
    pub fn denies(&self, principal: &Principal, serial: &str) -> Option<String> {
        let key = principal.key();
        if self.users.contains(&key) {
            return Some(format!("the user {key} is on the agent's deny list"));
        }
        self.certificates
            .contains(serial)
            .then(|| format!("the certificate {serial} is on the agent's deny list"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(id: &str) -> Principal {
        Principal {
            account: "111122223333".parse().unwrap(),
            user_id: id.parse().unwrap(),
            arn: String::new(),
        }
    }

    fn parse(text: &str) -> Result<DenyList, DenyFault> {
        DenyList::parse(text, Path::new("deny"))
    }

    #[test]
    fn users_and_certificates_on_the_list_are_denied() {
        let serial = "4f".repeat(16);
        let list = parse(&format!(
            "# gone\nuser 111122223333/AIDAALICEALICEALICE1\n\ncertificate {}  # lost\n",
            serial.to_uppercase()
        ))
        .unwrap();
        assert!(
            list.denies(&principal("AIDAALICEALICEALICE1"), "")
                .is_some()
        );
        assert!(
            list.denies(&principal("AIDABOBBOBBOBBOBBOB1"), "")
                .is_none()
        );
        assert!(
            list.denies(&principal("AIDABOBBOBBOBBOBBOB1"), &serial)
                .is_some()
        );
    }

    #[test]
    fn a_line_that_denies_nobody_makes_the_list_unusable() {
        for bad in [
            "alice",
            "user alice",
            "user 1/AIDA",
            "certificate xyz",
            "usr 111122223333/AIDAALICEALICEALICE1",
        ] {
            let error = parse(&format!("# x\n{bad}\n")).unwrap_err().to_string();
            assert!(error.starts_with("deny:2: "), "{error}");
        }
    }

    #[test]
    fn a_list_that_does_not_exist_denies_nobody() {
        assert_eq!(
            DenyList::load(Path::new("/nonexistent/deny")).unwrap(),
            DenyList::default()
        );
        assert!(DenyList::load(Path::new("/")).is_err());
    }
}
