//! What travels about the data key of an encrypted session.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ssm::payload::{PayloadError, from_json, to_json};

/// The longest base64 text: a KMS ciphertext has some hundred bytes.
const BASE64_LIMIT: usize = 8 * 1024;

/// The result of [`Action::KmsEncryption`](super::Action::KmsEncryption).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsResult {
    #[serde(rename = "KMSCipherTextKey")]
    ciphertext: String,
    #[serde(rename = "KMSCipherTextHash")]
    hash: Option<String>,
    /// The challenge of the request is in the encryption context.
    #[serde(
        rename = "ChallengeAcknowledgement",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub challenge_acknowledged: bool,
}

impl KmsResult {
    /// The result for a data key's ciphertext.
    pub fn new(ciphertext: &[u8], challenge_acknowledged: bool) -> Self {
        Self {
            ciphertext: BASE64_STANDARD.encode(ciphertext),
            hash: None,
            challenge_acknowledged,
        }
    }

    /// Reads an action's result.
    pub fn from_value(value: Value) -> Result<Self, PayloadError> {
        const WHAT: &str = "KMS result";
        serde_json::from_value(value).map_err(|_| PayloadError::Json { what: WHAT })
    }

    /// For [`ProcessedAction::action_result`](super::ProcessedAction::action_result).
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The data key's ciphertext, for KMS Decrypt.
    pub fn ciphertext(&self) -> Result<Vec<u8>, PayloadError> {
        from_base64("KMS ciphertext", &self.ciphertext)
    }
}

/// The proof that both hold the data key, in either direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Challenge {
    challenge: String,
}

impl Challenge {
    /// From the encrypted bytes.
    pub fn new(sealed: &[u8]) -> Self {
        Self {
            challenge: BASE64_STANDARD.encode(sealed),
        }
    }

    /// Reads a payload: the encrypted bytes.
    pub fn from_payload(payload: &[u8]) -> Result<Vec<u8>, PayloadError> {
        let body: Self = from_json("challenge", payload)?;
        from_base64("challenge", &body.challenge)
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

fn from_base64(what: &'static str, text: &str) -> Result<Vec<u8>, PayloadError> {
    if text.len() > BASE64_LIMIT {
        let length = text.len();
        return Err(PayloadError::TooLong { what, length });
    }
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| PayloadError::Json { what })
}
