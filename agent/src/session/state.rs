//! What changes in a session while it lives, behind one short lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use postern_proto::audit::event::RecordingDigest;
use tokio::time::Instant;

use crate::evidence::{Recording, WeakRecording};
use crate::policy::{Denial, Grant};

/// Number of a pipe in its session, from 0.
pub(crate) type PipeNumber = u32;

/// Recordings that the closing event names: an event is at most 65,535 bytes.
const NAMED_RECORDINGS: usize = 200;
/// Pipes of one session at one time.
const PIPES: usize = 1024;
/// Different decisions inside one session.
const INNER: usize = 256;

#[derive(Debug, Default)]
pub(super) struct State(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: PipeNumber,
    pipes: HashMap<PipeNumber, IpAddr>,
    /// Since when there is no pipe.
    alone_since: Option<Instant>,
    closed: bool,
    recordings: Vec<RecordingDigest>,
    open: Vec<WeakRecording>,
    inner: Vec<Grant>,
}

impl State {
    /// A further pipe; `None` when the session is over or has too many.
    pub(super) fn add_pipe(&self, source: IpAddr) -> Option<PipeNumber> {
        let mut state = self.lock();
        if state.closed || state.pipes.len() >= PIPES {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.pipes.insert(number, source);
        state.alone_since = None;
        Some(number)
    }

    /// A pipe comes from somewhere else now.
    pub(super) fn move_pipe(&self, number: PipeNumber, source: IpAddr) {
        if let Some(known) = self.lock().pipes.get_mut(&number) {
            *known = source;
        }
    }

    /// Remembers an open recording for as long as somebody writes to it.
    pub(super) fn watch_recording(&self, recording: &Recording) {
        let mut state = self.lock();
        state.open.retain(WeakRecording::is_open);
        state.open.push(recording.downgrade());
    }

    /// The recordings that are open.
    pub(super) fn open_recordings(&self) -> Vec<Recording> {
        let state = self.lock();
        state.open.iter().filter_map(WeakRecording::get).collect()
    }

    /// A pipe is gone. True when it was the last.
    pub(super) fn remove_pipe(&self, number: PipeNumber) -> bool {
        let mut state = self.lock();
        if state.pipes.remove(&number).is_none() {
            return false;
        }
        let last = state.pipes.is_empty();
        if last {
            state.alone_since = Some(Instant::now());
        }
        last
    }

    /// Pipes at this moment.
    pub(super) fn pipes(&self) -> usize {
        self.lock().pipes.len()
    }

    /// Where its pipes come from, each address once.
    pub(super) fn sources(&self) -> Vec<IpAddr> {
        let mut sources: Vec<_> = self.lock().pipes.values().copied().collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// Since when there is no pipe.
    pub(super) fn alone_since(&self) -> Option<Instant> {
        self.lock().alone_since
    }

    /// No pipe joins any more. The recordings for the closing event, or `None` when somebody else
    /// closes already.
    pub(super) fn close(&self) -> Option<Vec<RecordingDigest>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.closed = true;
        Some(std::mem::take(&mut state.recordings))
    }

    /// Remembers a recording for the closing event; gives it back when there are too many.
    pub(super) fn add_recording(&self, digest: RecordingDigest) -> Option<RecordingDigest> {
        let mut state = self.lock();
        if state.closed || state.recordings.len() >= NAMED_RECORDINGS {
            return Some(digest);
        }
        state.recordings.push(digest);
        None
    }

    /// Remembers a decision that was made inside the session: it is looked at again as well.
    pub(super) fn add_inner(&self, grant: Grant) -> Result<(), Denial> {
        let mut state = self.lock();
        let request = grant.request();
        let known = state.inner.iter().any(|known| {
            let known = known.request();
            known.action == request.action
                && known.host == request.host
                && known.port == request.port
        });
        if known {
            return Ok(());
        }
        if state.inner.len() >= INNER {
            return Err(Denial {
                policies: vec![],
                message: format!("{INNER} different forwards were opened in this session"),
                hint: Some("open another session".to_owned()),
            });
        }
        state.inner.push(grant);
        Ok(())
    }

    /// Decisions that were made inside the session.
    pub(super) fn inner(&self) -> Vec<Grant> {
        self.lock().inner.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change above is complete in itself.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
