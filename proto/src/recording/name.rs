//! Names of recordings: valid once parsed, so no path can hide in one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::{NameError, SessionId};

/// `SESSION-NUMBER`: the number counts the recordings of one session from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordingName {
    /// The session that it belongs to.
    pub session: SessionId,
    /// Its number in that session.
    pub number: u32,
}

impl fmt::Display for RecordingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.number)
    }
}

impl FromStr for RecordingName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parsed = text.split_once('-').and_then(|(session, number)| {
            Some(Self {
                session: session.parse().ok()?,
                number: number.parse().ok()?,
            })
        });
        // Parsing forgives lower case, `+1` and `01`; only the one written form is a name.
        match parsed {
            Some(name) if name.to_string() == text => Ok(name),
            _ => Err(NameError::new(
                "recording name",
                "a session id, a hyphen and a number",
                text,
            )),
        }
    }
}

impl TryFrom<String> for RecordingName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<RecordingName> for String {
    fn from(name: RecordingName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_written_form_is_a_name() {
        let name = RecordingName {
            session: SessionId::from_parts(1_700_000_000_000, 5),
            number: 12,
        };
        assert_eq!(name.to_string().parse(), Ok(name));
        let session = name.session.to_string();
        for bad in [
            "",
            "-",
            "../../etc/passwd-0",
            &session,
            &format!("{session}-"),
            &format!("{session}-01"),
            &format!("{session}-+1"),
            &format!("{session}-1/.."),
            &format!("{session}-4294967296"),
            &format!("{}-1", session.to_lowercase()),
        ] {
            assert!(bad.parse::<RecordingName>().is_err(), "{bad:?}");
        }
    }
}
