mod claims;

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::audit::event::{Access, Event, Fact, RecordingDigest, Source};
use crate::audit::layout::{TILE_WIDTH, push_entry, split_entries};
use crate::audit::note::{LogSigner, new_key, sign_checkpoint, sign_key_change};
use crate::audit::ocsf::{self, Place};
use crate::audit::tree::{Edge, TileEdge, leaf_hash};
use crate::gateway::message::CloseReason;
use crate::names::{AgentId, SessionId};
use crate::recording::{DataKey, Sealer};

/// A store in memory.
#[derive(Clone, Default)]
struct Store {
    files: BTreeMap<StorePath, Vec<u8>>,
}

impl StoreReader for Store {
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn io::Read + '_>>> {
        let file = self.files.get(&path);
        Ok(file.map(|bytes| Box::new(bytes.as_slice()) as Box<dyn io::Read>))
    }

    fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        let names = self.files.keys().filter_map(|path| match path {
            StorePath::Recording(name) => Some(*name),
            _ => None,
        });
        Ok(names.collect())
    }
}

struct Lab {
    origin: AgentId,
    seed: u8,
    identity: Identity,
    events: Vec<Event>,
    store: Store,
}

fn session(number: u64) -> SessionId {
    SessionId::from_parts(number, 1)
}

fn name(number: u64) -> RecordingName {
    RecordingName {
        session: session(number),
        number: 0,
    }
}

fn event(session: Option<SessionId>, fact: Fact) -> Event {
    Event {
        time_ms: 1_700_000_000_000,
        session,
        actor: None,
        source: None,
        target: None,
        fact,
    }
}

fn granted(number: u64) -> Event {
    let fact = Fact::SessionGranted {
        access: Access::Ssh {
            user: "root".parse().unwrap(),
        },
        policies: vec![],
        ends_at: 0,
        host_key: None,
        step_up: false,
    };
    event(Some(session(number)), fact)
}

fn closed(number: u64, recordings: Vec<RecordingDigest>) -> Event {
    let fact = Fact::SessionClosed {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(0),
        up: 0,
        down: 0,
        duration_ms: 1,
        recordings,
    };
    event(Some(session(number)), fact)
}

fn started() -> Event {
    let fact = Fact::AgentStarted {
        version: "0".to_owned(),
        recipients: vec![],
        interrupted: vec![],
    };
    event(None, fact)
}

fn digest(name: RecordingName, bytes: &[u8], complete: bool) -> RecordingDigest {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    RecordingDigest {
        name: name.to_string(),
        length: bytes.len() as u64,
        sha256: hex::encode(hash),
        complete,
    }
}

impl Lab {
    fn new() -> Self {
        Self {
            origin: "bastion-1".parse().unwrap(),
            seed: 1,
            identity: Identity::generate(),
            events: vec![started()],
            store: Store::default(),
        }
    }

    /// Sessions 1 to `count`, each with one recording whose growth was logged halfway.
    fn with_sessions(count: u64) -> Self {
        let mut lab = Self::new();
        for number in 1..=count {
            let bytes = lab.record(name(number), true);
            let half = &bytes[..bytes.len() / 2];
            let progress = Fact::RecordingProgressed {
                recording: digest(name(number), half, false),
            };
            lab.events.push(granted(number));
            lab.events.push(event(Some(session(number)), progress));
            let last = digest(name(number), &bytes, true);
            lab.events.push(closed(number, vec![last]));
        }
        lab.write();
        lab
    }

    fn record(&mut self, name: RecordingName, end: bool) -> Vec<u8> {
        let key = DataKey::new([9; 32]);
        let wrapped = age::encrypt(&self.identity.to_public(), &key.to_payload()).unwrap();
        let (mut sealer, mut file) = Sealer::start(name, &key, &wrapped).unwrap();
        for line in [name.to_string(), "b".to_owned(), "c".to_owned()] {
            sealer.seal(line.as_bytes(), false, &mut file).unwrap();
        }
        if end {
            sealer.seal(b"", true, &mut file).unwrap();
        }
        let path = StorePath::Recording(name);
        self.store.files.insert(path, file.clone());
        file
    }

    fn signer(&self, seed: u8) -> LogSigner {
        let (secret, _) = new_key(&self.origin, &[seed; 32]).unwrap();
        LogSigner::new(&self.origin, &secret).unwrap()
    }

    fn leaves(&self) -> Vec<Vec<u8>> {
        let leaf = |(sequence, event): (u64, &Event)| {
            let place = Place {
                origin: &self.origin,
                sequence,
                version: "0",
                access: None,
                source: Source::Agent,
            };
            ocsf::encode(event, place, &mut |_| Err("nothing to seal".to_owned())).unwrap()
        };
        (0..).zip(&self.events).map(leaf).collect()
    }

