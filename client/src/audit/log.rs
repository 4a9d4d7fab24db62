//! Events in the log's order, and sessions made of them. Nothing is verified here but the
//! checkpoint's signature: `audit verify` does the rest.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use age::x25519::Identity;
use postern_proto::audit::event::{Access, Event, Fact, Source};
use postern_proto::audit::layout::{CHECKPOINT_LIMIT, StorePath, split_entries};
use postern_proto::audit::ocsf::{self, Decoded, Seal};
use postern_proto::audit::verify::{StoreReader, read_file};
use postern_proto::names::SessionId;
use serde::Serialize;

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place in the log, from 0.
    pub index: u64,
    /// What it says; `None` when this version does not know it.
    pub event: Option<Event>,
    /// Whether sealed texts stayed closed.
    pub closed: bool,
    /// Whose word it is.
    pub source: Source,
}

/// Goes through all signed entries. `each` gets them in order.
pub fn walk(
    store: &dyn StoreReader,
    identities: &[Identity],
    mut each: impl FnMut(Entry),
) -> io::Result<u64> {
    let size = size(store)?;
    for (index, width) in StorePath::bundles(size) {
        let missing = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("entries {} and on are missing", index * 256),
            )
        };
        let bundle = read_file(store, StorePath::Entries { index, width })?.ok_or_else(missing)?;
        let (entries, _) = split_entries(&bundle);
        for (offset, leaf) in (0..u64::from(width)).zip(entries) {
            each(entry(
                index * 256 + offset,
                ocsf::decode(leaf, identities).ok(),
            ));
        }
    }
    Ok(size)
}

fn entry(index: u64, decoded: Option<Decoded>) -> Entry {
    match decoded {
        None => Entry {
            index,
            event: None,
            closed: false,
            source: Source::Agent,
        },
        Some(Decoded {
            event,
            seal,
            source,
            ..
        }) => Entry {
            index,
            event: Some(event),
            closed: matches!(seal, Seal::Closed | Seal::Damaged),
            source,
        },
    }
}

/// How many entries the store's checkpoint names.
pub(crate) fn size(store: &dyn StoreReader) -> io::Result<u64> {
    let Some(file) = store.open(StorePath::Checkpoint)? else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the log has no checkpoint",
        ));
    };
    let mut note = String::new();
    file.take(CHECKPOINT_LIMIT).read_to_string(&mut note)?;
    let size = note.lines().nth(1).and_then(|line| line.parse().ok());
    size.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the log's checkpoint is malformed",
        )
    })
}

/// A session as `audit ls` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Its id.
    pub session: SessionId,
    /// Milliseconds since 1970 when it was granted.
    pub started_ms: i64,
    /// The ARN of who opened it.
    pub who: String,
    /// The target's name.
    pub target: String,
    /// `ssh as USER`, `tunnel to PORT`.
    pub kind: String,
    /// How long it lived, once it ended.
    pub duration_ms: Option<i64>,
    /// How it ended: `open`, a reason, `interrupted`.
    pub end: String,
    /// Exit status of its last command.
    pub exit_status: Option<u32>,
    /// Whose word all this is.
    pub source: Source,
}

/// Collects sessions out of entries.
#[derive(Debug, Default)]
pub struct Sessions(BTreeMap<SessionId, Session>);

impl Sessions {
    /// Takes one entry.
    pub fn add(&mut self, entry: &Entry) {
        let Some(event) = &entry.event else { return };
        let Some(id) = event.session else { return };
        // What an agent wrapped has the client's own time inside.
        let (fact, time_ms) = match &event.fact {
            Fact::Claimed(claim) => (&*claim.fact, claim.time_ms),
            fact => (fact, event.time_ms),
        };
        match fact {
            Fact::SessionGranted { access, .. } | Fact::SessionClaimed { access, .. } => {
                let session = Session {
                    session: id,
                    started_ms: time_ms,
                    who: who(event),
                    target: event
                        .target
                        .as_ref()
                        .map(|target| target.name.clone())
                        .unwrap_or_default(),
                    kind: kind(access),
                    duration_ms: None,
                    end: "open".to_owned(),
                    exit_status: None,
                    source: entry.source,
                };
                // Read from several logs, the first one counts: what an agent proved comes first.
                self.0.entry(id).or_insert(session);
            }
            Fact::SessionClosed {
                reason,
                exit_status,
                duration_ms,
                ..
            } => {
                if let Some(session) = self.0.get_mut(&id) {
                    session.duration_ms = Some(*duration_ms);
                    session.end = super::text::wire_name(reason);
                    session.exit_status = *exit_status;
                }
            }
            Fact::SessionInterrupted { .. } => {
                if let Some(session) = self.0.get_mut(&id) {
                    session.end = "interrupted".to_owned();
                }
            }
            _ => {}
        }
    }

    /// The newest `limit`, newest first.
    pub fn newest(self, limit: usize) -> Vec<Session> {
        let mut sessions: Vec<Session> = self.0.into_values().collect();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.started_ms));
        sessions.truncate(limit);
        sessions
    }
}

/// The ARN of an event's actor.
pub(super) fn who(event: &Event) -> String {
    event
        .actor
        .as_ref()
        .map(|actor| actor.principal.arn.clone())
        .unwrap_or_default()
}

/// What a session carries, in words.
pub(super) fn kind(access: &Access) -> String {
    match access {
        Access::Ssh { user } => format!("ssh as {user}"),
        Access::Tunnel { host: None, port } => format!("tunnel to {port}"),
        Access::Tunnel {
            host: Some(host),
            port,
        } => format!("tunnel to {host}:{port}"),
        Access::Shell => "shell".to_owned(),
    }
}
