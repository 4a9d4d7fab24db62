//! The operating system's keyring, through `keyring-core` and the store of the platform.

use std::sync::Arc;

use keyring_core::{CredentialStore, Error};
use zeroize::Zeroizing;

use crate::config::Environment;

use super::{KeyringError, Ring, WrappingKey};

const SERVICE: &str = "postern";

/// Whether one can be there at all: asking D-Bus for nothing takes time.
pub(super) fn likely(environment: &Environment) -> bool {
    if cfg!(not(target_os = "linux")) {
        return cfg!(target_os = "macos");
    }
    environment.os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || environment
            .path("XDG_RUNTIME_DIR")
            .is_some_and(|folder| folder.join("bus").exists())
}

pub(super) fn write(name: &str, key: &WrappingKey) -> Result<(), KeyringError> {
    entry(name)?.set_secret(key.bytes()).map_err(absent)
}

pub(super) fn read(name: &str) -> Result<Option<WrappingKey>, KeyringError> {
    match entry(name)?.get_secret() {
        Ok(bytes) => {
            let bytes = Zeroizing::new(bytes);
            WrappingKey::from_slice(&bytes)
                .map(Some)
                .ok_or_else(|| KeyringError::Broken("the key has a wrong length".to_owned()))
        }
        Err(Error::NoEntry) => Ok(None),
        Err(error) => Err(absent(error)),
    }
}

pub(super) fn delete(name: &str) -> Result<(), KeyringError> {
    match entry(name)?.delete_credential() {
        Ok(()) | Err(Error::NoEntry) => Ok(()),
        Err(error) => Err(absent(error)),
    }
}

fn entry(name: &str) -> Result<keyring_core::Entry, KeyringError> {
    store()
        .and_then(|store| store.build(SERVICE, name, None))
        .map_err(absent)
}

#[cfg(target_os = "linux")]
fn store() -> keyring_core::Result<Arc<CredentialStore>> {
    let store: Arc<CredentialStore> = zbus_secret_service_keyring_store::Store::new()?;
    Ok(store)
}

#[cfg(target_os = "macos")]
fn store() -> keyring_core::Result<Arc<CredentialStore>> {
    let store: Arc<CredentialStore> = apple_native_keyring_store::keychain::Store::new()?;
    Ok(store)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn store() -> keyring_core::Result<Arc<CredentialStore>> {
    Err(Error::NotSupportedByStore(
        "no keyring is known for this system".to_owned(),
    ))
}

fn absent(error: Error) -> KeyringError {
    KeyringError::Absent {
        ring: Ring::SecretService.name(),
        // Some variants hold the secret; those say so without it.
        cause: match error {
            Error::BadEncoding(_) | Error::BadDataFormat(..) => "its data are malformed".to_owned(),
            error => error.to_string(),
        },
    }
}
