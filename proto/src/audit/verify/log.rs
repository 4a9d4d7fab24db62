//! The log itself: entries against tiles, tiles against checkpoint, checkpoint against outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::claims::Claimed;
use super::report::{Fault, Outside, Report, Session, SessionState};
use super::{StoreReader, Trust, read_file};
use crate::audit::event::{Claim, Event, Fact, RecordingDigest};
use crate::audit::layout::{StorePath, TILE_WIDTH, split_entries};
use crate::audit::note::{Checkpoint, LogIdentity};
use crate::audit::ocsf::{self, Seal};
use crate::audit::tree::{self, Edge, HASH_SIZE, Hash, TileEdge};
use crate::names::SessionId;
use crate::recording::RecordingName;

/// Faults after which the list is cut: one edit of a tile may follow from another.
const FAULTS: usize = 1000;

/// What the log states, for the check of the recordings.
#[derive(Default)]
pub(super) struct Facts {
    /// Digests of each recording in the log's order, with their entries.
    pub(super) digests: BTreeMap<RecordingName, Vec<(u64, RecordingDigest)>>,
    /// Recordings that were named when their channel opened.
    pub(super) named: BTreeMap<String, (u64, Option<SessionId>)>,
    pub(super) deleted: BTreeSet<RecordingName>,
    /// Sessions whose writer wrote this log.
    pub(super) sessions: BTreeMap<SessionId, (u64, SessionState)>,
    /// What clients claim.
    pub(super) claims: Claimed,
}

impl Facts {
    /// Whether a session has no end, as far as the log goes.
    pub(super) fn is_open(&self, session: SessionId) -> bool {
        let own = self.sessions.get(&session).map(|(_, state)| *state);
        own.or_else(|| self.claims.state(session)) == Some(SessionState::Open)
    }
}

pub(super) fn check(
    store: &dyn StoreReader,
    trust: &Trust<'_>,
    report: &mut Report,
) -> io::Result<Facts> {
    let note = read_file(store, StorePath::Checkpoint)?;
    let Some(note) = note else {
        report.faults.push(Fault::NoCheckpoint);
        return Ok(Facts::default());
    };
    let note = String::from_utf8_lossy(&note).into_owned();
    let mut walk = Walk {
        facts: Facts::default(),
        log: trust.log.clone(),
        edge: Edge::default(),
        tiles: TileEdge::default(),
        roots: BTreeMap::new(),
        wanted: BTreeSet::new(),
        numbered: true,
        open: BTreeSet::new(),
        trust,
    };
    // The size is believed only to know what to read; the signature decides in the end, since a
    // change of keys stands in the log itself.
    let stated = note.lines().nth(1).and_then(|line| line.parse().ok());
    let outside: Vec<u64> = trust
        .outside
        .iter()
        .filter_map(|outside| outside.note.lines().nth(1)?.parse().ok())
        .collect();
    walk.wanted.extend(outside);
    walk.entries(store, stated.unwrap_or(0), report)?;
    let root = walk.edge.root();
    let reached = walk.edge.size();
    walk.partial_tiles(store, report)?;

    let signed = match walk.log.checkpoint(&note) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            let why = error.to_string();
            report.faults.push(Fault::Checkpoint { why });
            None
        }
    };
    walk.outside(report);
    if let Some(Checkpoint {
        size,
        root: signed,
        note,
    }) = signed
    {
        report.size = size;
        report.checkpoint = Some(note);
        if reached == size && root != signed && report.faults.is_empty() {
            let good = report.outside.iter().filter(|outside| outside.consistent);
            let good = good.map(|outside| outside.size).max().unwrap_or(0);
            report.faults.push(Fault::Root { size, good });
        }
    }
    // A client's own log holds nothing but claims.
    let own = walk.facts.sessions.iter();
    let (claimed, own): (Vec<_>, Vec<_>) = own
        .map(|(id, (granted, state))| Session {
            id: *id,
            granted: *granted,
            state: *state,
        })
        .partition(|session| walk.facts.claims.is_own(session.id));
    report.sessions = own;
    report.claims.sessions.extend(claimed);
    report.claims.sessions.extend(walk.facts.claims.sessions());
    for sessions in [&mut report.sessions, &mut report.claims.sessions] {
        sessions.sort_by_key(|session| session.granted);
    }
    Ok(walk.facts)
}

