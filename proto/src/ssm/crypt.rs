//! Encryption of a session whose data key came from KMS.
//!
//! AES-256-GCM without associated data; a sealed payload is nonce (12 bytes), ciphertext and tag
//! (16 bytes). Source: plugin `encryption/encrypter.go`, SSM Agent `session/crypto/`.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Role;

/// Bytes that sealing adds to a payload.
pub const OVERHEAD: usize = NONCE + TAG;

const NONCE: usize = 12;
const TAG: usize = 16;
const HALF: usize = 32;

/// What GenerateDataKey and Decrypt give in plain: 64 bytes, the first half for the direction
/// from SSM Agent to client. Never printed, wiped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; 2 * HALF]);

impl SessionKey {
    /// How many bytes to ask KMS for.
    pub const LENGTH: usize = 2 * HALF;

    /// Takes the plaintext of the data key; `None` unless it is 64 bytes.
    pub fn new(plaintext: &[u8]) -> Option<Self> {
        plaintext.try_into().ok().map(Self)
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

/// A payload that was not made with the session's key, or a failure of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the payload is not encrypted with the session's key")]
pub struct CryptError;

/// Both directions of one side.
pub(super) struct Cipher {
    seal: LessSafeKey,
    open: LessSafeKey,
    // Counted up from a random start: a data key serves one session, and a side one direction.
    nonce: u128,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(…)")
    }
}

impl Cipher {
    pub(super) fn new(
        role: Role,
        key: &SessionKey,
        first_nonce: [u8; 16],
    ) -> Result<Self, CryptError> {
        let (from_agent, from_client) = key.0.split_at(HALF);
        let key = |half| {
            UnboundKey::new(&AES_256_GCM, half)
                .map(LessSafeKey::new)
                .map_err(|_| CryptError)
        };
        let (seal, open) = match role {
            Role::Client => (from_client, from_agent),
            Role::Agent => (from_agent, from_client),
        };
        Ok(Self {
            seal: key(seal)?,
            open: key(open)?,
            nonce: u128::from_le_bytes(first_nonce),
        })
    }

    pub(super) fn seal(&mut self, plaintext: &[u8]) -> Result<Bytes, CryptError> {
        self.nonce = self.nonce.wrapping_add(1);
        let bytes = self.nonce.to_le_bytes();
        let nonce = *bytes.first_chunk::<NONCE>().ok_or(CryptError)?;
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let body = sealed.get_mut(NONCE..).ok_or(CryptError)?;
        let tag = self
            .seal
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), body)
            .map_err(|_| CryptError)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed.into())
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Result<Bytes, CryptError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE>().ok_or(CryptError)?;
        let mut body = body.to_vec();
        let length = self
            .open
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::empty(),
                &mut body,
            )
            .map_err(|_| CryptError)?
            .len();
        body.truncate(length);
        Ok(body.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Cipher, Cipher) {
        let key = SessionKey::new(&std::array::from_fn::<u8, 64, _>(|place| place as u8)).unwrap();
        (
            Cipher::new(Role::Client, &key, [0xff; 16]).unwrap(),
            Cipher::new(Role::Agent, &key, [0; 16]).unwrap(),
        )
    }

    #[test]
    fn each_direction_has_its_own_half_of_the_key() {
        let (mut client, mut agent) = pair();
        let sealed = client.seal(b"hello").unwrap();
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        assert_eq!(agent.open(&sealed).unwrap(), "hello");
        assert_eq!(client.open(&sealed), Err(CryptError), "reflected");
        let back = agent.seal(b"there").unwrap();
        assert_eq!(client.open(&back).unwrap(), "there");
    }

    #[test]
    fn a_changed_or_short_payload_is_refused() {
        let (mut client, agent) = pair();
        let sealed = client.seal(b"hello").unwrap();
        for place in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[place] ^= 1;
            assert_eq!(agent.open(&changed), Err(CryptError));
            assert_eq!(agent.open(&sealed[..place]), Err(CryptError));
        }
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let (mut client, _) = pair();
        let nonces: std::collections::HashSet<_> = (0..100)
            .map(|_| client.seal(b"").unwrap()[..NONCE].to_vec())
            .collect();
        assert_eq!(nonces.len(), 100);
    }

    #[test]
    fn a_key_of_another_length_is_no_key() {
        assert!(SessionKey::new(&[0; 32]).is_none());
        assert!(!format!("{:?}", SessionKey::new(&[7; 64])).contains('7'));
    }
}
