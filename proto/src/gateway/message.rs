//! The JSON bodies of frames. Unknown fields are errors: a peer that means something that this
//! version does not understand must not be half obeyed.

use serde::{Deserialize, Serialize};

use crate::names::{Assurance, HostName, LoginUser, SessionId, TargetId, TargetName};

/// What the client asks for: one thing on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// The target, as the person named it: never an address to dial.
    pub target: TargetName,
    /// What is to be carried.
    pub kind: OpenKind,
    /// A further pipe of a session that is open: the same target and port, no second step-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// The session that a step-up denial named: the approval was given for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<SessionId>,
    /// Size of the newest checkpoint of this agent's log that the client keeps: the agent has to
    /// prove that its log still begins with it. Not part of [`open_hash`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_size: Option<u64>,
    /// The pipe is over when what runs on it is: with the last SSH channel that the target closes,
    /// the agent says `Close` of its own accord, which saves a round trip.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
    /// The client's version, for the log.
    pub client: String,
}

/// What a pipe carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum OpenKind {
    /// SSH, with the agent as its server.
    Ssh {
        /// The user to log in as on the target; the SSH user name must equal it.
        user: LoginUser,
    },
    /// Raw bytes to one port.
    Tunnel {
        /// A host behind the target; the target itself when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostName>,
        /// The TCP port, not 0.
        port: u16,
    },
}

/// Names the session that a further pipe joins, and proves that it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The open session.
    pub session: SessionId,
    /// Hex of [`join_proof`].
    pub proof: String,
}

/// The agent's yes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granted {
    /// The session's one id.
    pub session: SessionId,
    /// Number of this pipe in its session, from 0.
    pub pipe: u32,
    /// 64 hex digits. With it the client resumes this pipe; that of a session's first pipe proves
    /// ownership of the session for further ones. Sent once.
    pub secret: HexSecret,
    /// Seconds for which the agent keeps the pipe without a connection; 0: not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub detach: u64,
    /// Seconds since 1970 when the grant ends.
    pub ends_at: i64,
    /// The target that was meant.
    pub target: GrantedTarget,
    /// Ids of the policies that allowed it.
    pub policies: Vec<String>,
    /// What the decision rests on.
    pub assurance: Assurance,
    /// The SSH host CA of the agent (OpenSSH public key line), for kind `ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_ca: Option<String>,
    /// Whether what passes is recorded.
    pub recorded: bool,
    /// The log's state that holds this grant's event.
    pub evidence: Witness,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A target as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantedTarget {
    /// Its key in the inventory.
    pub id: TargetId,
    /// Its name for people.
    pub name: String,
    /// The address and port that were dialled.
    pub address: String,
    /// The target's host key (OpenSSH fingerprint `SHA256:…`) and how it was checked, for `ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<HostKeySeen>,
}

/// A target's host key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostKeySeen {
    /// `SHA256:` and base64, as OpenSSH prints it.
    pub fingerprint: String,
    /// How it was checked.
    pub check: HostKeyCheck,
}

/// How a target's host key was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyCheck {
    /// A host certificate from the configured CA.
    HostCa,
    /// The key pinned for this target before.
    Pinned,
    /// No key was pinned: this one is now.
    FirstUse,
}

/// A state of the audit log and the proof that an event is in it. The client keeps the newest
/// checkpoint of each agent and demands consistency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The checkpoint: a C2SP signed note, whole.
    pub checkpoint: String,
    /// Index of the event's leaf.
    pub leaf: u64,
    /// Hex of the leaf's RFC 6962 hash.
    pub leaf_hash: String,
    /// Hex hashes: RFC 6962 inclusion proof of the leaf in the checkpoint's tree.
    pub proof: Vec<String>,
    /// Hex hashes: RFC 6962 consistency proof from the tree of [`Open::known_size`] (in a
    /// `Close`: of the `Granted`'s checkpoint) to the checkpoint's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consistency: Vec<String>,
}

/// The agent's no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// What kind of no.
    pub code: DenyCode,
    /// One sentence for the person: what failed, on what, why.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Ties this answer to the agent's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// With [`DenyCode::StepUp`]: hex of [`open_hash`], for which an approval is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_hash: Option<String>,
    /// With [`DenyCode::Ambiguous`]: the targets that match, `id name address` each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
}

/// Kinds of denial: what a client may do about them differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyCode {
    /// Policy says no, or nothing says yes.
    Policy,
    /// Policy wants a fresh code for this very `Open`.
    StepUp,
    /// The certificate is expired, denied or not for this agent: enrol again.
    Certificate,
    /// No such target.
    UnknownTarget,
    /// Several targets match.
    Ambiguous,
    /// The target's address may not be dialled.
    ForbiddenAddress,
    /// The target did not answer, or refused.
    TargetUnreachable,
    /// The target's host key is not the pinned one.
    HostKeyChanged,
    /// The target did not let the agent log in.
    TargetLogin,
    /// The evidence cannot be written: nothing opens.
    Evidence,
    /// A limit is reached.
    Limit,
    /// The agent is shutting down.
    Draining,
    /// The request breaks the protocol.
    Protocol,
    /// The agent's fault.
    Internal,
}

