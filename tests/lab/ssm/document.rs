//! Session documents: what AWS's own say, and what a session of one is to do.
//!
//! Contents as `aws ssm get-document` prints them for AWS's documents, without the descriptions
//! of the Windows variants.

use std::collections::BTreeMap;

use postern_proto::ssm::payload::handshake::Properties;
use serde_json::{Value, json};

/// A document of the account: its name and JSON.
#[derive(Clone, Debug)]
pub struct SessionDocument {
    /// 3 to 128 characters.
    pub name: String,
    /// Schema 1.0, with a `sessionType`.
    pub content: Value,
}

/// The documents that AWS owns.
pub const AWS_DOCUMENTS: [&str; 5] = [
    "AWS-StartInteractiveCommand",
    "AWS-StartNonInteractiveCommand",
    "AWS-StartPortForwardingSession",
    "AWS-StartPortForwardingSessionToRemoteHost",
    "AWS-StartSSHSession",
];

/// The account's own preferences: what a session without a document is.
pub(crate) const DEFAULT: &str = "SSM-SessionManagerRunShell";

const PORT: &str = "^([1-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
const LOCAL_PORT: &str = "^([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
const HOST: &str = "^[^,$^&\\(\\)!;'\\\"<>\\`{}\\[\\]\\|#=]{3,}$";

/// A session to run, every parameter in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) document: String,
    pub(crate) kind: Kind,
    /// Encrypts the session.
    pub(crate) kms_key: Option<String>,
    /// Minutes.
    pub(crate) idle_minutes: Option<u64>,
}

/// What a session does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Shell,
    /// A command on a terminal.
    Interactive(String),
    /// A command without one.
    NonInteractive {
        command: String,
        separate: bool,
    },
    Port(Properties),
}

/// A parameter that the document does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadParameter {
    #[error("Parameter \"{0}\" is not defined in the document")]
    Unknown(String),
    #[error("Parameter \"{name}\" has value \"{value}\" not matching \"{pattern}\".")]
    Value {
        name: String,
        value: String,
        pattern: String,
    },
    #[error("Parameter \"{0}\" is required")]
    Missing(String),
    #[error("the document is not one of a session")]
    Document,
}

impl SessionDocument {
    /// One of AWS's.
    pub(crate) fn of_aws(name: &str) -> Option<Self> {
        let port = |default: &str| {
            json!({"type": "String", "description": "(Optional) Port number of the server on the instance",
            "allowedPattern": PORT, "default": default})
        };
        let local = json!({"type": "String", "description": "(Optional) Port number on local machine to forward traffic to. An open port is chosen at run-time if not provided",
            "allowedPattern": LOCAL_PORT, "default": "0"});
        let command = json!({"command": {"type": "String", "description": "(Required) The command to run on the instance"}});
        let commands = json!({"commands": "{{command}}", "runAsElevated": false});
        let platforms = json!({"linux": commands, "windows": commands, "macos": commands});
        let (description, kind, parameters, properties) = match name {
            "AWS-StartPortForwardingSession" => (
                "Document to start port forwarding session over Session Manager",
                "Port",
                json!({"portNumber": port("80"), "localPortNumber": local}),
                json!({"portNumber": "{{ portNumber }}", "type": "LocalPortForwarding", "localPortNumber": "{{ localPortNumber }}"}),
            ),
            "AWS-StartPortForwardingSessionToRemoteHost" => (
                "Document to start port forwarding session over Session Manager to remote host",
                "Port",
                json!({"portNumber": port("80"), "localPortNumber": local, "host": {"type": "String",
                    "description": "(Optional) Hostname or IP address of the destination server",
                    "allowedPattern": HOST, "default": "localhost"}}),
                json!({"portNumber": "{{ portNumber }}", "type": "LocalPortForwarding", "localPortNumber": "{{ localPortNumber }}", "host": "{{ host }}"}),
            ),
            "AWS-StartSSHSession" => (
                "Document to start SSH connections over Session Manager",
                "Port",
                json!({"portNumber": port("22")}),
                json!({"portNumber": "{{ portNumber }}"}),
            ),
            "AWS-StartInteractiveCommand" => (
                "Document to run single interactive command on an instance",
                "InteractiveCommands",
                command,
                platforms,
            ),
            "AWS-StartNonInteractiveCommand" => (
                "Document to run single non-interactive command on an instance",
                "NonInteractiveCommands",
                command,
                platforms,
            ),
            _ => return None,
        };
        let content = json!({"schemaVersion": "1.0", "description": description,
            "sessionType": kind, "parameters": parameters, "properties": properties});
        Some(Self::new(name, content))
    }

