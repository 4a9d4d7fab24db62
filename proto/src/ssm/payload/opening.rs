//! The first text of a connection, and the token in it.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{PayloadError, from_json};

/// A text that opens something: never printed, wiped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Takes the text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// The first message on every connection, a text frame; it makes the channel live and has no
/// answer (plugin `service/model.go`, SSM Agent `session/service/messagebody.go`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenDataChannel {
    /// `1.0`.
    pub message_schema_version: String,
    /// A fresh UUID.
    pub request_id: String,
    /// The token of StartSession or ResumeSession; the SSM Agent's of CreateDataChannel.
    pub token_value: SecretText,
    /// SSM Agent only: its instance id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_instance_id: Option<String>,
    /// A UUID that stays the same for all connections of a client; empty from the SSM Agent.
    #[serde(default)]
    pub client_id: String,
    /// Newer clients only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_version: Option<String>,
}

impl OpenDataChannel {
    /// Reads the text frame.
    pub fn from_text(text: &str) -> Result<Self, PayloadError> {
        from_json("open data channel", text.as_bytes())
    }

    /// The text frame.
    pub fn to_text(&self) -> SecretText {
        SecretText(serde_json::to_string(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let open = OpenDataChannel {
            message_schema_version: "1.0".into(),
            request_id: "id".into(),
            token_value: SecretText::new("hunter2".into()),
            client_instance_id: None,
            client_id: String::new(),
            client_version: None,
        };
        assert!(!format!("{open:?} {:?}", open.to_text()).contains("hunter2"));
        assert!(open.to_text().expose().contains("hunter2"));
    }
}
