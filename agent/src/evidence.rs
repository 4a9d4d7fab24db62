//! Evidence: the audit log and recordings. Placeholder in memory until the real one is merged.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use postern_proto::audit::event::{Event, FileOperation, RecordingDigest};
use postern_proto::gateway::message::Witness;
use postern_proto::names::SessionId;
use tokio::sync::watch;

/// Why evidence could not be written. Final for the store until restart, except `Quota`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvidenceError {
    /// The log or a recording cannot be written.
    #[error("the evidence store failed: {0}")]
    Failed(Arc<str>),
    /// The session's or principal's recording quota is used up.
    #[error("the recording quota of {0} bytes is used up")]
    Quota(u64),
    /// Free space is below the floor: no session starts.
    #[error("{free} bytes are free under the evidence store, {floor} are needed")]
    Space {
        /// Free bytes.
        free: u64,
        /// The floor.
        floor: u64,
    },
}

/// What a recording holds; decides its format.
#[derive(Debug, Clone)]
pub enum RecordingKind {
    /// A terminal.
    Terminal {
        /// Columns at the start.
        columns: u32,
        /// Rows at the start.
        rows: u32,
        /// `TERM` as the client sent it.
        term: String,
        /// The command, when one runs in it.
        command: Option<String>,
    },
    /// A command or subsystem without a terminal.
    Streams {
        /// The command line or subsystem.
        command: String,
    },
    /// Timed byte counts of a TCP stream.
    Flow {
        /// Where it goes.
        destination: String,
    },
}

/// One thing that passed.
#[derive(Debug, Clone)]
pub enum Entry {
    /// To the client.
    Output(Bytes),
    /// To the client, on stderr.
    Error(Bytes),
    /// From the client (kept when policy asks, and for streams).
    Input(Bytes),
    /// The terminal's new size.
    Resize {
        /// Columns.
        columns: u32,
        /// Rows.
        rows: u32,
    },
    /// The command's end: status, or signal name.
    Exit(Result<u32, String>),
    /// Bytes that a TCP stream moved since the last entry.
    Flow {
        /// From the client.
        up: u64,
        /// To the client.
        down: u64,
    },
    /// A file operation.
    File(FileOperation),
    /// Something that the reader must know: a gap, a limit.
    Note(String),
}

/// The evidence store of this agent. Clones share it.
#[derive(Clone)]
pub struct Evidence {
    events: Arc<Mutex<Vec<Event>>>,
    failure: watch::Sender<Option<Arc<str>>>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            events: Arc::default(),
            failure: watch::Sender::new(None),
        }
    }
}

impl Evidence {
    /// Appends one event; returns once it is durable under a durable checkpoint.
    pub async fn append(&self, event: Event) -> Result<Witness, EvidenceError> {
        self.events
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(event);
        Ok(Witness {
            checkpoint: String::new(),
            leaf: 0,
            leaf_hash: String::new(),
            proof: vec![],
            consistency: vec![],
        })
    }

    pub fn reader(&self) -> FolderStore {
        FolderStore
    }

    #[cfg(test)]
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.failure.send_replace(Some("test".into()));
    }

    /// Whether a new session may start: the store works and space is above the floor.
    pub fn admit(&self) -> Result<(), EvidenceError> {
        Ok(())
    }

    /// Starts a recording of a session. `principal` is the key of its quota.
    pub async fn begin(
        &self,
        session: SessionId,
        principal: &str,
        kind: RecordingKind,
    ) -> Result<Recording, EvidenceError> {
        let _ = (principal, kind);
        Ok(Recording {
            name: format!("{session}-0"),
            entries: Arc::default(),
        })
    }

    /// Becomes `Some(why)` when the store has failed: every session ends within a second.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failure.subscribe()
    }
}

/// A recording that is open. What passes is handed to it first. Clones share it: several relays
/// of one channel write to one recording.
#[derive(Clone)]
pub struct Recording {
    name: String,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Recording {
    /// `SESSION-NUMBER`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seals and writes; returns once the write is done. Relay only after it returned.
    pub async fn write(&self, entry: Entry) -> Result<(), EvidenceError> {
        self.entries
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(entry);
        Ok(())
    }

    /// Ends it. Later writes fail.
    pub async fn close(&self) -> Result<RecordingDigest, EvidenceError> {
        Ok(RecordingDigest {
            name: self.name.clone(),
            length: 0,
            sha256: String::new(),
            complete: true,
        })
    }
}

pub struct FolderStore;
impl FolderStore {
    pub fn file(
        &self,
        _: postern_proto::audit::layout::StorePath,
    ) -> std::io::Result<Option<std::fs::File>> {
        Ok(None)
    }
    pub fn recordings(&self) -> std::io::Result<Vec<postern_proto::recording::RecordingName>> {
        Ok(vec![])
    }
}
