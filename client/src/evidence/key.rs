//! The keys of a client's log: what signs it, and what opens recordings that are encrypted to the
//! user. Kept as a login is: sealed, under a key in the user's keyring. Where that key is gone
//! (a reboot, with the kernel's keyring) the log is over, and a new one names it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use age::secrecy::ExposeSecret as _;
use age::x25519::Identity;
use postern_proto::audit::note::{LogSigner, NoteError, new_key};
use postern_proto::names::AgentId;
use serde::{Deserialize, Serialize};

use super::disk;
use super::lock::{LockError, lock};
use crate::context::Context;
use crate::identity::Ring;
use crate::identity::keyring::{self, Entry, KeyringError};
use crate::identity::sealed::SealedFile;
use crate::identity::secret::Secret;
use crate::identity::store::{Store, StoreError, file_name};

/// As long as a keyring keeps anything.
const FOR_GOOD: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A file that says that recordings are encrypted to the user.
const OWN: &str = "own";
/// The list of logs: a line each.
const LIST_LIMIT: u64 = 1024 * 1024;

/// Why there are no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// The keyring, or the sealed file.
    #[error("its key: {0}")]
    Store(#[from] StoreError),
    /// The folder.
    #[error("{}: {cause}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Another `postern` makes a key and does not end.
    #[error("{0}")]
    Lock(#[from] LockError),
    /// What the keyring opened is no key.
    #[error("its key is damaged: {0}")]
    Damaged(String),
}

impl From<KeyringError> for KeyError {
    fn from(error: KeyringError) -> Self {
        Self::Store(error.into())
    }
}

impl From<NoteError> for KeyError {
    fn from(error: NoteError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What is sealed.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    origin: AgentId,
    signing_key: Secret,
    identity: Secret,
}

/// The keys of the log that is being written.
pub(crate) struct LogKeys {
    /// The log's name.
    pub(crate) origin: AgentId,
    pub(crate) signer: LogSigner,
    /// Opens recordings that are encrypted to the user.
    pub(crate) identity: Identity,
}

impl LogKeys {
    fn of(kept: &Kept) -> Result<Self, KeyError> {
        let identity = kept
            .identity
            .expose()
            .parse()
            .map_err(|why: &str| KeyError::Damaged(why.to_owned()))?;
        Ok(Self {
            origin: kept.origin.clone(),
            signer: LogSigner::new(&kept.origin, kept.signing_key.expose())?,
            identity,
        })
    }
}

/// The keys that are there; `None` when there are none, or their key is gone.
pub(crate) async fn fetch(context: &Context) -> Result<Option<LogKeys>, KeyError> {
    let sealed = place(context)?;
    let Some((ring, bytes)) = sealed.read()? else {
        return Ok(None);
    };
    let Some(key) = keyring::fetch(context, ring, &sealed.entry).await? else {
        return Ok(None);
    };
    let kept: Kept = match sealed.open(ring, &key, &bytes) {
        Ok(kept) => kept,
        // The keyring has a newer key under this name: what the old one sealed is lost.
        Err(StoreError::Sealed { .. }) if ring != Ring::File => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    LogKeys::of(&kept).map(Some)
}

/// The keys that are there, else new ones for a new log. `true`: they are new.
pub(crate) async fn fetch_or_make(context: &Context) -> Result<(LogKeys, bool), KeyError> {
    if let Some(keys) = fetch(context).await? {
        return Ok((keys, false));
    }
    let folder = context.evidence.clone();
    disk::make_folder(&folder).map_err(failed(&folder))?;
    let _held = blocking(move || lock(&folder.join("lock")))
        .await
        .map_err(|cause| KeyError::Damaged(cause.to_string()))??;
    // Another `postern` may have made them while this one waited.
    if let Some(keys) = fetch(context).await? {
        return Ok((keys, false));
    }
    let kept = generate()?;
    let keys = LogKeys::of(&kept)?;
    let sealed = place(context)?;
    let (ring, key) = match login_ring(context)? {
        // The passphrase was asked for once; there is no second one for this.
        Some(Ring::File) => {
            let entry = Store::new(context).entry().clone();
            let key = keyring::fetch(context, Ring::File, &entry).await?;
            (Ring::File, key.ok_or(KeyringError::Nothing)?)
        }
        _ => keyring::create(context, &sealed.entry, FOR_GOOD).await?,
    };
    sealed.write(ring, &key, &kept)?;
    remember(&context.evidence, keys.signer.vkey())?;
    Ok((keys, true))
}

/// Recordings are encrypted to the user from now on: their key is not to be thrown away.
pub(crate) fn is_needed(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(OWN);
    if path.exists() {
        return Ok(());
    }
    disk::put(&path, b"", true)
}

/// Forgets the keys, so that the log is over; but not while recordings can be opened with them
/// alone. Absent is fine.
pub(crate) async fn forget(context: &Context) -> Result<(), KeyError> {
    if context.evidence.join(OWN).exists() {
        return Ok(());
    }
    let sealed = place(context)?;
    if let Some((ring, _)) = sealed.read()?
        && ring != Ring::File
    {
        keyring::forget(context, ring, &sealed.entry).await?;
        std::fs::remove_file(&sealed.path).map_err(failed(&sealed.path))?;
    }
    Ok(())
}

/// Public keys of all logs that this client ever wrote, oldest first.
pub(crate) fn known(folder: &Path) -> Result<Vec<String>, KeyError> {
    let path = folder.join("logs");
    let bytes = disk::read(&path, LIST_LIMIT).map_err(failed(&path))?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}

fn remember(folder: &Path, vkey: &str) -> Result<(), KeyError> {
    let mut known = known(folder)?;
    known.push(vkey.to_owned());
    let path = folder.join("logs");
    let text = known.join("\n") + "\n";
    disk::put(&path, text.as_bytes(), true).map_err(failed(&path))
}

/// With a passphrase each profile has a log of its own, under the passphrase of its login.
fn place(context: &Context) -> Result<SealedFile, KeyError> {
    if login_ring(context)? == Some(Ring::File) {
        let name = file_name(&context.profile);
        return Ok(SealedFile {
            path: context.evidence.join(format!("key-{name}.sealed")),
            entry: Store::new(context).entry().clone(),
        });
    }
    Ok(SealedFile {
        path: context.evidence.join("key.sealed"),
        entry: entry(context),
    })
}

fn entry(context: &Context) -> Entry {
    Entry {
        name: format!("evidence in {}", context.evidence.display()),
        file: context.evidence.join("key.age"),
    }
}

/// Removes a test's key from the kernel.
#[cfg(test)]
pub(crate) fn forget_for_test(context: &Context) {
    keyring::forget_for_test(&entry(context));
}

fn login_ring(context: &Context) -> Result<Option<Ring>, KeyError> {
    Ok(Store::new(context).ring()?)
}

fn generate() -> Result<Kept, KeyError> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    let mut name = [0; 8];
    aws_lc_rs::rand::fill(seed.as_mut_slice())
        .and_then(|()| aws_lc_rs::rand::fill(&mut name))
        .map_err(|_| KeyError::Damaged("no randomness".to_owned()))?;
    let origin: AgentId = format!("client-{}", hex::encode(name))
        .parse()
        .map_err(|error: postern_proto::names::NameError| KeyError::Damaged(error.to_string()))?;
    let (secret, _) = new_key(&origin, &seed)?;
    Ok(Kept {
        origin,
        signing_key: secret.as_str().into(),
        identity: Identity::generate().to_string().expose_secret().into(),
    })
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> KeyError + use<> {
    let path = path.to_owned();
    move |error| KeyError::Folder {
        path,
        cause: error.to_string(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(work).await
}
