//! Deleting recordings: whole ones, after an event that names them. Log entries stay.

use std::time::{Duration, SystemTime};

use postern_proto::audit::event::Fact;
use postern_proto::audit::layout::StorePath;
use postern_proto::recording::RecordingName;

use super::event::agent_event;
use super::health::lock;
use super::{Evidence, EvidenceError, disk};
use crate::config::format_duration;

/// Names in one deletion event.
const BATCH: usize = 256;
const DAY: Duration = Duration::from_hours(24);

impl Evidence {
    /// Deletes what is older than `keep`, now and then daily, for as long as it is polled.
    pub async fn run_retention(self, keep: Duration) {
        self.retain(keep, SystemTime::now, || tokio::time::sleep(DAY))
            .await;
    }

    /// The same by any clock; `wait` returns a day later.
    pub(super) async fn retain<Wait: Future<Output = ()>>(
        self,
        keep: Duration,
        clock: impl Fn() -> SystemTime,
        wait: impl Fn() -> Wait,
    ) {
        loop {
            match self.delete_older(keep, clock()).await {
                Ok(0) => {}
                Ok(deleted) => {
                    tracing::info!(deleted, "recordings beyond their retention are gone");
                }
                Err(error) => {
                    tracing::error!(%error, "retention: recordings could not be deleted");
                }
            }
            wait().await;
        }
    }

    /// Deletes the recordings that nobody wrote to in the time `keep` before `now`. Answers with
    /// how many were deleted.
    pub async fn delete_older(
        &self,
        keep: Duration,
        now: SystemTime,
    ) -> Result<usize, EvidenceError> {
        let Some(before) = now.checked_sub(keep) else {
            return Ok(0);
        };
        let store = self.reader();
        let listed = tokio::task::spawn_blocking(move || store.recordings_before(before)).await;
        let failed = |error: String| EvidenceError::Failed(error.into());
        let names = listed
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let reason = format!("retention of {}", format_duration(keep));
        self.delete_recordings(&names, &reason).await
    }

    /// Deletes recordings whose retention is over; those that are open are left. Each is named
    /// in a durable event first. Answers with how many were deleted.
    pub async fn delete_recordings(
        &self,
        names: &[RecordingName],
        reason: &str,
    ) -> Result<usize, EvidenceError> {
        let closed: Vec<RecordingName> = {
            let open = lock(&self.shared.recordings);
            let is_closed = |name: &&RecordingName| !open.contains_key(name);
            names.iter().filter(is_closed).copied().collect()
        };
        let mut deleted = 0;
        for batch in closed.chunks(BATCH) {
            self.append(agent_event(Fact::RecordingsDeleted {
                recordings: batch.to_vec(),
                reason: reason.to_owned(),
            }))
            .await?;
            let (folder, batch) = (self.shared.folder.clone(), batch.to_vec());
            let remove = move || -> std::io::Result<usize> {
                let mut removed = 0;
                for name in batch {
                    match std::fs::remove_file(folder.join(StorePath::Recording(name).to_string()))
                    {
                        Ok(()) => removed += 1,
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                disk::sync_folder(&folder.join("recordings"))?;
                Ok(removed)
            };
            let removed = tokio::task::spawn_blocking(remove).await;
            deleted += removed
                .map_err(|error| EvidenceError::Failed(error.to_string().into()))?
                .map_err(|error| {
                    self.shared
                        .health
                        .write_failed("deleting recordings", &error)
                })?;
        }
        Ok(deleted)
    }
}