    /// Writes the log of all events, honestly.
    fn write(&mut self) {
        let leaves = self.leaves();
        self.write_leaves(&leaves, self.seed);
    }

    fn write_leaves(&mut self, leaves: &[Vec<u8>], seed: u8) {
        let files = &mut self.store.files;
        files.retain(|path, _| matches!(path, StorePath::Recording(_)));
        let (mut edge, mut tiles) = (Edge::default(), TileEdge::default());
        let tile = |level, index, bytes: &[u8]| {
            let width = (bytes.len() / 32) as u16;
            let path = StorePath::Tile {
                level,
                index,
                width,
            };
            (path, bytes.to_vec())
        };
        for (index, part) in (0..).zip(leaves.chunks(TILE_WIDTH as usize)) {
            let mut bundle = Vec::new();
            for leaf in part {
                assert!(push_entry(&mut bundle, leaf));
                edge.push(leaf_hash(leaf));
                for full in tiles.push(leaf_hash(leaf)) {
                    files.extend([tile(full.level, full.index, &full.bytes)]);
                }
            }
            let width = part.len() as u16;
            files.insert(StorePath::Entries { index, width }, bundle);
        }
        for (level, index, bytes) in tiles.partial() {
            files.extend([tile(level, index, bytes)]);
        }
        let signer = self.signer(seed);
        let note = sign_checkpoint(&self.origin, edge.size(), edge.root(), &[&signer]).unwrap();
        self.store
            .files
            .insert(StorePath::Checkpoint, note.into_bytes());
    }

    fn checkpoint(&self) -> OutsideCheckpoint {
        let note = self.store.files[&StorePath::Checkpoint].clone();
        OutsideCheckpoint {
            name: "alice's laptop".to_owned(),
            note: String::from_utf8(note).unwrap(),
        }
    }

    fn verify(&self, outside: &[OutsideCheckpoint]) -> Report {
        let (_, vkey) = new_key(&self.origin, &[self.seed; 32]).unwrap();
        let trust = Trust {
            log: LogIdentity::new(self.origin.clone(), &vkey).unwrap(),
            outside,
            identities: std::slice::from_ref(&self.identity),
        };
        verify(&self.store, &trust).unwrap()
    }

    fn faults(&self) -> Vec<Fault> {
        self.verify(&[]).faults
    }

    /// Edits the stored entries of the bundle with `entry` in it, as a tamperer without the key.
    fn edit(&mut self, entry: u64, edit: impl FnOnce(&mut Vec<Vec<u8>>, usize)) {
        let files = &mut self.store.files;
        let index = entry / TILE_WIDTH;
        let bundle = files
            .iter_mut()
            .find(|(path, _)| matches!(path, StorePath::Entries { index: i, .. } if *i == index))
            .unwrap()
            .1;
        let (entries, _) = split_entries(bundle);
        let mut entries: Vec<Vec<u8>> = entries.into_iter().map(<[u8]>::to_vec).collect();
        edit(&mut entries, (entry % TILE_WIDTH) as usize);
        bundle.clear();
        for entry in entries {
            assert!(push_entry(bundle, &entry));
        }
    }

    fn recording(&mut self, number: u64) -> &mut Vec<u8> {
        let path = StorePath::Recording(name(number));
        self.store.files.get_mut(&path).unwrap()
    }
}

#[test]
fn an_untouched_store_holds_and_says_that_rollback_is_not_excluded() {
    let lab = Lab::with_sessions(200);
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!(report.size, 601);
    assert_eq!(report.recordings, 200);
    assert_eq!(report.sessions.len(), 200);
    assert!(!report.rollback_excluded());
    assert!(report.rollback().starts_with("rollback not excluded"));

    let report = lab.verify(&[lab.checkpoint()]);
    assert!(report.holds() && report.rollback_excluded());
    assert!(report.rollback().contains("601 by alice's laptop"));
}

#[test]
fn one_byte_changed_is_named() {
    for entry in [0, 5, 255, 256, 600] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| {
            let last = entries[at].len() - 3;
            entries[at][last] ^= 1;
        });
        assert_eq!(lab.faults()[0], Fault::EntryAltered { entry }, "{entry}");
    }
}

#[test]
fn one_entry_removed_is_named() {
    for entry in [0, 7, 300, 599] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| drop(entries.remove(at)));
        let faults = lab.faults();
        assert_eq!(faults[0], Fault::EntryRemoved { entry }, "{faults:?}");
    }
}

#[test]
fn a_foreign_entry_is_named() {
    let mut lab = Lab::with_sessions(20);
    lab.edit(9, |entries, at| entries.insert(at, b"{}".to_vec()));
    assert_eq!(lab.faults()[0], Fault::EntryInserted { entry: 9 });
}