    /// The preferences of an account that changed none.
    pub(crate) fn default_shell() -> Self {
        let content = json!({"schemaVersion": "1.0",
            "description": "Document to hold regional settings for Session Manager",
            "sessionType": "Standard_Stream",
            "inputs": {"s3BucketName": "", "s3KeyPrefix": "", "s3EncryptionEnabled": true,
                "cloudWatchLogGroupName": "", "cloudWatchEncryptionEnabled": true,
                "cloudWatchStreamingEnabled": true, "idleSessionTimeout": "", "maxSessionDuration": "",
                "kmsKeyId": "", "runAsEnabled": false, "runAsDefaultUser": "",
                "shellProfile": {"windows": "", "linux": ""}}});
        Self::new(DEFAULT, content)
    }

    /// A shell that is encrypted with a KMS key: id, ARN or alias.
    #[must_use]
    pub fn encrypted_shell(name: &str, kms_key: &str) -> Self {
        let mut document = Self::default_shell();
        document.name = name.to_owned();
        document.content["inputs"]["kmsKeyId"] = kms_key.into();
        document
    }

    /// A command without a terminal that keeps stderr apart and tells its exit code.
    #[must_use]
    pub fn separate_command(name: &str) -> Self {
        let content = json!({"schemaVersion": "1.0", "description": "A command with stdout and stderr apart",
            "sessionType": "NonInteractiveCommands",
            "parameters": {"command": {"type": "String", "description": "(Required) The command to run"}},
            "properties": {"linux": {"commands": "{{command}}", "runAsElevated": false, "separateOutputStream": true}}});
        Self::new(name, content)
    }

    fn new(name: &str, content: Value) -> Self {
        Self {
            name: name.to_owned(),
            content,
        }
    }

    /// What a session with these parameters is.
    pub(crate) fn plan(
        &self,
        parameters: &BTreeMap<String, Vec<String>>,
    ) -> Result<Plan, BadParameter> {
        let values = self.values(parameters)?;
        let text = |pointer: &str| {
            let template = self.content.pointer(pointer)?.as_str()?;
            Some(filled(template, &values)).filter(|text| !text.is_empty())
        };
        let command = || text("/properties/linux/commands").ok_or(BadParameter::Document);
        let kind = match self.content["sessionType"].as_str() {
            Some("Standard_Stream") => Kind::Shell,
            Some("InteractiveCommands") => Kind::Interactive(command()?),
            Some("NonInteractiveCommands") => Kind::NonInteractive {
                command: command()?,
                separate: self.content["properties"]["linux"]["separateOutputStream"] == true,
            },
            Some("Port") => {
                let properties = self.content["properties"].as_object();
                let properties = properties.ok_or(BadParameter::Document)?.iter();
                let filled = properties.map(|(name, value)| {
                    let value = value.as_str().unwrap_or_default();
                    (name.clone(), filled(value, &values))
                });
                Kind::Port(Properties(filled.collect()))
            }
            _ => return Err(BadParameter::Document),
        };
        Ok(Plan {
            document: self.name.clone(),
            kind,
            kms_key: text("/inputs/kmsKeyId"),
            idle_minutes: text("/inputs/idleSessionTimeout").and_then(|text| text.parse().ok()),
        })
    }

    /// Every parameter's value, given or by default.
    fn values(
        &self,
        given: &BTreeMap<String, Vec<String>>,
    ) -> Result<BTreeMap<String, String>, BadParameter> {
        let none = serde_json::Map::new();
        let known = self.content["parameters"].as_object().unwrap_or(&none);
        if let Some(name) = given.keys().find(|name| !known.contains_key(*name)) {
            return Err(BadParameter::Unknown(name.clone()));
        }
        known
            .iter()
            .map(|(name, rule)| {
                let default = || rule["default"].as_str().map(str::to_owned);
                let value = match given.get(name) {
                    Some(values) => values.first().cloned(),
                    None => default(),
                };
                let value = value.ok_or_else(|| BadParameter::Missing(name.clone()))?;
                let pattern = rule["allowedPattern"].as_str().unwrap_or_default();
                match allowed(pattern, &value) {
                    true => Ok((name.clone(), value)),
                    false => Err(BadParameter::Value {
                        name: name.clone(),
                        value,
                        pattern: pattern.to_owned(),
                    }),
                }
            })
            .collect()
    }
}

