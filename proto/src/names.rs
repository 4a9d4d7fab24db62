//! Identifiers: parsed once, valid from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not the identifier that it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a valid {what}: {expected}")]
pub struct NameError {
    what: &'static str,
    expected: &'static str,
    text: String,
}

impl NameError {
    /// Shows `text` escaped and cut: what was refused may be long or hold control characters.
    pub(crate) fn new(what: &'static str, expected: &'static str, text: &str) -> Self {
        Self {
            what,
            expected,
            text: text.chars().take(64).flat_map(char::escape_debug).collect(),
        }
    }
}

/// Declares an identifier: a text that one pattern accepts.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text))
                } else {
                    Err(NameError::new($what, $expected, &text))
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of one agent: the SAN of its server certificate and the origin of its audit log.
    AgentId,
    "agent id",
    "1 to 63 lower-case letters, digits, dots and hyphens, starting with a letter",
    |text| {
        (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
    }
);

name!(
    /// A login user on a target. Neither comma nor space: those split principals in SSH
    /// certificates (CVE-2026-35414).
    LoginUser,
    "login user",
    "1 to 32 letters, digits, `_`, `-` and `.`, starting with a letter or `_`",
    |text| {
        (1..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    }
);

name!(
    /// What a person types for a target: an instance id, a name, an address or `tag:KEY=VALUE`.
    TargetName,
    "target",
    "1 to 256 printable characters",
    |text| (1..=256).contains(&text.len()) && !text.chars().any(char::is_control)
);

name!(
    /// The key of a target in the inventory: an EC2 instance id, a managed node id, or the name
    /// of a host in the file inventory.
    TargetId,
    "target id",
    "1 to 128 letters, digits, `_`, `-`, `.` and `:`",
    |text| {
        (1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':'))
    }
);

name!(
    /// A host that a tunnel asks for behind a target: a DNS name or an address.
    HostName,
    "host name",
    "1 to 253 letters, digits, `-`, `_`, `.`, `:` (an address or a DNS name)",
    |text| {
        (1..=253).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':'))
    }
);

name!(
    /// An AWS account number.
    AccountId,
    "AWS account",
    "12 digits",
    |text| text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
);

name!(
    /// AWS's unique id of a user or role (`AIDA…`, `AROA…`): a recreated user has another one.
    UserId,
    "AWS unique id",
    "16 to 128 upper-case letters and digits",
    |text| {
        (16..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    }
);

/// The highest of a ULID's 80 random bits.
const CLIENT: u128 = 1 << 79;

/// The one id of a session, in protocol, evidence and target logs alike: a ULID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(ulid::Ulid);

impl SessionId {
    /// Makes an id from a time in milliseconds since 1970 and 80 random bits.
    pub fn from_parts(unix_ms: u64, random: u128) -> Self {
        Self(ulid::Ulid::from_parts(unix_ms, random))
    }

    /// An id for a session that an agent grants: [`Self::is_of_client`] is false.
    pub fn of_agent(unix_ms: u64, random: u128) -> Self {
        Self::from_parts(unix_ms, random & !CLIENT)
    }

    /// An id for a session that a client claims, on a route without an agent.
    pub fn of_client(unix_ms: u64, random: u128) -> Self {
        Self::from_parts(unix_ms, random | CLIENT)
    }

    /// Whether a client made it. The two kinds never meet: no client can claim something of a
    /// session that an agent granted. Written, the 11th character is `G` or later.
    pub fn is_of_client(self) -> bool {
        self.0.random() & CLIENT != 0
    }

    /// The 16 bytes that hashes and seals bind.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        ulid::Ulid::from_string(text)
            .map(Self)
            .map_err(|_| NameError::new("session id", "a ULID of 26 characters", text))
    }
}

/// Who is asking: an AWS identity, keyed by account and unique id. The ARN is for display.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Principal {
    /// The account that the identity belongs to.
    pub account: AccountId,
    /// AWS's unique id of the user (or of the role, for a role session).
    pub user_id: UserId,
    /// The ARN at the time of the proof: for people, never compared.
    pub arn: String,
}

impl Principal {
    /// `account/user id`: the key of policies, limits and deny lists.
    pub fn key(&self) -> String {
        format!("{}/{}", self.account, self.user_id)
    }
}

/// Two principals are the same when account and unique id are, whatever the ARN says.
impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        self.account == other.account && self.user_id == other.user_id
    }
}

impl Eq for Principal {}

/// How MFA was attested (DESIGN.md section 3). Ordered: later is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assurance {
    /// No MFA evidence: opens nothing.
    None,
    /// A user session from GetSessionToken with a code, attested by AWS within the age bound.
    AwsMfa,
    /// Step-up: a code given for this one `Open`.
    AwsMfaFresh,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::AwsMfa => "aws-mfa",
            Self::AwsMfaFresh => "aws-mfa-fresh",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_user_with_a_comma_or_a_space_is_refused() {
        for bad in [
            "",
            "a,b",
            "a b",
            "-root",
            "a\n",
            "überuser",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<LoginUser>().is_err(), "{bad:?}");
        }
        for good in ["root", "ec2-user", "_apt", "first.last"] {
            assert!(good.parse::<LoginUser>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_refused_name_is_shown_escaped_and_cut() {
        let error = format!("a\u{1b}[31m{}", "b".repeat(100))
            .parse::<AgentId>()
            .unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains("a\\u{1b}[31m"), "{shown}");
        assert!(!shown.contains(&"b".repeat(70)), "{shown}");
    }

    #[test]
    fn session_ids_of_agents_and_of_clients_never_meet() {
        for random in [0, 1, u128::MAX, 0x5555_5555, CLIENT] {
            let (agent, client) = (
                SessionId::of_agent(9, random),
                SessionId::of_client(9, random),
            );
            assert!(!agent.is_of_client() && client.is_of_client());
            let (agent, client) = (agent.to_string(), client.to_string());
            assert!(agent.as_bytes()[10] < b'G' && client.as_bytes()[10] >= b'G');
            assert_eq!(agent[..10], client[..10]);
        }
    }

    #[test]
    fn a_recreated_user_is_somebody_else() {
        let principal = |id: &str| Principal {
            account: "111122223333".parse().unwrap(),
            user_id: id.parse().unwrap(),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        };
        assert_eq!(
            principal("AIDAAAAAAAAAAAAAAAAA"),
            principal("AIDAAAAAAAAAAAAAAAAA")
        );
        assert_ne!(
            principal("AIDAAAAAAAAAAAAAAAAA"),
            principal("AIDABBBBBBBBBBBBBBBB")
        );
    }
}
