mod claims;
mod log;
mod recordings;

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