/// The end of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// Why it ended.
    pub reason: CloseReason,
    /// One sentence for the person, where `reason` alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit status of the command or shell, for kind `ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u32>,
    /// Bytes of data that the sender of this frame sent.
    pub sent: u64,
    /// Bytes of data that it took.
    pub received: u64,
    /// From the agent: the log's state with the closing event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Witness>,
}

/// Why a pipe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Both directions are done.
    Done,
    /// The client gave up.
    Client,
    /// The target's connection broke.
    Target,
    /// Policy no longer allows it.
    Policy,
    /// The grant's time is over.
    Expired,
    /// The evidence could not be written.
    Evidence,
    /// The recording's quota is used up.
    Quota,
    /// An operator ended it.
    Killed,
    /// The agent is shutting down.
    Draining,
    /// A peer broke the protocol.
    Protocol,
    /// The agent's fault.
    Internal,
}

/// A secret of 32 bytes as hex: printed by nothing, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct HexSecret(String);

impl HexSecret {
    /// Wraps 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hex::encode(bytes))
    }

    /// The 32 bytes, or `None` when a peer sent something else.
    pub fn bytes(&self) -> Option<zeroize::Zeroizing<[u8; 32]>> {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        hex::decode_to_slice(&self.0, bytes.as_mut_slice()).ok()?;
        Some(bytes)
    }
}

impl std::fmt::Debug for HexSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HexSecret(…)")
    }
}

/// The hash that a step-up approval is for: SHA-256 over the body of the `Open` frame with its
/// `approved`, `join` and `known_size` fields absent, as serde_json writes it.
pub fn open_hash(open: &Open) -> [u8; 32] {
    let bare = Open {
        join: None,
        approved: None,
        known_size: None,
        ..open.clone()
    };
    // Serializing plain structs of strings and numbers cannot fail; an empty body matches nothing.
    let body = serde_json::to_vec(&bare).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body);
    digest.as_ref().try_into().unwrap_or([0; 32])
}

/// HMAC-SHA-256 under the session's secret over TLS exporter and session id: shows on a new
/// connection that its client owns the session, without sending the secret again.
pub fn join_proof(secret: &[u8; 32], exporter: &[u8; 32], session: SessionId) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let mut message = b"postern-join-v1".to_vec();
    message.extend_from_slice(exporter);
    message.extend_from_slice(&session.to_bytes());
    hex::encode(aws_lc_rs::hmac::sign(&key, &message))
}

/// TLS exporter label for [`join_proof`]; 32 bytes, no context.
pub const JOIN_EXPORTER: &[u8] = b"EXPORTER-postern-join-v1";

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Open {
        Open {
            target: "web-1".parse().unwrap(),
            kind: OpenKind::Ssh {
                user: "root".parse().unwrap(),
            },
            join: None,
            approved: None,
            known_size: None,
            once: false,
            client: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn the_wire_form_of_open_is_stable() {
        assert_eq!(
            serde_json::to_string(&open()).unwrap(),
            r#"{"target":"web-1","kind":{"type":"ssh","user":"root"},"client":"0.1.0"}"#
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text =
            r#"{"target":"web-1","kind":{"type":"ssh","user":"root"},"client":"x","admin":true}"#;
        assert!(serde_json::from_str::<Open>(text).is_err());
        let text = r#"{"target":"web-1","kind":{"type":"ssh","user":"a,b"},"client":"x"}"#;
        assert!(serde_json::from_str::<Open>(text).is_err());
    }

    #[test]
    fn an_approval_is_for_one_open_alone() {
        let session = SessionId::from_parts(1, 2);
        let approved = Open {
            approved: Some(session),
            ..open()
        };
        assert_eq!(open_hash(&open()), open_hash(&approved));
        let other = Open {
            target: "web-2".parse().unwrap(),
            ..open()
        };
        assert_ne!(open_hash(&open()), open_hash(&other));
    }

    #[test]
    fn a_join_proof_is_worthless_on_another_connection() {
        let session = SessionId::from_parts(1, 2);
        let secret = [7; 32];
        assert_ne!(
            join_proof(&secret, &[1; 32], session),
            join_proof(&secret, &[2; 32], session)
        );
    }

    #[test]
    fn the_session_secret_does_not_print() {
        let secret = HexSecret::new(&[0xab; 32]);
        assert!(!format!("{secret:?}").contains("ab"));
        assert_eq!(*secret.bytes().unwrap(), [0xab; 32]);
    }
}