#[test]
fn two_entries_swapped_are_named() {
    for (entry, with) in [(3, 4), (3, 40), (256, 511)] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| {
            entries.swap(at, (with % TILE_WIDTH) as usize)
        });
        let expected = Fault::EntriesSwapped { entry, with };
        assert_eq!(lab.faults()[0], expected, "{entry}");
    }
}

#[test]
fn a_cut_tail_is_named() {
    let mut lab = Lab::with_sessions(200);
    lab.edit(600, |entries, at| entries.truncate(at - 9));
    let cut = Fault::EntriesMissing { from: 591, to: 600 };
    assert!(lab.faults().contains(&cut), "{:?}", lab.faults());
    let gone = StorePath::Entries {
        index: 2,
        width: 89,
    };
    assert!(lab.store.files.remove(&gone).is_some());
    let cut = Fault::EntriesMissing { from: 512, to: 600 };
    assert!(lab.faults().contains(&cut), "{:?}", lab.faults());
}

#[test]
fn entries_and_tiles_rewritten_together_do_not_reproduce_the_checkpoint() {
    let mut lab = Lab::with_sessions(20);
    let honest = lab.store.files[&StorePath::Checkpoint].clone();
    let mut leaves = lab.leaves();
    leaves.swap(4, 8);
    lab.write_leaves(&leaves, 1);
    lab.store
        .files
        .insert(StorePath::Checkpoint, honest.clone());
    assert!(lab.faults().contains(&Fault::Sequence {
        entry: 4,
        states: 8
    }));

    // An edit that keeps the numbers right.
    lab.events[5].time_ms += 1;
    lab.write();
    lab.store.files.insert(StorePath::Checkpoint, honest);
    assert_eq!(lab.faults(), [Fault::Root { size: 61, good: 0 }]);
}

#[test]
fn a_tile_that_was_altered_is_named() {
    let mut lab = Lab::with_sessions(200);
    let path = StorePath::Tile {
        level: 1,
        index: 0,
        width: 2,
    };
    lab.store.files.get_mut(&path).unwrap()[40] ^= 1;
    let path = path.to_string();
    assert_eq!(lab.faults(), [Fault::Tile { path }]);
}

#[test]
fn a_rollback_is_found_by_a_checkpoint_from_outside_and_by_nothing_else() {
    let mut lab = Lab::with_sessions(20);
    let outside = lab.checkpoint();
    let rolled = Lab::with_sessions(19);
    lab.store.files = rolled.store.files;
    lab.identity = rolled.identity;
    assert!(lab.verify(&[]).holds());
    let report = lab.verify(&[outside]);
    let fault = Fault::RolledBack {
        name: "alice's laptop".to_owned(),
        size: 61,
        now: 58,
    };
    assert_eq!(report.faults, [fault]);
    assert!(!report.rollback_excluded());
}

#[test]
fn a_fork_by_whoever_holds_the_key_is_found_by_a_checkpoint_from_outside() {
    let mut lab = Lab::with_sessions(20);
    let outside = lab.checkpoint();
    lab.events[5].time_ms += 1;
    lab.events.push(started());
    lab.write();
    assert!(lab.verify(&[]).holds());
    let fault = Fault::Forked {
        name: "alice's laptop".to_owned(),
        size: 61,
    };
    assert_eq!(lab.verify(&[outside]).faults, [fault]);
}

#[test]
fn a_checkpoint_by_another_key_or_none_is_named() {
    let mut lab = Lab::with_sessions(3);
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 2);
    assert!(matches!(lab.faults()[..], [Fault::Checkpoint { .. }]));
    lab.store.files.remove(&StorePath::Checkpoint);
    assert_eq!(lab.faults()[0], Fault::NoCheckpoint);
}

#[test]
fn a_new_key_is_followed_when_the_old_one_named_it_in_the_log() {
    let mut lab = Lab::with_sessions(3);
    let (_, vkey) = new_key(&lab.origin, &[2; 32]).unwrap();
    let note = sign_key_change(&lab.origin, &vkey, &lab.signer(1)).unwrap();
    let change = Fact::LogKeyChanged { vkey, note };
    lab.events.push(event(None, change));
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 2);
    assert_eq!(lab.faults(), []);

    let (_, vkey) = new_key(&lab.origin, &[3; 32]).unwrap();
    let note = sign_key_change(&lab.origin, &vkey, &lab.signer(3)).unwrap();
    lab.events
        .push(event(None, Fact::LogKeyChanged { vkey, note }));
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 3);
    assert!(matches!(
        lab.faults()[..],
        [Fault::KeyChange { entry: 11, .. }, Fault::Checkpoint { .. }]
    ));
}

