//! What verification says.

use std::fmt;

use crate::names::SessionId;
use crate::recording::RecordingName;

/// The outcome. It holds when there is no fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries that the checkpoint signs.
    pub size: u64,
    /// Whole entries after it: written, not signed yet.
    pub unsigned: u64,
    /// The checkpoint, as it was signed.
    pub checkpoint: Option<String>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// The checkpoints from outside that were compared.
    pub outside: Vec<Outside>,
    /// All sessions, in the order of their grants.
    pub sessions: Vec<Session>,
    /// Recordings that match the log.
    pub recordings: u64,
    /// Recordings that ended without their final record, as the log says too.
    pub interrupted: Vec<RecordingName>,
    /// Recordings that retention deleted, as the log says.
    pub deleted: Vec<RecordingName>,
    /// Entries that this version does not know.
    pub unknown: Vec<u64>,
    /// What clients claim: nothing here was seen by an agent.
    pub claims: Claims,
}

/// What stands in a log on the word of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Entries that a client handed over to this agent.
    pub entries: u64,
    /// Their sessions, and all those of a client's own log.
    pub sessions: Vec<Session>,
    /// Recordings that claims state and that were not handed over: they lie with the client.
    pub elsewhere: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether a checkpoint from outside vouches for the log's length: else a rollback, or a
    /// rewrite by whoever holds the key, is not excluded.
    pub fn rollback_excluded(&self) -> bool {
        self.outside.iter().any(|outside| outside.consistent)
    }

    /// One sentence on that.
    pub fn rollback(&self) -> String {
        let newest = self
            .outside
            .iter()
            .filter(|outside| outside.consistent)
            .max_by_key(|outside| outside.size);
        match newest {
            None => "rollback not excluded: no checkpoint from outside was given".to_owned(),
            Some(newest) => format!(
                "rollback excluded up to entry {} by {}",
                newest.size, newest.name
            ),
        }
    }
}

/// A checkpoint from outside, compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// Who kept it.
    pub name: String,
    /// Entries that it signs.
    pub size: u64,
    /// Whether the log begins with what it signs.
    pub consistent: bool,
}

/// A session in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The entry of its grant.
    pub granted: u64,
    /// How it ended.
    pub state: SessionState,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Not yet, as far as the log goes.
    Open,
    /// With a closing event.
    Closed,
    /// The agent died; it said so at its next start.
    Interrupted,
}

