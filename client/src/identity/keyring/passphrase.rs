//! A wrapping key in a file under a passphrase: age with scrypt.

use std::path::Path;

use age::scrypt;
use age::secrecy::SecretString;
use zeroize::Zeroizing;

use crate::config::read_small;
use crate::identity::store::write_private;

use super::{KeyringError, WrappingKey};

const FILE_LIMIT: u64 = 16 * 1024;
/// 2^17: about half a second on a small machine. Fixed, so that a busy moment cannot weaken it.
const WORK_FACTOR: u8 = 17;

pub(super) fn write(file: &Path, passphrase: &str, key: &WrappingKey) -> Result<(), KeyringError> {
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase));
    recipient.set_work_factor(WORK_FACTOR);
    let sealed = age::encrypt(&recipient, key.bytes())
        .map_err(|error| KeyringError::Broken(error.to_string()))?;
    write_private(file, &sealed).map_err(|error| KeyringError::Broken(error.to_string()))
}

/// `None`: there is no such file.
pub(super) fn read(file: &Path, passphrase: &str) -> Result<Option<WrappingKey>, KeyringError> {
    if !file.exists() {
        return Ok(None);
    }
    let broken = |cause: String| KeyringError::Broken(format!("`{}`: {cause}", file.display()));
    let sealed = read_small("the wrapping key", file, FILE_LIMIT)
        .map_err(|error| broken(error.to_string()))?;
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase));
    identity.set_max_work_factor(WORK_FACTOR);
    match age::decrypt(&identity, &sealed) {
        Ok(bytes) => {
            let bytes = Zeroizing::new(bytes);
            WrappingKey::from_slice(&bytes)
                .map(Some)
                .ok_or_else(|| broken("the key has a wrong length".to_owned()))
        }
        Err(age::DecryptError::DecryptionFailed | age::DecryptError::NoMatchingKeys) => {
            Err(KeyringError::Passphrase)
        }
        Err(error) => Err(broken(error.to_string())),
    }
}

pub(super) fn delete(file: &Path) -> Result<(), KeyringError> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KeyringError::Broken(format!(
            "`{}`: {error}",
            file.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.age");
        assert_eq!(read(&file, "x").unwrap(), None);
        let key = WrappingKey::generate().unwrap();
        write(&file, "correct horse", &key).unwrap();
        assert_eq!(read(&file, "correct horse").unwrap(), Some(key.clone()));
        assert_eq!(read(&file, "wrong"), Err(KeyringError::Passphrase));
        let stored = std::fs::read(&file).unwrap();
        assert!(!stored.windows(32).any(|window| window == key.bytes()));
        delete(&file).unwrap();
        assert_eq!(read(&file, "correct horse").unwrap(), None);
        delete(&file).unwrap();
    }
}
