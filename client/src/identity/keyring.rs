//! Where the wrapping key of a kept session is: the operating system's keyring, else the kernel's,
//! else a file under a passphrase. Never beside the file that it opens in the clear.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::KeyringChoice;
use crate::context::Context;

use super::terminal::{self, TerminalError};

mod desktop;
#[cfg(target_os = "linux")]
mod kernel;
mod passphrase;

/// A desktop may have to ask its user to unlock the keyring.
const DEADLINE: Duration = Duration::from_secs(120);

/// 32 random bytes that open one sealed file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WrappingKey(Zeroizing<[u8; 32]>);

impl WrappingKey {
    fn generate() -> Result<Self, KeyringError> {
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice())
            .map_err(|_| KeyringError::Broken("no randomness".to_owned()))?;
        Ok(Self(bytes))
    }

    fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .ok()
            .map(|bytes| Self(Zeroizing::new(bytes)))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappingKey(…)")
    }
}

/// Which keyring holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ring {
    /// The desktop's.
    SecretService,
    /// The Linux kernel's: gone at reboot.
    Kernel,
    /// A file under a passphrase.
    File,
}

impl Ring {
    pub(crate) const ALL: [Self; 3] = [Self::SecretService, Self::Kernel, Self::File];

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SecretService => "secret-service",
            Self::Kernel => "kernel",
            Self::File => "file",
        }
    }
}

/// Why a keyring does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// This system has no such keyring, or it does not answer.
    #[error("the {ring} keyring is not available: {cause}")]
    Absent {
        /// Which.
        ring: &'static str,
        /// Why.
        cause: String,
    },
    /// None of them, and nobody to ask for a passphrase.
    #[error(
        "no keyring is available, and there is no terminal to ask for a passphrase on: \
         the session cannot be kept"
    )]
    Nothing,
    /// The passphrase is not the one.
    #[error("the passphrase is wrong")]
    Passphrase,
    /// The two passphrases differ, or there is none.
    #[error("{0}")]
    NewPassphrase(&'static str),
    /// The passphrase is asked on a terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// What it gave cannot be used.
    #[error("the keyring is broken: {0}")]
    Broken(String),
}

impl KeyringError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Absent { .. } => {
                Some("choose another with POSTERN_KEYRING: auto, kernel or file".to_owned())
            }
            Self::Nothing => Some("run `postern login` on a terminal".to_owned()),
            Self::Passphrase => Some("`postern logout` forgets session and passphrase".to_owned()),
            _ => None,
        }
    }
}

/// What this process knows already, so that it asks for nothing twice.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    keys: HashMap<String, WrappingKey>,
    environment_code_spent: bool,
}

impl Memory {
    /// Whether the code of the environment may be used: once.
    pub(crate) fn spend_environment_code(&self) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut known.environment_code_spent, true)
    }

    fn key(&self, entry: &Entry) -> Option<WrappingKey> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.keys.get(&entry.name).cloned()
    }

    fn keep(&self, entry: &Entry, key: Option<&WrappingKey>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            Some(key) => known.keys.insert(entry.name.clone(), key.clone()),
            None => known.keys.remove(&entry.name),
        };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory(…)")
    }
}

/// Names one wrapping key.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Unique for user, profile and folder.
    pub(crate) name: String,
    /// Where a key under a passphrase is kept.
    pub(crate) file: PathBuf,
}

/// Makes a key and keeps it in the keyring of the user's choice for `lifetime`. A passphrase that
/// was chosen before is asked for again instead of a new one.
pub(crate) async fn create(
    context: &Context,
    entry: &Entry,
    lifetime: Duration,
) -> Result<(Ring, WrappingKey), KeyringError> {
    let key = WrappingKey::generate()?;
    let rings: &[Ring] = match context.keyring {
        KeyringChoice::Auto => &Ring::ALL,
        KeyringChoice::SecretService => &[Ring::SecretService],
        KeyringChoice::Kernel => &[Ring::Kernel],
        KeyringChoice::File => &[Ring::File],
    };
    let mut refused = KeyringError::Nothing;
    for ring in rings {
        if *ring == Ring::File {
            if !context.may_ask {
                return Err(KeyringError::Nothing);
            }
            let key = under_passphrase(context, entry, key).await?;
            context.memory.keep(entry, Some(&key));
            return Ok((*ring, key));
        }
        if *ring == Ring::SecretService && !desktop::likely(&context.environment) {
            refused = KeyringError::Absent {
                ring: ring.name(),
                cause: "there is no D-Bus session".to_owned(),
            };
            continue;
        }
        match store(*ring, entry, &key, lifetime).await {
            Ok(()) => {
                context.memory.keep(entry, Some(&key));
                return Ok((*ring, key));
            }
            Err(error) => {
                context.printer.detail(error.to_string());
                refused = error;
            }
        }
    }
    Err(refused)
}

/// Whether the settings let a key be in that keyring.
pub(crate) fn chosen(context: &Context, ring: Ring) -> bool {
    match context.keyring {
        KeyringChoice::Auto => true,
        KeyringChoice::SecretService => ring == Ring::SecretService,
        KeyringChoice::Kernel => ring == Ring::Kernel,
        KeyringChoice::File => ring == Ring::File,
    }
}

