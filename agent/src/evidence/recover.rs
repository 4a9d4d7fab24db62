//! Opening the log: `postern_proto::audit::recover` decides, and here is what follows the events
//! while they are read.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use postern_proto::audit::append::{LogFile, Step};
use postern_proto::audit::event::{Access, Event, Fact, RecordingDigest};
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::note::{LogSigner, NoteError};
use postern_proto::audit::ocsf;
pub use postern_proto::audit::recover::LogError;
use postern_proto::audit::recover::{first_checkpoint, last_checkpoint, left, mend, replay};
use postern_proto::names::{AgentId, SessionId};

use super::claims::Claims;
use super::log::{Log, LogFolder};
use super::quota::Recorded;

/// What an operator can do about a log that was not opened.
pub fn hint(error: &LogError) -> &'static str {
    match error {
        LogError::Io(_) => "the agent's user must be able to read and write the whole store",
        LogError::Checkpoint(NoteError::Signature | NoteError::Origin(_)) => {
            "this log is another agent's, or keys/audit-log.key is not the key that signed it: \
             restore the right key, or name a new store in `evidence.store` and keep this one"
        }
        _ => {
            "somebody or something changed the store: keep it as it is for inquiry (`postern \
             audit verify` names what differs), then restore a copy, or name a new store in \
             `evidence.store`"
        }
    }
}

/// A log that was opened.
pub(super) struct Recovered {
    pub(super) log: Log,
    /// Whole entries after the checkpoint, to be committed first.
    pub(super) kept: Vec<Vec<u8>>,
    /// Bytes of a torn entry.
    pub(super) dropped: u64,
    /// Whether there was no log before.
    pub(super) first: bool,
    pub(super) open: OpenSessions,
    /// What was recorded lately, for the quotas.
    pub(super) recorded: Recorded,
    /// What clients claimed.
    pub(super) claims: Claims,
}

/// Sessions without an end, with what they carry.
#[derive(Default)]
pub(super) struct OpenSessions {
    pub(super) own: BTreeMap<SessionId, OpenSession>,
    /// What sessions carry that clients claim. Their ends are the clients' to state.
    pub(super) claimed: BTreeMap<SessionId, Access>,
}

/// One of them.
pub(super) struct OpenSession {
    pub(super) granted: Event,
    pub(super) access: Option<Access>,
    /// The last state of each recording that the log holds.
    pub(super) recordings: BTreeMap<String, RecordingDigest>,
}

impl OpenSessions {
    /// Follows the log by one event.
    pub(super) fn follow(&mut self, event: &Event) {
        let Some(session) = event.session else { return };
        match &event.fact {
            Fact::SessionGranted { access, .. } => {
                let open = OpenSession {
                    granted: event.clone(),
                    access: Some(access.clone()),
                    recordings: BTreeMap::new(),
                };
                self.own.insert(session, open);
            }
            Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } => {
                self.own.remove(&session);
            }
            Fact::RecordingProgressed { recording } => {
                if let Some(open) = self.own.get_mut(&session) {
                    open.recordings
                        .insert(recording.name.clone(), recording.clone());
                }
            }
            Fact::Claimed(claim) => match &*claim.fact {
                Fact::SessionClaimed { access, .. } => {
                    self.claimed.insert(session, access.clone());
                }
                Fact::SessionClosed { .. } | Fact::SessionInterrupted { .. } => {
                    self.claimed.remove(&session);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// What a session carries.
    pub(super) fn access(&self, session: SessionId) -> Option<&Access> {
        let own = self.own.get(&session).and_then(|open| open.access.as_ref());
        own.or_else(|| self.claimed.get(&session))
    }
}

/// Opens the log in `folder`, or begins one. `signers` sign from now on; the checkpoint may be
/// signed by any of them. The caller holds the folder's lock.
pub(super) fn open(
    folder: &Path,
    origin: &AgentId,
    signers: Vec<LogSigner>,
) -> Result<Recovered, LogError> {
    let disk = LogFolder::new(folder);
    let found = last_checkpoint(&disk, origin, &signers)?;
    let first = found.is_none();
    let checkpoint = match found {
        Some(checkpoint) => checkpoint,
        None => {
            let checkpoint = first_checkpoint(origin, &signers)?;
            disk.run(Step::Replace {
                file: LogFile::Static(StorePath::Checkpoint),
                bytes: checkpoint.note.as_bytes(),
            })?;
            checkpoint
        }
    };
    let mut open = OpenSessions::default();
    let mut recorded = Recorded::default();
    let claims = Claims::default();
    let tail = replay(&disk, &checkpoint, |entry| {
        // Entries of a later version are kept as they are; they open no session here.
        if let Ok(decoded) = ocsf::decode(entry, &[]) {
            recorded.follow(&decoded.event, &open);
            open.follow(&decoded.event);
            claims.follow(&decoded.event, entry.len() as u64);
        }
    })?;
    if let Some(step) = mend(&disk, &tail)? {
        disk.run(step)?;
    }
    let left = left(&disk, &tail)?;
    for step in left.steps() {
        disk.run(step)?;
    }
    let log = Log {
        disk,
        origin: origin.clone(),
        signers,
        tail,
        superseded: VecDeque::new(),
        copies: VecDeque::new(),
        checkpoint: checkpoint.note,
    };
    log.sweep();
    Ok(Recovered {
        log,
        dropped: left.dropped,
        kept: left.kept,
        first,
        open,
        recorded,
        claims,
    })
}

/// How many entries the log holds, after the same check as [`open`] makes; `None` when there is
/// no log yet. Changes nothing, and needs no lock: what is appended meanwhile is not looked at.
pub(super) fn inspect(
    folder: &Path,
    origin: &AgentId,
    signers: &[LogSigner],
) -> Result<Option<u64>, LogError> {
    let disk = LogFolder::new(folder);
    let Some(checkpoint) = last_checkpoint(&disk, origin, signers)? else {
        return Ok(None);
    };
    replay(&disk, &checkpoint, |_| {})?;
    Ok(Some(checkpoint.size))
}
