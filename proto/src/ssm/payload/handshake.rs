//! The JSON bodies of the handshake (plugin and SSM Agent: `contracts/handshake*.go` of each).

mod kms;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use kms::{Challenge, KmsResult};

use super::{PayloadError, from_json, to_json};

/// How many actions a request may hold: two exist.
const ACTION_LIMIT: usize = 16;

const SESSION_TYPE: &str = "SessionType";
const KMS_ENCRYPTION: &str = "KMSEncryption";

/// SSM Agent to client: what the client has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// The SSM Agent's version.
    pub agent_version: String,
    /// In order; the answer has one entry for each.
    pub actions: Vec<Action>,
}

/// One requested action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The kind of session.
    SessionType {
        /// `Standard_Stream`, `InteractiveCommands`, `NonInteractiveCommands`, `Port`.
        name: String,
        /// Only `Port` has some.
        properties: Option<Properties>,
    },
    /// Encrypt with a data key of this KMS key.
    KmsEncryption {
        /// Id, ARN or alias.
        key_id: String,
        /// Base64 text that newer SSM Agents want in the encryption context.
        challenge: Option<String>,
    },
    /// Anything else, by name.
    Unknown(String),
}

/// The properties of a port session: texts, in the order of their names as Go writes maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl Properties {
    /// The destination port; `None` when it is not one.
    pub fn port(&self) -> Option<u16> {
        self.0.get("portNumber")?.parse().ok()
    }

    /// The remote host, for sessions of the remote-host document.
    pub fn host(&self) -> Option<&str> {
        self.0.get("host").map(String::as_str)
    }

    /// Whether this forwards a local port, rather than being one raw stream.
    pub fn is_forwarding(&self) -> bool {
        self.0
            .get("type")
            .is_some_and(|kind| kind == "LocalPortForwarding")
    }

    fn from_json(value: Value) -> Option<Self> {
        let Value::Object(fields) = value else {
            return None;
        };
        let text = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let fields = fields.into_iter().map(|(name, value)| (name, text(value)));
        Some(Self(fields.collect()))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RequestBody<A> {
    agent_version: String,
    requested_client_actions: Vec<A>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ActionBody {
    action_type: String,
    #[serde(default)]
    action_parameters: Value,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ActionOut<'a> {
    action_type: &'a str,
    action_parameters: ParametersOut<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ParametersOut<'a> {
    #[serde(rename_all = "PascalCase")]
    SessionType {
        session_type: &'a str,
        properties: &'a Option<Properties>,
    },
    Kms {
        #[serde(rename = "KMSKeyId")]
        key_id: &'a str,
        #[serde(rename = "Challenge", skip_serializing_if = "Option::is_none")]
        challenge: &'a Option<String>,
    },
    None,
}

impl HandshakeRequest {
    /// Reads a payload. An action that is known but malformed is an error: the client must not
    /// guess what it agrees to.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        const WHAT: &str = "handshake request";
        let body: RequestBody<ActionBody> = from_json(WHAT, payload)?;
        if body.requested_client_actions.len() > ACTION_LIMIT {
            return Err(PayloadError::Json { what: WHAT });
        }
        let actions = body
            .requested_client_actions
            .into_iter()
            .map(Action::from_body);
        Ok(Self {
            agent_version: body.agent_version,
            actions: actions
                .collect::<Option<_>>()
                .ok_or(PayloadError::Json { what: WHAT })?,
        })
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(&RequestBody {
            agent_version: self.agent_version.clone(),
            requested_client_actions: self.actions.iter().map(Action::to_body).collect(),
        })
    }
}

impl Action {
    /// The name on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::SessionType { .. } => SESSION_TYPE,
            Self::KmsEncryption { .. } => KMS_ENCRYPTION,
            Self::Unknown(name) => name,
        }
    }

    fn from_body(body: ActionBody) -> Option<Self> {
        let mut parameters = body.action_parameters;
        let mut text = |name: &str| match parameters.get_mut(name).map(Value::take) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Some(match body.action_type.as_str() {
            SESSION_TYPE => Self::SessionType {
                name: text("SessionType")?,
                properties: parameters
                    .get_mut("Properties")
                    .and_then(|value| Properties::from_json(value.take())),
            },
            KMS_ENCRYPTION => Self::KmsEncryption {
                key_id: text("KMSKeyId")?,
                challenge: text("Challenge").filter(|challenge| !challenge.is_empty()),
            },
            _ => Self::Unknown(body.action_type),
        })
    }

    fn to_body(&self) -> ActionOut<'_> {
        ActionOut {
            action_type: self.name(),
            action_parameters: match self {
                Self::SessionType { name, properties } => ParametersOut::SessionType {
                    session_type: name,
                    properties,
                },
                Self::KmsEncryption { key_id, challenge } => {
                    ParametersOut::Kms { key_id, challenge }
                }
                Self::Unknown(_) => ParametersOut::None,
            },
        }
    }
}

/// Client to SSM Agent: what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    /// The client's version, on which the SSM Agent decides how to speak.
    pub client_version: String,
    /// One entry per requested action, in its order.
    #[serde(rename = "ProcessedClientActions")]
    pub actions: Vec<ProcessedAction>,
    /// Texts of all failures; `null` when there is none.
    #[serde(default)]
    pub errors: Option<Vec<String>>,
}

/// The result of one action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    /// The action's name.
    pub action_type: String,
    /// [`Self::SUCCESS`], [`Self::FAILED`], [`Self::UNSUPPORTED`].
    pub action_status: i64,
    /// [`KmsResult`] as JSON, for encryption.
    #[serde(default)]
    pub action_result: Value,
    /// Why it failed.
    #[serde(default)]
    pub error: String,
}

impl ProcessedAction {
    /// Done.
    pub const SUCCESS: i64 = 1;
    /// Tried without success.
    pub const FAILED: i64 = 2;
    /// Not known to this client.
    pub const UNSUPPORTED: i64 = 3;

    /// A success with its result.
    pub fn done(action: &str, action_result: Value) -> Self {
        Self {
            action_type: action.into(),
            action_status: Self::SUCCESS,
            action_result,
            error: String::new(),
        }
    }

    /// Anything but a success, with the reason.
    pub fn not_done(action: &str, action_status: i64, error: String) -> Self {
        Self {
            action_type: action.into(),
            action_status,
            action_result: Value::Null,
            error,
        }
    }
}

impl HandshakeResponse {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("handshake response", payload.trim_ascii_end())
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

/// SSM Agent to client: the session runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeComplete {
    /// Nanoseconds.
    #[serde(default)]
    pub handshake_time_to_complete: i64,
    /// To be shown when not empty. Text of the peer.
    #[serde(default)]
    pub customer_message: String,
}

impl HandshakeComplete {
    /// Reads a payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        from_json("handshake complete", payload)
    }

    /// The payload.
    pub fn payload(&self) -> Bytes {
        to_json(self)
    }
}

#[cfg(test)]
mod tests;