/// Has a key live for `lifetime` from now on, where keys end.
pub(crate) async fn extend(
    ring: Ring,
    entry: &Entry,
    key: &WrappingKey,
    lifetime: Duration,
) -> Result<(), KeyringError> {
    match ring {
        Ring::Kernel => store(ring, entry, key, lifetime).await,
        Ring::SecretService | Ring::File => Ok(()),
    }
}

/// Brings the key from where it is. `None`: it is gone (reboot, logout).
pub(crate) async fn fetch(
    context: &Context,
    ring: Ring,
    entry: &Entry,
) -> Result<Option<WrappingKey>, KeyringError> {
    if let Some(key) = context.memory.key(entry) {
        return Ok(Some(key));
    }
    let name = entry.name.clone();
    let key = match ring {
        Ring::SecretService => blocking(ring, move || desktop::read(&name)).await?,
        Ring::Kernel => blocking(ring, move || kernel_read(&name)).await?,
        Ring::File => read_passphrase(context, entry).await?,
    };
    if let Some(key) = &key {
        context.memory.keep(entry, Some(key));
    }
    Ok(key)
}

/// Destroys the key: what it sealed is unreadable from then on. Absent is fine.
pub(crate) async fn forget(
    context: &Context,
    ring: Ring,
    entry: &Entry,
) -> Result<(), KeyringError> {
    context.memory.keep(entry, None);
    forget_elsewhere(ring, entry).await
}

/// As [`forget`], for a key that another has replaced.
pub(crate) async fn forget_elsewhere(ring: Ring, entry: &Entry) -> Result<(), KeyringError> {
    let name = entry.name.clone();
    match ring {
        Ring::SecretService => blocking(ring, move || desktop::delete(&name)).await,
        Ring::Kernel => blocking(ring, move || kernel_delete(&name)).await,
        Ring::File => passphrase::delete(&entry.file),
    }
}

/// Writes and reads again: a keyring that forgets at once does not serve.
async fn store(
    ring: Ring,
    entry: &Entry,
    key: &WrappingKey,
    lifetime: Duration,
) -> Result<(), KeyringError> {
    let (name, key) = (entry.name.clone(), key.clone());
    blocking(ring, move || {
        let read = match ring {
            Ring::SecretService => {
                desktop::write(&name, &key)?;
                desktop::read(&name)?
            }
            _ => {
                kernel_write(&name, &key, lifetime)?;
                kernel_read(&name)?
            }
        };
        if read.as_ref() == Some(&key) {
            Ok(())
        } else {
            Err(KeyringError::Absent {
                ring: ring.name(),
                cause: "it does not give back what was kept in it".to_owned(),
            })
        }
    })
    .await
}

async fn under_passphrase(
    context: &Context,
    entry: &Entry,
    key: WrappingKey,
) -> Result<WrappingKey, KeyringError> {
    if let Some(known) = read_passphrase(context, entry).await? {
        return Ok(known);
    }
    let first = terminal::ask_hidden("New passphrase for the kept session: ").await?;
    if first.is_empty() {
        return Err(KeyringError::NewPassphrase("the passphrase is empty"));
    }
    let second = terminal::ask_hidden("The same again: ").await?;
    if *first != *second {
        return Err(KeyringError::NewPassphrase("the two passphrases differ"));
    }
    let file = entry.file.clone();
    let kept = key.clone();
    blocking(Ring::File, move || passphrase::write(&file, &first, &kept)).await?;
    Ok(key)
}

async fn read_passphrase(
    context: &Context,
    entry: &Entry,
) -> Result<Option<WrappingKey>, KeyringError> {
    if !entry.file.exists() {
        return Ok(None);
    }
    if !context.may_ask {
        return Err(TerminalError::None.into());
    }
    let answer = terminal::ask_hidden("Passphrase of the kept session: ").await?;
    let file = entry.file.clone();
    blocking(Ring::File, move || passphrase::read(&file, &answer)).await
}

/// Keyrings block, and may wait for somebody to unlock them.
async fn blocking<T: Send + 'static>(
    ring: Ring,
    work: impl FnOnce() -> Result<T, KeyringError> + Send + 'static,
) -> Result<T, KeyringError> {
    tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work))
        .await
        .map_err(|_| KeyringError::Absent {
            ring: ring.name(),
            cause: "it did not answer in time".to_owned(),
        })?
        .map_err(|error| KeyringError::Broken(error.to_string()))?
}

/// Removes a test's key from the kernel.
#[cfg(test)]
pub(crate) fn forget_for_test(entry: &Entry) {
    let _ = kernel_delete(&entry.name);
}

#[cfg(target_os = "linux")]
use kernel::{delete as kernel_delete, read as kernel_read, write as kernel_write};

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::{Duration, KeyringError, Ring, WrappingKey};

    fn absent() -> KeyringError {
        KeyringError::Absent {
            ring: Ring::Kernel.name(),
            cause: "this is not Linux".to_owned(),
        }
    }
    pub(super) fn kernel_write(_: &str, _: &WrappingKey, _: Duration) -> Result<(), KeyringError> {
        Err(absent())
    }
    pub(super) fn kernel_read(_: &str) -> Result<Option<WrappingKey>, KeyringError> {
        Err(absent())
    }
    pub(super) fn kernel_delete(_: &str) -> Result<(), KeyringError> {
        Ok(())
    }
}
#[cfg(not(target_os = "linux"))]
use elsewhere::{kernel_delete, kernel_read, kernel_write};
