//! A proof, checked field by field before anything is sent to AWS (AWS-FACTS.md B.4, input).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::enroll::{Proof, key_challenge};
use postern_proto::names::SessionId;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::Refusal;
use crate::ca::client::{key_hash, p256_point};

/// Seconds that a proof's date may be off; AWS itself allows 5 to 15 minutes.
const SKEW: i64 = 60;
/// The longest session token, in bytes.
const TOKEN_LIMIT: usize = 8 * 1024;
/// A P-256 SubjectPublicKeyInfo in DER has exactly this many bytes.
const SPKI_LENGTH: usize = 91;
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// A proof whose form is right, whose date is now, and whose key signed this connection.
pub(super) struct CheckedProof {
    proof: Proof,
    /// The new key, DER.
    pub(super) spki: Vec<u8>,
    /// Its SHA-256.
    pub(super) key_hash: [u8; 32],
    /// What it approves, for step-up.
    pub(super) step_up: Option<CheckedStepUp>,
}

/// A step-up whose form is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckedStepUp {
    pub(super) session: SessionId,
    pub(super) open_hash: [u8; 32],
}

impl CheckedProof {
    /// Reads one message and checks it against this connection.
    pub(super) fn read(
        message: &[u8],
        nonce: &[u8; 32],
        exporter: &[u8; 32],
        now: i64,
    ) -> Result<Self, Refusal> {
        let proof: Proof = serde_json::from_slice(message)
            // serde's message may repeat a value: its kind and place are enough.
            .map_err(|e| {
                Refusal::proof(format!(
                    "not a proof: {:?} at column {}",
                    e.classify(),
                    e.column()
                ))
            })?;
        check_credentials(&proof)?;
        check_date(&proof.date, now)?;
        for signature in [&proof.identity_signature, &proof.attest_signature] {
            if !is_signature(signature) {
                return Err(Refusal::proof("a signature is not 64 hex digits"));
            }
        }
        let step_up = check_step_up(&proof)?;
        check_claims(&proof, now)?;
        let spki = check_key(&proof, nonce, exporter)?;
        Ok(Self {
            key_hash: key_hash(&spki),
            proof,
            spki,
            step_up,
        })
    }

    pub(super) fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Serial and code, for the signed AssumeRole.
    pub(super) fn code(&self) -> Option<(&str, &str)> {
        let step_up = self.proof.step_up.as_ref()?;
        Some((&step_up.serial, &step_up.code))
    }
}

/// `ASIA…` with a token, or `AKIA…` without one: AWS's two kinds of access keys.
fn check_credentials(proof: &Proof) -> Result<(), Refusal> {
    let id = &proof.access_key_id;
    let (kind, rest) = id
        .split_at_checked(4)
        .ok_or_else(|| Refusal::proof("the access key id is too short"))?;
    let plain = (12..=124).contains(&rest.len())
        && rest
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if !plain {
        return Err(Refusal::proof("the access key id has the wrong form"));
    }
    match (kind, &proof.session_token, &proof.step_up) {
        ("ASIA", Some(token), None) => check_token(token),
        ("AKIA", None, Some(_)) => Ok(()),
        ("AKIA", None, None) => Err(Refusal::long_term_keys()),
        ("ASIA", None, _) => Err(Refusal::proof("temporary keys without a session token")),
        ("AKIA", Some(_), _) => Err(Refusal::proof("long-term keys with a session token")),
        ("ASIA", Some(_), Some(_)) => Err(Refusal::proof("a step-up is signed by long-term keys")),
        _ => Err(Refusal::proof("the access key id is of an unknown kind")),
    }
}

/// A token goes into a header: printable, no space, bounded.
fn check_token(token: &str) -> Result<(), Refusal> {
    let legal =
        (16..=TOKEN_LIMIT).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
    if legal {
        Ok(())
    } else {
        Err(Refusal::proof("the session token has the wrong form"))
    }
}

fn check_date(date: &str, now: i64) -> Result<(), Refusal> {
    let plain = date.len() == 16 && date.is_ascii();
    let parsed = plain
        .then(|| PrimitiveDateTime::parse(date, DATE).ok())
        .flatten();
    let parsed = parsed.ok_or_else(|| Refusal::proof("the date is not YYYYMMDDTHHMMSSZ"))?;
    let skew = parsed.assume_utc().unix_timestamp() - now;
    if skew.abs() > SKEW {
        return Err(Refusal::clock(skew));
    }
    Ok(())
}

fn is_signature(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// AWS's own patterns: SerialNumber `[\w+=/:,.@-]{9,256}`, TokenCode `[\d]{6}`.
fn is_serial(text: &str) -> bool {
    (9..=256).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+=/:,.@-".contains(&b))
}

fn check_step_up(proof: &Proof) -> Result<Option<CheckedStepUp>, Refusal> {
    let Some(step_up) = &proof.step_up else {
        return Ok(None);
    };
    if !is_serial(&step_up.serial) {
        return Err(Refusal::proof("the MFA serial has the wrong form"));
    }
    if step_up.code.len() != 6 || !step_up.code.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Refusal::proof("the MFA code is not six digits"));
    }
    let mut open_hash = [0; 32];
    if !is_signature(&step_up.open_hash)
        || hex::decode_to_slice(&step_up.open_hash, &mut open_hash).is_err()
    {
        return Err(Refusal::proof("the hash of the Open is not 64 hex digits"));
    }
    Ok(Some(CheckedStepUp {
        session: step_up.session,
        open_hash,
    }))
}

/// Claims change nothing but the end, and that only to shorten it.
fn check_claims(proof: &Proof, now: i64) -> Result<(), Refusal> {
    if proof
        .claimed_serial
        .as_ref()
        .is_some_and(|serial| !is_serial(serial))
    {
        return Err(Refusal::proof("the claimed MFA serial has the wrong form"));
    }
    if proof.claimed_end.is_some_and(|end| end <= now) {
        return Err(Refusal::session_ended());
    }
    Ok(())
}

/// The new key is a P-256 key, and its holder is on this very connection.
fn check_key(proof: &Proof, nonce: &[u8; 32], exporter: &[u8; 32]) -> Result<Vec<u8>, Refusal> {
    let spki = URL_SAFE_NO_PAD
        .decode(&proof.public_key)
        .ok()
        .filter(|spki| spki.len() == SPKI_LENGTH)
        .ok_or_else(|| Refusal::proof("the public key is not base64url of a P-256 key"))?;
    let point = p256_point(&spki).ok_or_else(|| Refusal::proof("the key is not a P-256 key"))?;
    let signature = URL_SAFE_NO_PAD
        .decode(&proof.key_signature)
        .ok()
        .filter(|signature| signature.len() <= 80)
        .ok_or_else(|| Refusal::proof("the key's signature is not base64url"))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(&key_challenge(nonce, exporter), &signature)
        .map_err(|_| {
            Refusal::proof("the new key did not sign this connection's nonce and exporter")
        })?;
    Ok(spki)
}

/// The agent's clock in the form of [`Proof::date`], for tests and messages.
#[cfg(test)]
pub(super) fn date_of(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap()
        .format(DATE)
        .unwrap()
}
