//! Writing the encrypted file: header and records, as bytes for the caller to write.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::name::RecordingName;
use crate::wire::Writer;

/// What every recording starts with.
pub const MAGIC: &[u8; 8] = b"PSTNREC1";
/// The longest plaintext of one record.
pub const RECORD_LIMIT: usize = 256 * 1024;
/// The longest wrapped key: an age file to some hundred recipients.
pub const WRAPPED_LIMIT: usize = 64 * 1024;
/// The longest name in a header.
pub const NAME_LIMIT: usize = 64;
/// Bytes that sealing adds to each record: flag, length and tag.
pub const OVERHEAD: usize = 1 + 4 + TAG;

pub(super) const TAG: usize = 16;
pub(super) const MORE: u8 = 0;
pub(super) const FINAL: u8 = 1;
const KEY_MAGIC: &[u8] = b"postern-recording-key-v1\n";

/// The key of one recording: 32 random bytes, used for no other file. Never printed, wiped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Takes 32 random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// What the age file holds.
    pub fn to_payload(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut payload = zeroize::Zeroizing::new(KEY_MAGIC.to_vec());
        payload.extend_from_slice(&self.0);
        payload
    }

    /// Reads back what [`Self::to_payload`] made.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        let key = payload.strip_prefix(KEY_MAGIC)?;
        Some(Self(key.try_into().ok()?))
    }

    pub(super) fn cipher(&self) -> Result<LessSafeKey, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, &self.0).map_err(|_| SealError::Cipher)?;
        Ok(LessSafeKey::new(key))
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(…)")
    }
}

/// Why a record could not be sealed. The recording cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// The final record was sealed before.
    #[error("the recording is finished")]
    Finished,
    /// The wrapped key is longer than [`WRAPPED_LIMIT`].
    #[error("the wrapped key is too long")]
    Wrapped,
    /// The cryptographic library failed.
    #[error("AES-256-GCM failed")]
    Cipher,
}

/// Seals the records of one recording in order.
pub struct Sealer {
    cipher: LessSafeKey,
    header: [u8; 32],
    number: u64,
    finished: bool,
}

impl Sealer {
    /// Starts a file: answers with its header, which is to be written first. `wrapped` is
    /// [`DataKey::to_payload`] as an age file to the auditors.
    pub fn start(
        name: RecordingName,
        key: &DataKey,
        wrapped: &[u8],
    ) -> Result<(Self, Vec<u8>), SealError> {
        if wrapped.len() > WRAPPED_LIMIT {
            return Err(SealError::Wrapped);
        }
        let header = Writer::new()
            .raw(MAGIC)
            .vec32(name.to_string().as_bytes())
            .vec32(wrapped)
            .finish();
        let sealer = Self {
            cipher: key.cipher()?,
            header: header_hash(&header),
            number: 0,
            finished: false,
        };
        Ok((sealer, header))
    }

    /// Seals `plaintext` into as many records as it needs and appends them to `out`. With `last`
    /// the last of them (empty where there is nothing left to say) carries the final flag.
    pub fn seal(
        &mut self,
        plaintext: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        if self.finished {
            return Err(SealError::Finished);
        }
        let records = plaintext.len() / RECORD_LIMIT + 1;
        out.reserve(plaintext.len() + records * OVERHEAD);
        let mut chunks = plaintext.chunks(RECORD_LIMIT).peekable();
        if last && chunks.peek().is_none() {
            self.record(&[], FINAL, out)?;
        }
        while let Some(chunk) = chunks.next() {
            let flag = if last && chunks.peek().is_none() {
                FINAL
            } else {
                MORE
            };
            self.record(chunk, flag, out)?;
        }
        self.finished = last;
        Ok(())
    }

    fn record(&mut self, plaintext: &[u8], flag: u8, out: &mut Vec<u8>) -> Result<(), SealError> {
        let length = u32::try_from(plaintext.len() + TAG).map_err(|_| SealError::Cipher)?;
        out.push(flag);
        out.extend_from_slice(&length.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(plaintext);
        let body = out.get_mut(start..).ok_or(SealError::Cipher)?;
        let tag = self
            .cipher
            .seal_in_place_separate_tag(
                nonce(self.number),
                Aad::from(binding(&self.header, self.number, flag)),
                body,
            )
            .map_err(|_| SealError::Cipher)?;
        out.extend_from_slice(tag.as_ref());
        self.number += 1;
        Ok(())
    }
}

pub(super) fn header_hash(header: &[u8]) -> [u8; 32] {
    digest(&SHA256, header)
        .as_ref()
        .try_into()
        .unwrap_or([0; 32])
}

/// The record's number: a key seals one file, and a file is never reopened for writing.
pub(super) fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    if let Some((_, low)) = bytes.split_last_chunk_mut::<8>() {
        *low = number.to_be_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

/// What a record is bound to besides its content: file (name and wrapped key), place and flag.
pub(super) fn binding(header: &[u8; 32], number: u64, flag: u8) -> [u8; 41] {
    let mut bytes = [0; 41];
    let (hash, rest) = bytes.split_at_mut(32);
    hash.copy_from_slice(header);
    let (place, last) = rest.split_at_mut(8);
    place.copy_from_slice(&number.to_be_bytes());
    last.copy_from_slice(&[flag]);
    bytes
}
