//! Files with keys: bounded, checked on the open descriptor (not on the path), wiped after use.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use super::KeyFault;

/// The longest key or certificate file, in bytes.
const FILE_LIMIT: u64 = 64 * 1024;

/// A private key as text: prints nothing, is wiped when dropped.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Wraps a text.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }
    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
    /// The text as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// The folder of keys, and systemd's credentials before it.
#[derive(Debug, Clone)]
pub struct KeyFolder {
    folder: PathBuf,
    credentials: Option<PathBuf>,
}

impl KeyFolder {
    /// The configured folder, with this process's systemd credentials.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// The same with explicit credentials.
    pub fn with_credentials(folder: &Path, credentials: Option<&Path>) -> Self {
        Self {
            folder: folder.to_owned(),
            credentials: credentials.map(Path::to_owned),
        }
    }

    /// Where `name` is read from.
    pub fn path(&self, name: &str) -> PathBuf {
        self.credential(name)
            .unwrap_or_else(|| self.folder.join(name))
    }

    /// A private key.
    pub fn private(&self, name: &str) -> Result<SecretText, KeyFault> {
        match self.credential(name) {
            // systemd opens its folder to this service alone (by ACL, which shows as a group
            // mode) and makes it read-only.
            Some(path) => read(&path, Access::Credential),
            None => read(&self.folder.join(name), Access::Private),
        }
        .and_then(|(path, bytes)| {
            let text = std::str::from_utf8(&bytes).map_err(|_| KeyFault::NotAFile { path })?;
            Ok(SecretText(Zeroizing::new(text.to_owned())))
        })
    }

    /// A certificate or public key.
    pub fn public(&self, name: &str) -> Result<Vec<u8>, KeyFault> {
        read_public(&self.path(name))
    }

    fn credential(&self, name: &str) -> Option<PathBuf> {
        let path = self.credentials.as_ref()?.join(name);
        path.exists().then_some(path)
    }
}

/// Reads a bounded public file.
pub(super) fn read_public(path: &Path) -> Result<Vec<u8>, KeyFault> {
    read(path, Access::Public).map(|(_, bytes)| bytes.to_vec())
}

#[derive(PartialEq, Eq)]
enum Access {
    Public,
    Private,
    Credential,
}

fn read(path: &Path, access: Access) -> Result<(PathBuf, Zeroizing<Vec<u8>>), KeyFault> {
    let fault = |source| KeyFault::Read {
        path: path.to_owned(),
        source,
    };
    // NONBLOCK: opening a FIFO must not wait. A symbolic link is followed only for public files
    // and credentials: a private key's own file is checked, so it must be that file.
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if access == Access::Private {
        flags |= OFlags::NOFOLLOW;
    }
    let descriptor =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| fault(errno.into()))?;
    let mut file = File::from(descriptor);
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() || metadata.len() > FILE_LIMIT {
        return Err(KeyFault::NotAFile {
            path: path.to_owned(),
        });
    }
    if access == Access::Private {
        check_private(path, &metadata)?;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_LIMIT as usize + 1));
    let limited = (&mut file).take(FILE_LIMIT + 1).read_to_end(&mut bytes);
    let length = limited.map_err(fault)?;
    if length as u64 > FILE_LIMIT {
        return Err(KeyFault::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok((path.to_owned(), bytes))
}

fn check_private(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyFault> {
    let user = rustix::process::geteuid().as_raw();
    let owner = metadata.uid();
    if owner != user && owner != 0 {
        return Err(KeyFault::Owner {
            path: path.to_owned(),
            owner,
            user,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFault::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn folder() -> (tempfile::TempDir, KeyFolder) {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyFolder::with_credentials(folder.path(), None);
        (folder, keys)
    }

    fn write(path: &Path, mode: u32) {
        std::fs::write(path, "secret").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_private_key_that_others_may_read_is_refused() {
        let (folder, keys) = folder();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            let path = folder.path().join("k");
            let _ = std::fs::remove_file(&path);
            write(&path, mode);
            let read = keys.private("k");
            assert_eq!(read.is_ok(), good, "{mode:o}");
        }
        let shown = keys.private("k").unwrap_err().to_string();
        assert!(shown.contains("mode 0604") && shown.contains("hint: chmod 600"));
    }

    #[test]
    fn a_private_key_behind_a_link_or_a_pipe_is_refused() {
        let (folder, keys) = folder();
        write(&folder.path().join("real"), 0o600);
        symlink("real", folder.path().join("link")).unwrap();
        assert!(keys.private("link").is_err());
        assert!(keys.public("link").is_ok());
        assert!(matches!(
            KeyFolder::with_credentials(Path::new("/"), None).public("dev"),
            Err(KeyFault::NotAFile { .. })
        ));
        assert!(keys.private("missing").is_err());
    }

    #[test]
    fn a_systemd_credential_wins_over_a_file() {
        let (folder, _) = folder();
        let credentials = tempfile::tempdir().unwrap();
        write(&folder.path().join("k"), 0o600);
        std::fs::write(credentials.path().join("k"), "credential").unwrap();
        let keys = KeyFolder::with_credentials(folder.path(), Some(credentials.path()));
        assert_eq!(keys.private("k").unwrap().text(), "credential");
        write(&folder.path().join("only"), 0o600);
        assert_eq!(keys.private("only").unwrap().text(), "secret");
    }

    #[test]
    fn a_private_key_does_not_print() {
        let text = SecretText::new(Zeroizing::new("canary".to_owned()));
        assert!(!format!("{text:?}").contains("canary"));
    }
}