struct Walk<'a> {
    facts: Facts,
    log: LogIdentity,
    edge: Edge,
    tiles: TileEdge,
    /// Roots at the sizes that outside checkpoints sign.
    roots: BTreeMap<u64, Hash>,
    wanted: BTreeSet<u64>,
    numbered: bool,
    /// Sessions without an end so far, those already named left out: each start of the agent
    /// looks at these alone.
    open: BTreeSet<SessionId>,
    trust: &'a Trust<'a>,
}

impl Walk<'_> {
    fn entries(
        &mut self,
        store: &dyn StoreReader,
        size: u64,
        report: &mut Report,
    ) -> io::Result<()> {
        self.root_at();
        for (index, width) in StorePath::bundles(size) {
            let path = StorePath::Entries { index, width };
            let first = index * TILE_WIDTH;
            let bytes = read_file(store, path)?.unwrap_or_default();
            let (entries, taken) = split_entries(&bytes);
            let here = entries.get(..usize::from(width)).unwrap_or(&entries);
            let hashes = tile_hashes(store, index, width)?;
            let before = report.faults.len();
            compare(first, here, &hashes, report);
            // What was named already shifts the numbers that follow.
            self.numbered = report.faults.len() == before;
            for (entry, leaf) in (first..).zip(here) {
                self.entry(entry, leaf, store, report)?;
            }
            if here.len() < usize::from(width) {
                let from = first + here.len() as u64;
                // A removal was named already; what is missing at the end follows from it.
                let named = |fault: &Fault| matches!(fault, Fault::EntryRemoved { entry } if *entry >= first);
                if !report.faults.iter().any(named) {
                    report
                        .faults
                        .push(Fault::EntriesMissing { from, to: size - 1 });
                }
                break;
            }
            if u64::from(width) == TILE_WIDTH && (entries.len() > here.len() || taken < bytes.len())
            {
                let path = path.to_string();
                report.faults.push(Fault::Bundle { path });
            } else {
                report.unsigned = (entries.len() - here.len()) as u64;
            }
        }
        Ok(())
    }

    fn root_at(&mut self) {
        let size = self.edge.size();
        if self.wanted.contains(&size) {
            self.roots.insert(size, self.edge.root());
        }
    }

    fn entry(
        &mut self,
        entry: u64,
        leaf: &[u8],
        store: &dyn StoreReader,
        report: &mut Report,
    ) -> io::Result<()> {
        let hash = tree::leaf_hash(leaf);
        self.edge.push(hash);
        self.root_at();
        for full in self.tiles.push(hash) {
            let path = StorePath::Tile {
                level: full.level,
                index: full.index,
                width: TILE_WIDTH as u16,
            };
            expect_tile(store, path, &full.bytes, report)?;
        }
        let Ok(decoded) = ocsf::decode(leaf, self.trust.identities) else {
            report.unknown.push(entry);
            return Ok(());
        };
        if report.faults.len() < FAULTS {
            if self.numbered && decoded.sequence != entry {
                let states = decoded.sequence;
                report.faults.push(Fault::Sequence { entry, states });
            }
            if decoded.origin != self.log.origin().as_str() {
                let log = decoded.origin.chars().take(64).collect();
                report.faults.push(Fault::ForeignEntry { entry, log });
            }
            if decoded.seal == Seal::Damaged {
                report.faults.push(Fault::Sealed { entry });
            }
        }
        self.event(entry, &decoded.event, report);
        Ok(())
    }

    fn event(&mut self, entry: u64, event: &Event, report: &mut Report) {
        match (&event.fact, event.session) {
            (Fact::AgentStarted { interrupted, .. }, _) => {
                self.restarted(entry, interrupted, report);
            }
            (Fact::Claimed(claim), session) => self.claim(entry, claim, session, event, report),
            (Fact::SessionGranted { .. } | Fact::SessionClaimed { .. }, Some(session)) => {
                if matches!(event.fact, Fact::SessionClaimed { .. }) {
                    self.facts.claims.own(session);
                }
                let open = (entry, SessionState::Open);
                self.facts.sessions.insert(session, open);
                self.open.insert(session);
            }
            (Fact::SessionClosed { recordings, .. }, Some(session)) => {
                self.ended(entry, session, SessionState::Closed, report);
                self.digests(entry, recordings);
            }
            (Fact::SessionInterrupted { recordings }, Some(session)) => {
                self.ended(entry, session, SessionState::Interrupted, report);
                self.digests(entry, recordings);
            }
            (Fact::RecordingProgressed { recording }, _) => {
                self.digests(entry, std::slice::from_ref(recording));
            }
            (
                Fact::ChannelOpened {
                    recording: Some(name),
                    ..
                },
                session,
            ) => {
                self.facts.named.insert(name.clone(), (entry, session));
            }
            (Fact::RecordingsDeleted { recordings, .. }, _) => {
                self.facts.deleted.extend(recordings);
            }
            (Fact::LogKeyChanged { note, .. }, _) => {
                if let Err(error) = self.log.follow(note) {
                    let why = error.to_string();
                    report.faults.push(Fault::KeyChange { entry, why });
                }
            }
            _ => {}
        }
    }

    /// A claim says something of its own session alone: what it states of another one's
    /// recordings is nobody's word.
    fn claim(
        &mut self,
        entry: u64,
        claim: &Claim,
        session: Option<SessionId>,
        event: &Event,
        report: &mut Report,
    ) {
        report.claims.entries += 1;
        let Some(session) = session else { return };
        if self.facts.sessions.contains_key(&session) {
            report.faults.push(Fault::ClaimOfOwn { session, entry });
            return;
        }
        if let Some(fault) = self.facts.claims.take(entry, claim, session, event) {
            report.faults.push(fault);
            return;
        }
        for digest in claim.fact.recordings() {
            let name = digest.name.parse::<RecordingName>();
            if name.is_ok_and(|name| name.session == session) {
                self.facts.claims.states(&digest.name);
                self.digests(entry, std::slice::from_ref(digest));
            }
        }
    }

    /// No session lives through a start of the agent: those that were open are named, and end
    /// with an event of their own right after.
    fn restarted(&mut self, entry: u64, interrupted: &[SessionId], report: &mut Report) {
        let interrupted: BTreeSet<_> = interrupted.iter().copied().collect();
        let left: BTreeSet<_> = self.open.intersection(&interrupted).copied().collect();
        for session in std::mem::replace(&mut self.open, left) {
            let granted = self
                .facts
                .sessions
                .get(&session)
                .map(|(granted, _)| *granted);
            if let (false, Some(granted)) = (interrupted.contains(&session), granted) {
                report.faults.push(Fault::SessionWithoutEnd {
                    session,
                    granted,
                    restarted: entry,
                });
            }
        }
    }

    fn ended(&mut self, entry: u64, session: SessionId, how: SessionState, report: &mut Report) {
        match self.facts.sessions.get_mut(&session) {
            Some((_, state)) if *state == SessionState::Open => {
                *state = how;
                self.open.remove(&session);
            }
            _ => report
                .faults
                .push(Fault::EndWithoutSession { session, entry }),
        }
    }

    fn digests(&mut self, entry: u64, recordings: &[RecordingDigest]) {
        for digest in recordings {
            if let Ok(name) = digest.name.parse() {
                let list = self.facts.digests.entry(name).or_default();
                list.push((entry, digest.clone()));
            }
        }
    }

    fn partial_tiles(&self, store: &dyn StoreReader, report: &mut Report) -> io::Result<()> {
        for (level, index, bytes) in self.tiles.partial() {
            let width = (bytes.len() / HASH_SIZE) as u16;
            let path = StorePath::Tile {
                level,
                index,
                width,
            };
            expect_tile(store, path, bytes, report)?;
        }
        Ok(())
    }

    fn outside(&self, report: &mut Report) {
        let now = self.edge.size();
        for outside in self.trust.outside {
            let name = outside.name.clone();
            let checkpoint = match self.log.checkpoint(&outside.note) {
                Ok(checkpoint) => checkpoint,
                Err(error) => {
                    let why = error.to_string();
                    report.faults.push(Fault::Outside { name, why });
                    continue;
                }
            };
            let size = checkpoint.size;
            let consistent = self.roots.get(&size) == Some(&checkpoint.root);
            let known = name.clone();
            if size > now {
                report.faults.push(Fault::RolledBack { name, size, now });
            } else if !consistent {
                report.faults.push(Fault::Forked { name, size });
            }
            report.outside.push(Outside {
                name: known,
                size,
                consistent,
            });
        }
    }
}

