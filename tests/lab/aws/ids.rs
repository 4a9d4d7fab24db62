//! Random identifiers in AWS's forms.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand::Rng as _;

use super::totp;

const UPPER_BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

fn characters(count: usize) -> String {
    let mut random = rand::rng();
    (0..count)
        .map(|_| char::from(UPPER_BASE32[random.random_range(0..32)]))
        .collect()
}

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill(&mut bytes[..]);
    bytes
}

/// `AKIA` or `ASIA` and 16 characters.
pub(crate) fn access_key(prefix: &str) -> String {
    format!("{prefix}{}", characters(16))
}

/// `AIDA` or `AROA` and 17 characters.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{}", characters(17))
}

/// 40 characters, as secret access keys have.
pub(crate) fn secret() -> String {
    STANDARD.encode(bytes::<30>())
}

/// About as long as STS's tokens are, so that nobody sizes a buffer for a toy.
pub(crate) fn session_token() -> String {
    format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(bytes::<480>()))
}

/// 160 bits, as RFC 4226 recommends.
pub(crate) fn totp_secret() -> String {
    totp::to_base32(&bytes::<20>())
}

/// A version 4 UUID.
pub(crate) fn request_id() -> String {
    let mut id = bytes::<16>();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let id = hex::encode(id);
    format!(
        "{}-{}-{}-{}-{}",
        &id[..8],
        &id[8..12],
        &id[12..16],
        &id[16..20],
        &id[20..]
    )
}
