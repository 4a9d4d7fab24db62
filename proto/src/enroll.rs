//! Enrolment: AWS attests who calls and that MFA was used (DESIGN.md section 3, AWS-FACTS.md B).
//!
//! Messages are single JSON lines over TLS with ALPN `postern-enroll/1`, each at most
//! [`MESSAGE_LIMIT`] bytes with its line feed:
//!
//! ```text
//! agent  ──▶ Challenge   nonce, agent id, attestation role, STS host, time
//! client ──▶ Proof       key id, token, region, date, two signatures, the new key's signature
//! agent  ──▶ Outcome     a certificate, an approval (step-up), or a refusal
//! ```
//!
//! The two signed requests never travel. Both sides build them from the same constants with
//! [`StsRequest`]: the client to sign them, the agent to send them. There is nothing to parse, so
//! nothing that can be parsed differently from how AWS reads it (CVE-2022-2385).

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::names::{AgentId, SessionId};
use crate::wire::Writer;

/// The longest message, with its line feed: a session token may be 8 KiB.
pub const MESSAGE_LIMIT: usize = 16 * 1024;
/// TLS exporter label of the channel binding; 32 bytes, no context (RFC 9266 in spirit).
pub const EXPORTER: &[u8] = b"EXPORTER-postern-enroll-v1";
/// The signed header that carries the bind. Not named `x-amz-*`: those have meaning to AWS.
pub const BIND_HEADER: &str = "postern-bind";
/// The session policy inside the signed AssumeRole: whoever holds the answer can do nothing.
pub const DENY_ALL: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#;
/// Seconds that the attestation role's session lives: AWS's shortest.
const ATTEST_SECONDS: &str = "900";
const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The agent's first message. The nonce is good for this connection and one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// 32 random bytes, hex.
    pub nonce: String,
    /// Who asks. The client compares it with its own profile.
    pub agent: AgentId,
    /// The role that attests MFA. The client compares it with its own profile.
    pub role: String,
    /// `host[:port]` of the STS endpoint that the agent will send to.
    pub sts_host: String,
    /// The region that the requests are signed for.
    pub region: String,
    /// The agent's clock in seconds since 1970, so that skew is told and not guessed.
    pub time: i64,
}

/// The client's one message.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `ASIA…` of a user session, `AKIA…` for step-up.
    pub access_key_id: String,
    /// The session token; absent for long-term keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    /// `YYYYMMDDTHHMMSSZ`, signed in both requests.
    pub date: String,
    /// Hex signature of the GetCallerIdentity request.
    pub identity_signature: String,
    /// Hex signature of the AssumeRole request.
    pub attest_signature: String,
    /// The client's new P-256 public key: SubjectPublicKeyInfo, DER, base64url without padding.
    pub public_key: String,
    /// ECDSA signature (ASN.1, base64url without padding) by that key over [`key_challenge`].
    pub key_signature: String,
    /// Step-up alone: the device and its code, as they stand in the signed AssumeRole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_up: Option<StepUp>,
    /// When the user session ends, in seconds since 1970: a claim, which may only shorten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_end: Option<i64>,
    /// The MFA device's serial: a claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_serial: Option<String>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// A fresh act for one `Open`.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct StepUp {
    /// ARN of the MFA device.
    pub serial: String,
    /// The six digits.
    pub code: String,
    /// The session that the denial named.
    #[zeroize(skip)]
    pub session: SessionId,
    /// Hex of [`crate::gateway::message::open_hash`].
    pub open_hash: String,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Outcome {
    /// A certificate for the new key.
    Issued {
        /// PEM: the client's certificate, then the agent's intermediate.
        chain: String,
        /// Seconds since 1970 when it ends.
        not_after: i64,
    },
    /// The step-up is held by the agent for this key and this `Open`, once.
    Approved {
        /// Seconds since 1970 when it lapses.
        until: i64,
    },
    /// Neither.
    Refused {
        /// What kind of no.
        code: RefuseCode,
        /// One sentence for the person.
        message: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseCode {
    /// AWS does not know these credentials, or they ended.
    Credentials,
    /// AWS does not attest MFA within the bound for them.
    Mfa,
    /// The caller may not enrol here: account, root, federated user, deny list.
    Caller,
    /// The client's clock is off by more than the agent accepts.
    Clock,
    /// The proof is malformed or not for this connection.
    Proof,
    /// Enrolment is closed: the agent's own check of its attestation role failed.
    Closed,
    /// A limit is reached.
    Limit,
    /// STS could not be asked, or its answer could not be trusted.
    Sts,
}

impl RefuseCode {
    /// Whether a new login may help.
    pub fn wants_login(self) -> bool {
        matches!(self, Self::Credentials | Self::Mfa)
    }
}

/// All that the bind covers.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// The agent.
    pub agent: &'a AgentId,
    /// Its nonce.
    pub nonce: &'a [u8; 32],
    /// The client's new key: SubjectPublicKeyInfo, DER.
    pub public_key: &'a [u8],
    /// 32 bytes of the TLS exporter [`EXPORTER`].
    pub exporter: &'a [u8; 32],
    /// Step-up: the session and the hash of its `Open`.
    pub step_up: Option<(SessionId, &'a [u8; 32])>,
}

impl Binding<'_> {
    /// 43 characters, legal in RoleSessionName: SHA-256 over everything, each part behind its
    /// length.
    pub fn bind(&self) -> String {
        let mut writer = Writer::new()
            .vec32(b"postern-enroll-v1")
            .vec32(self.agent.as_str().as_bytes())
            .vec32(self.nonce)
            .vec32(self.public_key)
            .vec32(self.exporter);
        if let Some((session, open_hash)) = self.step_up {
            writer = writer.vec32(&session.to_bytes()).vec32(open_hash);
        }
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &writer.finish()))
    }
}

