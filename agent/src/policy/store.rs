//! The policies in use: read again when their files change, kept when the new ones are broken.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::load::{Policies, PolicyError};
use crate::watch::FolderWatch;

/// Holds the policies in use.
pub struct PolicyStore {
    folder: PathBuf,
    current: watch::Sender<Arc<Policies>>,
    trouble: watch::Sender<Option<Arc<str>>>,
    /// One reload at a time, or an older reading could replace a newer one.
    reloading: Mutex<()>,
}

impl PolicyStore {
    /// Loads a folder. An agent does not start without policies that it can read.
    pub fn open(folder: &Path) -> Result<Arc<Self>, PolicyError> {
        let policies = Policies::load(folder)?;
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            current: watch::Sender::new(Arc::new(policies)),
            trouble: watch::Sender::new(None),
            reloading: Mutex::new(()),
        }))
    }

    /// The policies to decide with now.
    pub fn current(&self) -> Arc<Policies> {
        Arc::clone(&self.current.borrow())
    }

    /// Tells when the policies are other ones: live sessions are decided again.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Policies>> {
        self.current.subscribe()
    }

    /// `Some(why)` while the files are broken and older policies stay in use: `/readyz` is red.
    pub fn trouble(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.trouble.subscribe()
    }

    /// Reads the files again (SIGHUP). `true` when the policies are other ones now. With an error
    /// the old ones stay in use and [`Self::trouble`] tells why. Blocks on files: a second at most.
    pub fn reload(&self) -> Result<bool, PolicyError> {
        let _one = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let loaded = Policies::load(&self.folder);
        let trouble = loaded
            .as_ref()
            .err()
            .map(|error| Arc::from(error.to_string()));
        self.trouble.send_if_modified(|current| {
            let other = *current != trouble;
            *current = trouble;
            other
        });
        let policies = loaded?;
        Ok(self.current.send_if_modified(|current| {
            let other = current.digest() != policies.digest();
            if other {
                *current = Arc::new(policies);
            }
            other
        }))
    }

    /// Reloads whenever the files change, until told to stop. The caller owns the task.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let watch = FolderWatch::new(&self.folder);
        loop {
            // First of all: the files may have changed between `open` and the watch.
            let store = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || store.reload()).await {
                Ok(Ok(true)) => {
                    tracing::info!(digest = self.current().digest(), "policies changed")
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "policy files are broken, the old ones stay in use")
                }
                Err(error) => tracing::error!(%error, "reading policies failed"),
            }
            tokio::select! {
                () = watch.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    const FIRST: &str = r#"@id("first") permit (principal, action, resource);"#;
    const SECOND: &str = r#"@id("second") permit (principal, action, resource);"#;

    fn folder(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.cedar"), text).unwrap();
        folder
    }

    fn ids(store: &PolicyStore) -> Vec<String> {
        store.current().ids().map(str::to_owned).collect()
    }

    #[test]
    fn a_broken_file_keeps_the_old_policy_and_says_why_until_it_is_mended() {
        let folder = folder(FIRST);
        let store = PolicyStore::open(folder.path()).unwrap();
        let mut changes = store.subscribe();
        changes.mark_unchanged();
        std::fs::write(folder.path().join("b.cedar"), "permit (").unwrap();
        let error = store.reload().unwrap_err();
        assert!(error.to_string().contains("b.cedar line 1"), "{error}");
        assert_eq!(ids(&store), ["first"]);
        let why = store.trouble().borrow().clone().unwrap();
        assert!(why.contains("b.cedar line 1"), "{why}");
        assert!(!changes.has_changed().unwrap());

        std::fs::write(folder.path().join("b.cedar"), SECOND).unwrap();
        assert!(store.reload().unwrap());
        assert_eq!(ids(&store), ["first", "second"]);
        assert_eq!(*store.trouble().borrow(), None);
        assert!(changes.has_changed().unwrap());
        assert!(!store.reload().unwrap());
    }

    #[test]
    fn a_folder_that_vanished_keeps_the_old_policy() {
        let folder = folder(FIRST);
        let store = PolicyStore::open(folder.path()).unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(matches!(store.reload(), Err(PolicyError::File(_))));
        assert_eq!(ids(&store), ["first"]);
        assert!(store.trouble().borrow().is_some());
    }

    #[test]
    fn a_broken_folder_does_not_open() {
        assert!(PolicyStore::open(folder("permit (").path()).is_err());
        assert!(PolicyStore::open(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn a_file_that_everybody_may_write_is_refused() {
        let folder = folder(FIRST);
        let file = folder.path().join("a.cedar");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = Policies::load(folder.path()).unwrap_err();
        assert!(matches!(error, PolicyError::File(_)), "{error}");
        assert!(error.hint().unwrap().starts_with("chmod o-w"));
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused_and_other_files_are_left_alone() {
        let folder = folder(FIRST);
        std::fs::write(folder.path().join("notes.txt"), "permit (").unwrap();
        assert_eq!(Policies::load(folder.path()).unwrap().ids().count(), 1);
        let long = format!("{FIRST}\n//{}", "x".repeat(1 << 20));
        std::fs::write(folder.path().join("a.cedar"), long).unwrap();
        let error = Policies::load(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("longer than 1048576 bytes"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_changed_file_is_noticed_and_the_watch_ends_when_told() {
        let folder = folder(FIRST);
        let store = PolicyStore::open(folder.path()).unwrap();
        let stop = CancellationToken::new();
        let watching = tokio::spawn(Arc::clone(&store).run(stop.clone()));
        let mut changes = store.subscribe();
        std::fs::write(folder.path().join("a.cedar"), SECOND).unwrap();
        let noticed = changes.wait_for(|policies| policies.ids().eq(["second"]));
        tokio::time::timeout(Duration::from_secs(60), noticed)
            .await
            .expect("the change is noticed")
            .unwrap();
        stop.cancel();
        watching.await.unwrap();
    }
}
