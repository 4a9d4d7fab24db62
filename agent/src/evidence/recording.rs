//! The handle of a recording that is open: what relays hold.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use postern_proto::audit::event::RecordingDigest;
use postern_proto::recording::Entry;

use super::recorder::{Open, ROOM};
use super::{Evidence, EvidenceError};

/// How long closing a recording may take once the store failed: less than the second in which
/// sessions must end.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);

/// A recording that is open. What passes is handed to it first. Clones share it: several relays
/// of one channel write to one recording. When the last clone goes without [`Recording::close`],
/// the recording is closed.
#[derive(Clone)]
pub struct Recording {
    pub(super) name: String,
    pub(super) handle: Arc<Handle>,
}

/// A recording that is not kept open by this.
#[derive(Clone)]
pub(crate) struct WeakRecording {
    name: String,
    handle: Weak<Handle>,
}

impl WeakRecording {
    /// Whether somebody still holds it.
    pub(crate) fn is_open(&self) -> bool {
        self.handle.strong_count() > 0
    }

    /// The recording, while somebody holds it.
    pub(crate) fn get(&self) -> Option<Recording> {
        Some(Recording {
            name: self.name.clone(),
            handle: self.handle.upgrade()?,
        })
    }
}

impl fmt::Debug for WeakRecording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakRecording({})", self.name)
    }
}

pub(super) struct Handle {
    pub(super) open: Arc<Open>,
    pub(super) evidence: Evidence,
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.open.close(&self.evidence.shared.queue));
    }
}

impl Recording {
    /// A reference that does not keep it open.
    pub(crate) fn downgrade(&self) -> WeakRecording {
        WeakRecording {
            name: self.name.clone(),
            handle: Arc::downgrade(&self.handle),
        }
    }

    /// `SESSION-NUMBER`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seals and writes; returns once the write is done. Relay only after it returned.
    pub async fn write(&self, entry: Entry) -> Result<(), EvidenceError> {
        let Handle { open, evidence } = &*self.handle;
        let shared = &evidence.shared;
        if let Some(error) = shared.health.error() {
            return Err(error);
        }
        let weight = entry.weight().clamp(1, ROOM) as u32;
        let room = Arc::clone(&open.room)
            .acquire_many_owned(weight)
            .await
            .map_err(|_| evidence.closed())?;
        let answer = open.push(&shared.queue, entry, room)?;
        evidence.or_failure(answer).await
    }

    /// Ends it. Later writes fail; a second call answers the same.
    pub async fn close(&self) -> Result<RecordingDigest, EvidenceError> {
        let Handle { open, evidence } = &*self.handle;
        let answer = open.close(&evidence.shared.queue);
        let mut failure = evidence.failure();
        let late = async {
            drop(failure.wait_for(Option::is_some).await);
            tokio::time::sleep(CLOSE_DEADLINE).await;
        };
        // Also after a failure: what is left of the recording is to be told. The recorder
        // answers at once then, unless it hangs in a write.
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(evidence.closed())),
            () = late => Err(evidence.closed()),
        }
    }
}