/// The leaves' hashes as the store's level 0 tile holds them.
fn tile_hashes(store: &dyn StoreReader, index: u64, width: u16) -> io::Result<Vec<Hash>> {
    let path = StorePath::Tile {
        level: 0,
        index,
        width,
    };
    let bytes = read_file(store, path)?.unwrap_or_default();
    let (hashes, _) = bytes.as_chunks::<HASH_SIZE>();
    Ok(hashes.iter().map(|hash| Hash(*hash)).collect())
}

/// Names what differs between entries and the tile that was made of them. The tile may be what
/// was altered; either way it is named.
fn compare(first: u64, entries: &[&[u8]], tile: &[Hash], report: &mut Report) {
    let hashes: Vec<Hash> = entries.iter().map(|entry| tree::leaf_hash(entry)).collect();
    let (mut here, mut there) = (0, 0);
    let mut swapped = BTreeSet::new();
    while let (Some(hash), Some(expected)) = (hashes.get(here), tile.get(there)) {
        let entry = first + there as u64;
        if hash == expected || swapped.contains(&there) {
            (here, there) = (here + 1, there + 1);
            continue;
        }
        if report.faults.len() >= FAULTS {
            return;
        }
        let follows = hashes.get(here + 1);
        let after = tile.get(there + 1);
        let other = tile
            .iter()
            .skip(there + 1)
            .position(|one| one == hash)
            .map(|found| there + 1 + found);
        let is_swap = other.is_some_and(|other| {
            let counterpart = here + (other - there);
            hashes.get(counterpart) == Some(expected)
        });
        if let (Some(other), true) = (other, is_swap) {
            swapped.insert(other);
            let with = first + other as u64;
            report.faults.push(Fault::EntriesSwapped { entry, with });
            (here, there) = (here + 1, there + 1);
        } else if after == Some(hash) {
            report.faults.push(Fault::EntryRemoved { entry });
            there += 1;
        } else if follows == Some(expected) {
            report.faults.push(Fault::EntryInserted { entry });
            here += 1;
        } else {
            report.faults.push(Fault::EntryAltered { entry });
            (here, there) = (here + 1, there + 1);
        }
    }
}

fn expect_tile(
    store: &dyn StoreReader,
    path: StorePath,
    bytes: &[u8],
    report: &mut Report,
) -> io::Result<()> {
    let found = read_file(store, path)?;
    if found.as_deref() != Some(bytes) && report.faults.is_empty() {
        let path = path.to_string();
        report.faults.push(Fault::Tile { path });
    }
    Ok(())
}
