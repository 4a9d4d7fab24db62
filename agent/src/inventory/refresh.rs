//! The one task that reads the sources.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::ec2::Ec2;
use super::file::{self, InventoryFileError};
use super::snapshot::{Snapshot, Stale};
use super::{Inventory, InventoryError, InventorySettings, Target};
use crate::watch::FolderWatch;

/// Reads the sources when it is time, and publishes what they say.
pub struct Refresher {
    inventory: Arc<Inventory>,
    file: Option<Source<PathBuf>>,
    ec2: Vec<Source<Ec2>>,
    interval: Duration,
}

/// A source and what it said last.
struct Source<Origin> {
    origin: Origin,
    targets: Vec<Arc<Target>>,
    answered: Option<OffsetDateTime>,
    failure: Option<String>,
}

impl<Origin> Source<Origin> {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            targets: Vec::new(),
            answered: None,
            failure: None,
        }
    }

    /// An answer replaces the last one, a failure does not.
    fn take<E: std::fmt::Display>(&mut self, answer: Result<Vec<Target>, E>) {
        match answer {
            Ok(targets) => {
                self.targets = targets.into_iter().map(Arc::new).collect();
                self.answered = Some(OffsetDateTime::now_utc());
                self.failure = None;
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    fn stale(&self, source: String) -> Option<Stale> {
        Some(Stale {
            source,
            since: self.answered,
            why: self.failure.clone()?,
        })
    }
}

impl Refresher {
    pub(super) async fn open(
        inventory: Arc<Inventory>,
        settings: InventorySettings,
    ) -> Result<Self, InventoryError> {
        let mut refresher = Self {
            inventory,
            file: settings.file.map(Source::new),
            ec2: Vec::new(),
            interval: Duration::from_secs(60),
        };
        if let Some(ec2) = &settings.ec2 {
            refresher.interval = ec2.refresh.max(SHORTEST);
            let regions = Ec2::all(ec2).await?;
            refresher.ec2 = regions.into_iter().map(Source::new).collect();
        }
        refresher.read_file().await?;
        refresher.list_ec2().await;
        refresher.publish();
        Ok(refresher)
    }

    /// Reads sources at their interval, on file changes and when asked to, until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let inventory = Arc::clone(&self.inventory);
        let watch = self
            .file
            .as_ref()
            .map(|source| FolderWatch::new(folder_of(&source.origin)));
        let file_changed = async || match &watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        };
        let mut timer = tokio::time::interval(self.interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        timer.reset();
        // The file may have changed between `open` and the watch.
        let mut due = (true, false);
        loop {
            let work = async {
                if due.0 {
                    // Kept and reported by `publish`.
                    let _ = self.read_file().await;
                }
                if due.1 {
                    self.list_ec2().await;
                }
                self.publish();
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => return,
            }
            due = tokio::select! {
                () = file_changed() => (true, false),
                _ = timer.tick() => (false, true),
                () = inventory.wanted.notified() => (true, true),
                () = stop.cancelled() => return,
            };
        }
    }

    async fn read_file(&mut self) -> Result<(), InventoryFileError> {
        let Some(source) = &mut self.file else {
            return Ok(());
        };
        let path = source.origin.clone();
        let answer = match tokio::task::spawn_blocking(move || file::load(&path)).await {
            Ok(answer) => answer,
            Err(error) => {
                source.failure = Some(format!("reading it failed: {error}"));
                return Ok(());
            }
        };
        match answer {
            Ok(targets) => {
                source.take(Ok::<_, InventoryFileError>(targets));
                Ok(())
            }
            Err(error) => {
                source.failure = Some(error.to_string());
                Err(error)
            }
        }
    }

    async fn list_ec2(&mut self) {
        let answers = join_all(self.ec2.iter().map(|source| async {
            let listing = tokio::time::timeout(LISTING, source.origin.list());
            match listing.await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} s", LISTING.as_secs())),
            }
        }))
        .await;
        for (source, answer) in self.ec2.iter_mut().zip(answers) {
            source.take(answer);
        }
    }

    fn publish(&self) {
        let mut stale: Vec<Stale> = self
            .ec2
            .iter()
            .filter_map(|source| source.stale(format!("ec2 {}", source.origin.region)))
            .collect();
        stale.extend(
            self.file
                .iter()
                .filter_map(|source| source.stale("file".to_owned())),
        );
        let trouble = (!stale.is_empty()).then(|| {
            let parts: Vec<_> = stale.iter().map(Stale::to_string).collect();
            Arc::from(parts.join("; "))
        });
        // The file comes last: it wins.
        let regions = self.ec2.iter().flat_map(|source| &source.targets);
        let hosts = self.file.iter().flat_map(|source| &source.targets);
        let snapshot = Snapshot::new(regions.chain(hosts).cloned(), stale);
        self.inventory.snapshot.send_if_modified(|current| {
            let other =
                current.targets() != snapshot.targets() || current.stale() != snapshot.stale();
            if other {
                *current = Arc::new(snapshot);
            }
            other
        });
        self.inventory.trouble.send_if_modified(|current| {
            let other = *current != trouble;
            if other {
                match &trouble {
                    Some(why) => tracing::error!(%why, "the inventory is not up to date"),
                    None => tracing::info!("the inventory is up to date again"),
                }
                *current = trouble;
            }
            other
        });
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inventory {}: {}", self.source, self.why)
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// However often the settings say: EC2 throttles, and other users of the account suffer.
const SHORTEST: Duration = Duration::from_secs(1);
/// For all pages of one region.
const LISTING: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests;
