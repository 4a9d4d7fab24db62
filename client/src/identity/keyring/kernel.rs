//! The Linux kernel's keyring (keyrings(7)). The user's keyring and not the session's: a login
//! in one SSH session serves the next one too. It lives in kernel memory, until reboot or until
//! its time is over.

use std::time::Duration;

use linux_keyutils::{KeyError, KeyRing, KeyRingIdentifier};
use zeroize::Zeroizing;

use super::{KeyringError, Ring, WrappingKey};

pub(super) fn write(name: &str, key: &WrappingKey, lifetime: Duration) -> Result<(), KeyringError> {
    let (user, _session) = rings()?;
    let stored = user
        .add_key(&description(name), key.bytes())
        .map_err(absent)?;
    let seconds = usize::try_from(lifetime.as_secs()).unwrap_or(usize::MAX);
    stored.set_timeout(seconds).map_err(absent)
}

pub(super) fn read(name: &str) -> Result<Option<WrappingKey>, KeyringError> {
    let (_user, session) = rings()?;
    // Found from the session's keyring, the key is in our possession and may be read.
    let found = match session.search(&description(name)) {
        Ok(found) => found,
        Err(KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked) => {
            return Ok(None);
        }
        Err(error) => return Err(absent(error)),
    };
    let bytes = Zeroizing::new(found.read_to_vec().map_err(absent)?);
    WrappingKey::from_slice(&bytes)
        .map(Some)
        .ok_or_else(|| KeyringError::Broken("the key has a wrong length".to_owned()))
}

pub(super) fn delete(name: &str) -> Result<(), KeyringError> {
    let (_user, session) = rings()?;
    match session.search(&description(name)) {
        Ok(found) => found.invalidate().map_err(absent),
        Err(KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked) => Ok(()),
        Err(error) => Err(absent(error)),
    }
}

/// The user's keyring, and the session's with a link to it: without the link nothing in the
/// user's keyring is ours to read where a login made a session keyring of its own.
fn rings() -> Result<(KeyRing, KeyRing), KeyringError> {
    let user = KeyRing::from_special_id(KeyRingIdentifier::User, true).map_err(absent)?;
    let session = KeyRing::from_special_id(KeyRingIdentifier::Session, true).map_err(absent)?;
    session.link_keyring(user).map_err(absent)?;
    Ok((user, session))
}

fn description(name: &str) -> String {
    format!("postern:{name}")
}

fn absent(error: KeyError) -> KeyringError {
    KeyringError::Absent {
        ring: Ring::Kernel.name(),
        cause: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_replaced_and_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("test in {}", folder.path().display());
        let (first, second) = (
            WrappingKey::generate().unwrap(),
            WrappingKey::generate().unwrap(),
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(read(&name).unwrap(), None);
        write(&name, &first, hour).unwrap();
        assert_eq!(read(&name).unwrap(), Some(first));
        write(&name, &second, hour).unwrap();
        assert_eq!(read(&name).unwrap(), Some(second));
        delete(&name).unwrap();
        assert_eq!(read(&name).unwrap(), None);
        delete(&name).unwrap();
    }
}