/// What is wrong, and where. Entries count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are what the sentence in Display says"
)]
pub enum Fault {
    NoCheckpoint,
    Checkpoint {
        why: String,
    },
    EntryAltered {
        entry: u64,
    },
    EntryRemoved {
        entry: u64,
    },
    EntryInserted {
        entry: u64,
    },
    EntriesSwapped {
        entry: u64,
        with: u64,
    },
    EntriesMissing {
        from: u64,
        to: u64,
    },
    Sequence {
        entry: u64,
        states: u64,
    },
    ForeignEntry {
        entry: u64,
        log: String,
    },
    Tile {
        path: String,
    },
    Bundle {
        path: String,
    },
    Root {
        size: u64,
        good: u64,
    },
    Outside {
        name: String,
        why: String,
    },
    RolledBack {
        name: String,
        size: u64,
        now: u64,
    },
    Forked {
        name: String,
        size: u64,
    },
    KeyChange {
        entry: u64,
        why: String,
    },
    Sealed {
        entry: u64,
    },
    SessionWithoutEnd {
        session: SessionId,
        granted: u64,
        restarted: u64,
    },
    EndWithoutSession {
        session: SessionId,
        entry: u64,
    },
    ClaimOfOwn {
        session: SessionId,
        entry: u64,
    },
    ClaimOfAnother {
        session: SessionId,
        entry: u64,
    },
    RecordingMissing {
        name: RecordingName,
        entry: u64,
    },
    RecordingCut {
        name: RecordingName,
        length: u64,
        logged: u64,
        entry: u64,
    },
    RecordingAltered {
        name: RecordingName,
        from: u64,
        to: u64,
        entry: u64,
    },
    RecordingExtended {
        name: RecordingName,
        length: u64,
        logged: u64,
        entry: u64,
    },
    RecordingSwapped {
        name: RecordingName,
        holds: RecordingName,
    },
    RecordingUnlogged {
        name: RecordingName,
    },
    RecordingWithoutDigest {
        name: String,
        entry: u64,
    },
    RecordingDigests {
        name: RecordingName,
        entry: u64,
    },
    RecordingContent {
        name: RecordingName,
        why: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCheckpoint => f.write_str("the log has no checkpoint: it was removed"),
            Self::Checkpoint { why } => write!(f, "the checkpoint is {why}"),
            Self::EntryAltered { entry } => write!(f, "entry {entry} was altered"),
            Self::EntryRemoved { entry } => write!(f, "entry {entry} was removed"),
            Self::EntryInserted { entry } => write!(f, "a foreign entry stands at {entry}"),
            Self::EntriesSwapped { entry, with } => {
                write!(f, "entries {entry} and {with} were swapped")
            }
            Self::EntriesMissing { from, to } => {
                write!(f, "the tail was cut: entries {from} to {to} are missing")
            }
            Self::Sequence { entry, states } => write!(
                f,
                "the entry at {entry} says that it is entry {states}: entries were removed, \
                 added or reordered"
            ),
            Self::ForeignEntry { entry, log } => {
                write!(f, "entry {entry} is of the log {}", log.escape_debug())
            }
            Self::Tile { path } => write!(f, "{path} is not what the entries hash to"),
            Self::Bundle { path } => write!(f, "{path} holds more than its entries"),
            Self::Root { size, good } => write!(
                f,
                "the log was rewritten: it does not reproduce its checkpoint of {size} entries \
                 (the first {good} agree with a checkpoint from outside)"
            ),
            Self::Outside { name, why } => {
                write!(f, "the outside checkpoint {} is {why}", name.escape_debug())
            }
            Self::RolledBack { name, size, now } => write!(
                f,
                "the log was rolled back: {} signs {size} entries, the log has {now}",
                name.escape_debug()
            ),
            Self::Forked { name, size } => write!(
                f,
                "the log was forked or rewritten: its first {size} entries are not those that {} \
                 signs",
                name.escape_debug()
            ),
            Self::KeyChange { entry, why } => {
                write!(f, "the key change in entry {entry} is {why}")
            }
            Self::Sealed { entry } => {
                write!(f, "the sealed texts of entry {entry} are damaged")
            }
            Self::SessionWithoutEnd {
                session,
                granted,
                restarted,
            } => write!(
                f,
                "session {session} (granted in entry {granted}) has no end, though the agent \
                 started again in entry {restarted}"
            ),
            Self::EndWithoutSession { session, entry } => write!(
                f,
                "entry {entry} ends session {session}, which is not open there"
            ),
            Self::ClaimOfOwn { session, entry } => write!(
                f,
                "entry {entry} is a client's claim about session {session}, which the agent granted"
            ),
            Self::ClaimOfAnother { session, entry } => write!(
                f,
                "entry {entry} is a claim about session {session}, which somebody else claimed"
            ),
            Self::RecordingMissing { name, entry } => write!(
                f,
                "recording {name} is missing (entry {entry} states it, no deletion does)"
            ),
            Self::RecordingCut {
                name,
                length,
                logged,
                entry,
            } => write!(
                f,
                "recording {name} was cut: it has {length} bytes, entry {entry} states {logged}"
            ),
            Self::RecordingAltered {
                name,
                from,
                to,
                entry,
            } => write!(
                f,
                "recording {name} was altered between bytes {from} and {to} (entry {entry})"
            ),
            Self::RecordingExtended {
                name,
                length,
                logged,
                entry,
            } => write!(
                f,
                "recording {name} was added to: it has {length} bytes, ended with {logged} \
                 (entry {entry})"
            ),
            Self::RecordingSwapped { name, holds } => {
                write!(f, "recording {name} was swapped: the file holds {holds}")
            }
            Self::RecordingUnlogged { name } => {
                write!(f, "recording {name} is of no session in the log")
            }
            Self::RecordingWithoutDigest { name, entry } => write!(
                f,
                "recording {} (entry {entry}) has no digest in the log though its session ended",
                name.escape_debug()
            ),
            Self::RecordingDigests { name, entry } => write!(
                f,
                "entry {entry} states less of recording {name} than was stated before"
            ),
            Self::RecordingContent { name, why } => write!(f, "recording {name}: {why}"),
        }
    }
}
