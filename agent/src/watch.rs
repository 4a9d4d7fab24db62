//! Notices that files of a folder changed. Used for policies and for the inventory file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches one folder, not what is below it.
pub struct FolderWatch {
    /// Absent when the system has no watch left to give: then the folder is looked at more often.
    watcher: Option<RecommendedWatcher>,
    noticed: Arc<Notify>,
}

impl FolderWatch {
    /// Starts to watch. Never fails: without the system's help [`Self::changed`] polls.
    pub fn new(folder: &Path) -> Self {
        let noticed = Arc::new(Notify::new());
        let handler = {
            let noticed = Arc::clone(&noticed);
            move |event: notify::Result<notify::Event>| {
                // Reading the files is an event too, and would have us read them for ever.
                if !matches!(&event, Ok(event) if event.kind.is_access()) {
                    noticed.notify_one();
                }
            }
        };
        let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::warn!(folder = %folder.display(), %error, "changes are noticed late: the folder cannot be watched");
        }
        Self {
            watcher: watcher.ok(),
            noticed,
        }
    }

    /// Returns when something may have changed, and nothing changed any more for a moment, so
    /// that a file is not read while it is being written. Returns now and then without a change:
    /// a watch ends unnoticed when the folder is replaced.
    pub async fn changed(&self) {
        let poll = match self.watcher {
            Some(_) => POLL,
            None => POLL_ALONE,
        };
        if tokio::time::timeout(poll, self.noticed.notified())
            .await
            .is_err()
        {
            return;
        }
        // An endless stream of changes must not put off the reading for ever.
        let quiet = async {
            while tokio::time::timeout(SETTLE, self.noticed.notified())
                .await
                .is_ok()
            {}
        };
        let _ = tokio::time::timeout(SETTLE_AT_MOST, quiet).await;
    }
}

const POLL: Duration = Duration::from_secs(30);
const POLL_ALONE: Duration = Duration::from_secs(3);
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_AT_MOST: Duration = Duration::from_secs(1);
