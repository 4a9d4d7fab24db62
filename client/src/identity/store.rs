//! What a login leaves behind, sealed: sessions, the client's key, certificates.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::context::Context;

use super::keyring::{self, Entry, KeyringError, Ring, WrappingKey};
use super::sealed::SealedFile;
use super::secret::Secret;
use super::sts::{Caller, TemporaryKeys, now};

/// Longer than anybody needs for a login at a terminal.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);

/// Everything that one login gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Who AWS says that it is.
    pub caller: Caller,
    /// The MFA device.
    pub serial: String,
    /// `host[:port]` of the STS that gave the session.
    pub sts_host: String,
    /// The long-term key that it was asked with; its id alone.
    pub long_term_key_id: String,
    /// When the code was given, in seconds since 1970: AWS counts the age of MFA from there.
    pub mfa_at: i64,
    /// When a code was spent last, in seconds since 1970.
    pub code_at: i64,
    /// The user session: enrols at agents.
    pub user: TemporaryKeys,
    /// The role session: makes EC2 and SSM calls.
    pub role: Option<RoleSession>,
    /// The client's key for this login: PKCS#8, base64.
    pub client_key: Secret,
    /// Certificates by agent.
    pub certificates: Vec<Certificate>,
}

/// A role that was assumed from the user session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoleSession {
    /// The role.
    pub arn: String,
    /// Its credentials.
    pub session: TemporaryKeys,
}

/// A certificate that an agent issued for the client's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The agent's id.
    pub agent: String,
    /// Hash of the server CA that was pinned then.
    pub pin: String,
    /// PEM: leaf, then the agent's intermediate.
    pub chain: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Kept {
    /// Whether the user session still lives, with a minute to use it in.
    pub fn lives(&self) -> bool {
        self.user.ends_at > now() + 60
    }
}

/// Why nothing can be kept or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The folder or a file in it.
    #[error("`{}`: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Somebody changed the file, or it is of another version.
    #[error("the kept session `{}` cannot be opened: {cause}", path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: &'static str,
    },
    /// Another login takes too long.
    #[error("another `postern` is logging in for this profile and does not end")]
    Locked,
}

impl StoreError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Keyring(error) => error.hint(),
            Self::Sealed { .. } => Some("postern logout".to_owned()),
            Self::File { .. } => Some("check the folder's owner and permissions".to_owned()),
            Self::Locked => None,
        }
    }

    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::File {
            path,
            cause: error.to_string(),
        }
    }
}

/// The kept session of one profile.
pub(crate) struct Store<'a> {
    context: &'a Context,
    file: SealedFile,
}

/// Where a login will be kept.
pub(crate) struct Place {
    ring: Ring,
    key: WrappingKey,
    before: Option<Ring>,
}

/// Held by whoever logs in or renews; released when dropped.
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock lives as long as the file")] File);

impl<'a> Store<'a> {
    /// Of the context's profile.
    pub(crate) fn new(context: &'a Context) -> Self {
        Self::of(context, &context.profile)
    }

    fn of(context: &'a Context, profile: &str) -> Self {
        let folder = context.state.join("sessions");
        let name = file_name(profile);
        Self {
            context,
            file: SealedFile {
                path: folder.join(format!("{name}.sealed")),
                entry: Entry {
                    name: format!("{profile} in {}", context.state.display()),
                    file: folder.join(format!("{name}.key.age")),
                },
            },
        }
    }

    /// The keyring entry of the session's key.
    pub(crate) fn entry(&self) -> &Entry {
        &self.file.entry
    }

    /// Waits for its turn: two logins at a time would burn one code twice.
    pub(crate) async fn lock(&self) -> Result<Lock, StoreError> {
        let path = self.file.path.with_extension("lock");
        self.make_folder()?;
        let file = private()
            .create(true)
            .open(&path)
            .map_err(StoreError::file(&path))?;
        let wait = tokio::task::spawn_blocking(move || {
            rustix::fs::flock(&file, FlockOperation::LockExclusive).map(|()| Lock(file))
        });
        tokio::time::timeout(LOCK_DEADLINE, wait)
            .await
            .map_err(|_| StoreError::Locked)?
            .map_err(|_| StoreError::Locked)?
            .map_err(|error| StoreError::file(&path)(error.into()))
    }

