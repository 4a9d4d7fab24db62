//! Small age files to the auditors: sealed fields and wrapped data keys. Opening is pure and
//! lives here; sealing draws randomness and is the caller's.

use std::io::Read as _;

use age::x25519::Identity;
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest content of a small age file.
const LIMIT: u64 = 1024 * 1024;

/// Why a small age file could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnsealError {
    /// None of the identities is a recipient.
    #[error("no identity at hand opens it")]
    Identity,
    /// It is not an age file, or was altered.
    #[error("damaged")]
    Damaged,
}

/// Opens a small age file with the first identity that fits.
pub fn open(file: &[u8], identities: &[Identity]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let decryptor = age::Decryptor::new_buffered(file).map_err(|_| UnsealError::Damaged)?;
    let identities = identities
        .iter()
        .map(|identity| identity as &dyn age::Identity);
    let reader = decryptor.decrypt(identities).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => UnsealError::Identity,
        _ => UnsealError::Damaged,
    })?;
    let mut content = Zeroizing::new(Vec::new());
    reader
        .take(LIMIT + 1)
        .read_to_end(&mut content)
        .map_err(|_| UnsealError::Damaged)?;
    if content.len() as u64 > LIMIT {
        return Err(UnsealError::Damaged);
    }
    Ok(content)
}