/// The three patterns that exist; the lab needs no regular expressions beyond them.
fn allowed(pattern: &str, value: &str) -> bool {
    let port = |least| {
        let plain = value.bytes().all(|byte| byte.is_ascii_digit());
        let leading = value.len() > 1 && value.starts_with('0');
        plain && !leading && value.parse::<u16>().is_ok_and(|port| port >= least)
    };
    match pattern {
        PORT => port(1),
        LOCAL_PORT => port(0),
        HOST => {
            value.chars().count() >= 3 && !value.contains(|c| ",$^&()!;'\"<>`{}[]|#=".contains(c))
        }
        _ => true,
    }
}

/// `{{ name }}`, with or without the spaces.
fn filled(template: &str, values: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            out.push_str("{{");
            rest = after;
            continue;
        };
        out.push_str(values.get(name.trim()).map_or("", String::as_str));
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(document: &str, parameters: &[(&str, &str)]) -> Result<Plan, BadParameter> {
        let parameters = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
            .collect();
        SessionDocument::of_aws(document)
            .expect("a document of AWS's")
            .plan(&parameters)
    }

    fn port(properties: &[(&str, &str)]) -> Kind {
        let texts = properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Kind::Port(Properties(texts.collect()))
    }

    #[test]
    fn properties_are_those_of_the_recorded_handshakes() {
        let kind = |document, parameters: &[_]| plan(document, parameters).expect("a plan").kind;
        assert_eq!(
            kind("AWS-StartPortForwardingSession", &[("portNumber", "1")]),
            port(&[
                ("localPortNumber", "0"),
                ("portNumber", "1"),
                ("type", "LocalPortForwarding")
            ])
        );
        assert_eq!(
            kind(
                "AWS-StartPortForwardingSessionToRemoteHost",
                &[("host", "db-1"), ("portNumber", "5432")]
            ),
            port(&[
                ("host", "db-1"),
                ("localPortNumber", "0"),
                ("portNumber", "5432"),
                ("type", "LocalPortForwarding")
            ])
        );
        assert_eq!(
            kind("AWS-StartSSHSession", &[]),
            port(&[("portNumber", "22")])
        );
    }

    #[test]
    fn commands_take_their_place_once_and_are_not_read_again() {
        let plan = plan("AWS-StartInteractiveCommand", &[("command", "echo {{x}}")]);
        let expected = Kind::Interactive("echo {{x}}".to_owned());
        assert_eq!(plan.expect("a plan").kind, expected);
    }

    #[test]
    fn parameters_that_are_unknown_missing_or_against_the_pattern_are_refused() {
        for (document, parameters) in [
            ("AWS-StartSSHSession", &[("portNumber", "0")][..]),
            ("AWS-StartSSHSession", &[("portNumber", "65536")]),
            ("AWS-StartSSHSession", &[("portNumber", "022")]),
            ("AWS-StartSSHSession", &[("host", "web")]),
            ("AWS-StartNonInteractiveCommand", &[]),
            (
                "AWS-StartPortForwardingSessionToRemoteHost",
                &[("host", "a;b")],
            ),
        ] {
            assert!(plan(document, parameters).is_err(), "{parameters:?}");
        }
    }

    #[test]
    fn the_accounts_own_documents_encrypt_and_separate() {
        let none = BTreeMap::new();
        let shell = SessionDocument::encrypted_shell("Shell", "alias/session").plan(&none);
        assert_eq!(
            shell.expect("a plan").kms_key.as_deref(),
            Some("alias/session")
        );
        let plain = SessionDocument::default_shell().plan(&none);
        assert_eq!(plain.expect("a plan").kms_key, None);
        let command = BTreeMap::from([("command".to_owned(), vec!["id".to_owned()])]);
        let separate = SessionDocument::separate_command("Separate").plan(&command);
        let expected = Kind::NonInteractive {
            command: "id".to_owned(),
            separate: true,
        };
        assert_eq!(separate.expect("a plan").kind, expected);
    }
}
