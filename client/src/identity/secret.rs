//! Secrets that a session consists of.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

/// A text that does not print and is wiped. It serializes for one purpose: into the plain text of
/// a sealed file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// AWS credentials as they sign: long-term ones carry no token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keys {
    /// `AKIA…` or `ASIA…`; no secret.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_print() {
        let keys = Keys {
            access_key_id: "AKIAEXAMPLE".to_owned(),
            secret_access_key: "canary-secret".into(),
            session_token: Some("canary-token".into()),
        };
        assert!(!format!("{keys:?}").contains("canary"));
    }
}