    /// What was kept, if its key is still there.
    pub(crate) async fn load(&self) -> Result<Option<Kept>, StoreError> {
        let Some((ring, sealed)) = self.read()? else {
            return Ok(None);
        };
        let Some(key) = keyring::fetch(self.context, ring, &self.file.entry).await? else {
            return Ok(None);
        };
        self.file.open(ring, &key, &sealed).map(Some)
    }

    /// The keyring that the kept session's key is in.
    pub(crate) fn ring(&self) -> Result<Option<Ring>, StoreError> {
        Ok(self.read()?.map(|(ring, _)| ring))
    }

    /// Finds the key that a new login will be kept under, before a code is spent: the one that
    /// is there, if it is in a keyring of the user's choice, else a new one.
    pub(crate) async fn prepare(&self, lifetime: Duration) -> Result<Place, StoreError> {
        self.make_folder()?;
        let before = self.read().ok().flatten().map(|(ring, _)| ring);
        if let Some(ring) = before.filter(|ring| keyring::chosen(self.context, *ring))
            && let Ok(Some(key)) = keyring::fetch(self.context, ring, &self.file.entry).await
        {
            return Ok(Place { ring, key, before });
        }
        let (ring, key) = keyring::create(self.context, &self.file.entry, lifetime).await?;
        Ok(Place { ring, key, before })
    }

    /// Keeps a new login.
    pub(crate) async fn keep(&self, place: &Place, kept: &Kept) -> Result<(), StoreError> {
        // The keyring's entry may go when the session does, a little later.
        let lifetime = u64::try_from(kept.user.ends_at - now() + 3600).unwrap_or(3600);
        keyring::extend(
            place.ring,
            &self.file.entry,
            &place.key,
            Duration::from_secs(lifetime),
        )
        .await?;
        self.file.write(place.ring, &place.key, kept)?;
        match place.before {
            Some(before) if before != place.ring => {
                Ok(keyring::forget_elsewhere(before, &self.file.entry).await?)
            }
            _ => Ok(()),
        }
    }

    /// Replaces what is kept, under the key that it has.
    pub(crate) async fn update(&self, kept: &Kept) -> Result<(), StoreError> {
        let Some((ring, _)) = self.read()? else {
            // Logged out meanwhile: what a person threw away must not come back.
            return Ok(());
        };
        let Some(key) = keyring::fetch(self.context, ring, &self.file.entry).await? else {
            return Ok(());
        };
        self.file.write(ring, &key, kept)
    }

    /// Destroys key and file. `true`: there was something.
    pub(crate) async fn wipe(&self) -> Result<bool, StoreError> {
        let existed = self.file.path.exists();
        // A damaged file does not say which keyring; then every one that may hold a key is asked.
        let rings = match self.read() {
            Ok(Some((ring, _))) => vec![ring],
            Ok(None) => vec![Ring::File],
            Err(_) => vec![Ring::Kernel, Ring::File],
        };
        // The file goes first: it is what a command looks for.
        remove(&self.file.path)?;
        for ring in rings {
            keyring::forget(self.context, ring, &self.file.entry).await?;
        }
        Ok(existed)
    }

    fn read(&self) -> Result<Option<(Ring, Vec<u8>)>, StoreError> {
        self.file.read()
    }

    /// What a test leaves in the kernel's keyring.
    #[cfg(test)]
    pub(crate) fn forget_for_test(&self) {
        keyring::forget_for_test(&self.file.entry);
    }

    fn make_folder(&self) -> Result<(), StoreError> {
        let folder = self.file.path.parent().unwrap_or(&self.file.path);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(StoreError::file(folder))
    }
}

/// Profiles that were logged in, by the names of their files.
pub(crate) fn profiles(context: &Context) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(context.state.join("sessions")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            profile_of(name.strip_suffix(".sealed")?)
        })
        .collect()
}

/// The store of another profile.
pub(crate) fn of<'a>(context: &'a Context, profile: &str) -> Store<'a> {
    Store::of(context, profile)
}

/// Writes a file that only its owner may read: beside, synced, then in its place.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(io::Error::other)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", hex::encode(random)));
    let beside = folder.join(name);
    let written = private()
        .create_new(true)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written?;
    File::open(folder)?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::file(path)(error)),
        _ => Ok(()),
    }
}

/// A profile's name as part of a file's: what is not plain becomes `%` and hex digits.
pub(crate) fn file_name(profile: &str) -> String {
    let mut name = String::with_capacity(profile.len());
    for byte in profile.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    name
}

fn profile_of(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = after.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