/// What the new key signs: nonce and exporter, behind a label of its own.
pub fn key_challenge(nonce: &[u8; 32], exporter: &[u8; 32]) -> Vec<u8> {
    Writer::new()
        .vec32(b"postern-enroll-key-v1")
        .vec32(nonce)
        .vec32(exporter)
        .finish()
}

/// One of the two POSTs to `https://HOST/`, complete but for its signature.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct StsRequest {
    /// `host[:port]`.
    pub host: String,
    /// Headers to sign, names in lower case, sorted, `host` included; the date and the token are
    /// the signer's to add (see [`StsRequest::signed_headers`]).
    pub headers: Vec<(String, String)>,
    /// The form body.
    pub body: String,
}

impl StsRequest {
    /// Asks who the caller is.
    pub fn identity(host: &str, bind: &str) -> Self {
        Self::new(
            host,
            bind,
            "Action=GetCallerIdentity&Version=2011-06-15".to_owned(),
        )
    }

    /// Asks for the attestation role: AWS says yes only with MFA within the role's bound. With
    /// `step_up` the device's serial and code stand in the signed body.
    pub fn attest(host: &str, bind: &str, role: &str, step_up: Option<(&str, &str)>) -> Self {
        let mut body = format!(
            "Action=AssumeRole&Version=2011-06-15&RoleArn={}&RoleSessionName={}\
             &DurationSeconds={ATTEST_SECONDS}&Policy={}",
            form(role),
            form(bind),
            form(DENY_ALL)
        );
        if let Some((serial, code)) = step_up {
            body.push_str(&format!(
                "&SerialNumber={}&TokenCode={}",
                form(serial),
                form(code)
            ));
        }
        Self::new(host, bind, body)
    }

    /// Names of all signed headers, as they stand in the Authorization header.
    pub fn signed_headers(with_token: bool) -> &'static str {
        if with_token {
            "content-type;host;postern-bind;x-amz-date;x-amz-security-token"
        } else {
            "content-type;host;postern-bind;x-amz-date"
        }
    }

    /// The Authorization header for a signature made over this request.
    pub fn authorization(
        access_key_id: &str,
        date: &str,
        region: &str,
        with_token: bool,
        signature: &str,
    ) -> String {
        let day = date.get(..8).unwrap_or_default();
        format!(
            "AWS4-HMAC-SHA256 Credential={access_key_id}/{day}/{region}/sts/aws4_request, \
             SignedHeaders={}, Signature={signature}",
            Self::signed_headers(with_token)
        )
    }

    fn new(host: &str, bind: &str, body: String) -> Self {
        let headers = [
            ("content-type", CONTENT_TYPE),
            ("host", host),
            (BIND_HEADER, bind),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        Self {
            host: host.to_owned(),
            headers,
            body,
        }
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986, as SigV4 demands.
fn form(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding<'a>(agent: &'a AgentId, step_up: Option<(SessionId, &'a [u8; 32])>) -> Binding<'a> {
        Binding {
            agent,
            nonce: &[1; 32],
            public_key: b"key",
            exporter: &[2; 32],
            step_up,
        }
    }

    #[test]
    fn the_bind_is_a_legal_role_session_name() {
        let agent = "bastion-1".parse().unwrap();
        let bind = binding(&agent, None).bind();
        assert_eq!(bind.len(), 43);
        assert!(
            bind.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
    }

    #[test]
    fn the_bind_changes_with_every_part() {
        let (agent, other) = ("bastion-1".parse().unwrap(), "bastion-2".parse().unwrap());
        let session = SessionId::from_parts(1, 1);
        let base = binding(&agent, None).bind();
        assert_ne!(base, binding(&other, None).bind());
        assert_ne!(base, binding(&agent, Some((session, &[0; 32]))).bind());
        assert_ne!(
            base,
            Binding {
                nonce: &[9; 32],
                ..binding(&agent, None)
            }
            .bind()
        );
        assert_ne!(
            base,
            Binding {
                public_key: b"other",
                ..binding(&agent, None)
            }
            .bind()
        );
        assert_ne!(
            base,
            Binding {
                exporter: &[9; 32],
                ..binding(&agent, None)
            }
            .bind()
        );
    }

    #[test]
    fn the_attestation_request_always_denies_all() {
        let role = "arn:aws:iam::111122223333:role/attest";
        let request = StsRequest::attest("sts.eu-west-1.amazonaws.com", "b", role, None);
        assert!(
            request
                .body
                .contains("&Policy=%7B%22Version%22%3A%222012-10-17%22")
        );
        assert!(
            request
                .body
                .contains("RoleArn=arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fattest")
        );
        assert!(!request.body.contains("TokenCode"));
    }

    #[test]
    fn a_value_cannot_smuggle_a_parameter() {
        let request = StsRequest::attest("h", "b&RoleArn=x", "r", Some(("s", "1&Policy=y")));
        assert_eq!(request.body.matches('&').count(), 7);
    }

    #[test]
    fn a_proof_does_not_print_its_token() {
        let proof = Proof {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            session_token: Some("canary-token".to_owned()),
            date: String::new(),
            identity_signature: String::new(),
            attest_signature: String::new(),
            public_key: String::new(),
            key_signature: String::new(),
            step_up: None,
            claimed_end: None,
            claimed_serial: None,
        };
        assert!(!format!("{proof:?}").contains("canary"));
    }
}
