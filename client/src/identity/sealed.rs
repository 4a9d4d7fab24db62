//! A file that one key of a keyring opens.

use std::path::PathBuf;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::config::read_small;

use super::keyring::{Entry, Ring, WrappingKey};
use super::store::{StoreError, write_private};

const FILE_LIMIT: u64 = 1024 * 1024;
const MAGIC: &str = "postern-sealed 1";

/// Where it is, and under which name its key is kept. It says itself in which keyring.
pub(crate) struct SealedFile {
    pub(crate) path: PathBuf,
    pub(crate) entry: Entry,
}

impl SealedFile {
    /// The keyring that its key is in, and what is sealed; `None` when there is no file.
    pub(crate) fn read(&self) -> Result<Option<(Ring, Vec<u8>)>, StoreError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let bytes = read_small("the kept session", &self.path, FILE_LIMIT).map_err(|error| {
            StoreError::File {
                path: self.path.clone(),
                cause: error.to_string(),
            }
        })?;
        let parsed = std::str::from_utf8(&bytes).ok().and_then(|text| {
            let (head, body) = text.split_once('\n')?;
            let name = head.strip_prefix(MAGIC)?.strip_prefix(' ')?;
            let ring = Ring::ALL.into_iter().find(|ring| ring.name() == name)?;
            Some((ring, STANDARD.decode(body.trim_end()).ok()?))
        });
        parsed.map(Some).ok_or_else(|| self.sealed("it is damaged"))
    }

    /// Seals `value` and puts it in the file's place.
    pub(crate) fn write(
        &self,
        ring: Ring,
        key: &WrappingKey,
        value: &impl Serialize,
    ) -> Result<(), StoreError> {
        let mut plain = Zeroizing::new(Vec::with_capacity(16 * 1024));
        serde_json::to_writer(&mut *plain, value)
            .map_err(|_| self.sealed("it has no JSON form"))?;
        let failed = |_| self.sealed("it cannot be encrypted");
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, key.bytes()).map_err(failed)?;
        let nonce = cipher
            .seal_in_place_append_tag(Aad::from(self.bound(ring)), &mut *plain)
            .map_err(failed)?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&plain);
        let text = format!("{MAGIC} {}\n{}\n", ring.name(), STANDARD.encode(sealed));
        write_private(&self.path, text.as_bytes()).map_err(StoreError::file(&self.path))
    }

    /// Opens what [`Self::read`] gave.
    pub(crate) fn open<T: DeserializeOwned>(
        &self,
        ring: Ring,
        key: &WrappingKey,
        sealed: &[u8],
    ) -> Result<T, StoreError> {
        let failed = |_| self.sealed("it was changed, or sealed under another key");
        let (nonce, body) = sealed
            .split_at_checked(12)
            .ok_or_else(|| self.sealed("it is damaged"))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, key.bytes()).map_err(failed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = cipher
            .open_in_place(nonce, Aad::from(self.bound(ring)), &mut body)
            .map_err(failed)?;
        serde_json::from_slice(plain).map_err(|_| self.sealed("it is of another version"))
    }

    /// A file cannot be passed off as another one.
    fn bound(&self, ring: Ring) -> Vec<u8> {
        format!("{MAGIC} {}\n{}", ring.name(), self.entry.name).into_bytes()
    }

    fn sealed(&self, cause: &'static str) -> StoreError {
        StoreError::Sealed {
            path: self.path.clone(),
            cause,
        }
    }
}