#[test]
fn a_recording_that_was_altered_names_the_bytes_between_two_logged_lengths() {
    let mut lab = Lab::with_sessions(3);
    let length = lab.recording(2).len();
    for (at, from, to, entry) in [
        (length / 2 - 1, 0, length / 2, 5),
        (length - 1, length / 2, length, 6),
    ] {
        lab.recording(2)[at] ^= 1;
        let fault = Fault::RecordingAltered {
            name: name(2),
            from: from as u64,
            to: to as u64,
            entry,
        };
        assert_eq!(lab.faults(), [fault]);
        lab.recording(2)[at] ^= 1;
    }
}

#[test]
fn a_recording_that_was_cut_is_cut_and_not_interrupted() {
    let mut lab = Lab::with_sessions(3);
    let logged = lab.recording(2).len() as u64;
    for length in [logged - 1, logged / 2, 10, 0] {
        lab.recording(2).truncate(length as usize);
        let faults = lab.faults();
        let is_cut = matches!(
            faults[..],
            [Fault::RecordingCut { name: cut, length: found, logged: stated, .. }]
                if cut == name(2) && found == length && stated == logged
        );
        assert!(is_cut, "{faults:?}");
    }
}

#[test]
fn recordings_that_were_swapped_name_what_they_hold() {
    let mut lab = Lab::with_sessions(3);
    let (one, two) = (lab.recording(1).clone(), lab.recording(2).clone());
    *lab.recording(1) = two;
    *lab.recording(2) = one;
    let swapped = |number, holds| Fault::RecordingSwapped {
        name: name(number),
        holds: name(holds),
    };
    assert_eq!(lab.faults(), [swapped(1, 2), swapped(2, 1)]);
}

#[test]
fn a_recording_that_is_missing_is_named_unless_its_deletion_is_in_the_log() {
    let mut lab = Lab::with_sessions(3);
    lab.store.files.remove(&StorePath::Recording(name(2)));
    let missing = Fault::RecordingMissing {
        name: name(2),
        entry: 6,
    };
    assert_eq!(lab.faults(), [missing]);
    let deletion = Fact::RecordingsDeleted {
        recordings: vec![name(2)],
        reason: "retention".to_owned(),
    };
    lab.events.push(event(None, deletion));
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!((report.faults, report.deleted), (vec![], vec![name(2)]));
}

#[test]
fn a_recording_that_was_added_to_or_that_nobody_logged_is_named() {
    let mut lab = Lab::with_sessions(3);
    lab.recording(2).push(0);
    let faults = lab.faults();
    assert!(
        matches!(faults[..], [Fault::RecordingExtended { .. }]),
        "{faults:?}"
    );
    lab.recording(2).pop();
    lab.record(name(77), true);
    assert_eq!(lab.faults(), [Fault::RecordingUnlogged { name: name(77) }]);
}

#[test]
fn an_interrupted_recording_is_no_fault_when_the_log_says_so() {
    let mut lab = Lab::with_sessions(1);
    lab.events.push(granted(5));
    let bytes = lab.record(name(5), false);
    lab.write();
    // The agent runs, or was killed and did not start again.
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!(report.sessions[1].state, SessionState::Open);

    let interrupted = Fact::SessionInterrupted {
        recordings: vec![digest(name(5), &bytes, false)],
    };
    let mut start = started();
    start.fact = Fact::AgentStarted {
        version: "0".to_owned(),
        recipients: vec![],
        interrupted: vec![session(5)],
    };
    lab.events
        .extend([start, event(Some(session(5)), interrupted)]);
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!(
        (report.faults.as_slice(), report.interrupted.as_slice()),
        ([].as_slice(), [name(5)].as_slice())
    );

    lab.recording(5).truncate(bytes.len() - 1);
    assert!(matches!(lab.faults()[..], [Fault::RecordingCut { .. }]));
}

#[test]
fn a_recording_that_the_log_calls_complete_needs_its_final_record() {
    let mut lab = Lab::with_sessions(1);
    let bytes = lab.record(name(5), false);
    let last = digest(name(5), &bytes, true);
    lab.events.extend([granted(5), closed(5, vec![last])]);
    lab.write();
    assert!(matches!(lab.faults()[..], [Fault::RecordingContent { .. }]));
}

#[test]
fn a_session_without_an_end_is_named_once_the_agent_started_again() {
    let mut lab = Lab::with_sessions(1);
    lab.events.push(granted(5));
    lab.write();
    assert_eq!(lab.faults(), []);
    lab.events.extend([started(), started()]);
    lab.write();
    let fault = Fault::SessionWithoutEnd {
        session: session(5),
        granted: 4,
        restarted: 5,
    };
    assert_eq!(lab.faults(), [fault]);
}

#[test]
fn what_is_wrong_is_said_in_a_sentence_without_control_characters() {
    let fault = Fault::RolledBack {
        name: "\u{1b}[2Jevil".to_owned(),
        size: 3,
        now: 2,
    };
    let text = fault.to_string();
    assert!(text.starts_with("the log was rolled back"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
