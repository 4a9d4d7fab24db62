//! The audit log and the recordings.

use std::collections::BTreeMap;
use std::io;
use std::sync::LazyLock;

use age::x25519::Identity;
use postern_proto::audit::append::{LogFile, Step, Tail};
use postern_proto::audit::event::{Claim, Event, Fact, RecordingDigest, Source};
use postern_proto::audit::layout::{StorePath, push_entry, split_entries};
use postern_proto::audit::note::{LogIdentity, LogSigner, new_key};
use postern_proto::audit::ocsf::Place;
use postern_proto::audit::recover::{LogFiles, replay};
use postern_proto::audit::verify::{OutsideCheckpoint, StoreReader, Trust, verify};
use postern_proto::audit::{ocsf, sealed, tree as proofs};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{AgentId, SessionId};
use postern_proto::recording::open::header_name;
use postern_proto::recording::{DataKey, Opened, Player, RecordingName, Sealer};

static AUDITOR: LazyLock<Identity> = LazyLock::new(Identity::generate);

static LOG: LazyLock<LogIdentity> = LazyLock::new(|| {
    let origin: AgentId = "bastion-1".parse().expect("a name");
    let (_, public) = new_key(&origin, &[5; 32]).expect("a seed");
    LogIdentity::new(origin, &public).expect("a key")
});

/// Bundles, leaves, paths, checkpoints and sealed texts.
pub(crate) fn audit(input: &[u8]) {
    let (entries, used) = split_entries(input);
    assert!(used <= input.len());
    let mut again = Vec::new();
    for entry in &entries {
        assert!(push_entry(&mut again, entry));
        drop(ocsf::decode(entry, &[]));
    }
    assert_eq!(again, &input[..used], "a bundle is written as it was read");
    drop(ocsf::decode(input, std::slice::from_ref(&*AUDITOR)));
    drop(sealed::open(input, std::slice::from_ref(&*AUDITOR)));
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(path) = text.parse::<StorePath>() {
        assert_eq!(path.to_string(), text, "one path has one spelling");
    }
    drop(text.parse::<RecordingName>());
    assert!(LOG.checkpoint(text).is_err(), "nobody signed this");
    assert!(LOG.clone().follow(text).is_err(), "nobody signed this");
}

/// An entry of a client's log, wrapped as the agent does it.
pub(crate) fn claim(input: &[u8]) {
    let Ok(decoded) = ocsf::decode(input, &[]) else {
        return;
    };
    if !Claim::is_claimable(&decoded.event.fact) {
        return;
    }
    let (log, session) = (LOG.origin(), decoded.event.session);
    let fact = Fact::Claimed(Claim {
        log: log.clone(),
        entry: decoded.sequence,
        leaf_hash: "0".repeat(64),
        time_ms: decoded.event.time_ms,
        fact: Box::new(decoded.event.fact),
        sealed: ocsf::sealed_of(input),
    });
    let event = Event {
        fact,
        ..decoded.event
    };
    let leaf = ocsf::encode(&event, place(7), &mut |_| {
        Err("nothing is sealed here".to_owned())
    });
    let Ok(leaf) = leaf else {
        return;
    };
    let again =
        ocsf::decode(&leaf, std::slice::from_ref(&*AUDITOR)).expect("what was written is read");
    assert_eq!(
        again.source,
        Source::Client,
        "a claim passes for what the agent saw"
    );
    assert_eq!((again.sequence, again.event.session), (7, session));
    assert!(again.truncated || matches!(again.event.fact, Fact::Claimed(_)));
}

fn place(sequence: u64) -> Place<'static> {
    Place {
        origin: LOG.origin(),
        sequence,
        version: "0",
        access: None,
        source: Source::Agent,
    }
}

/// Proofs from arbitrary tiles and of arbitrary hashes.
pub(crate) fn tree(input: &[u8]) {
    let Some((head, rest)) = input.split_first_chunk::<17>() else {
        return;
    };
    let number = |at: usize| {
        let bytes = head[at..at + 8].try_into().expect("eight bytes");
        u64::from_be_bytes(bytes) >> (head[16] & 63)
    };
    let (size, index) = (number(0), number(8));
    let tiles = |level: u8, at: u64| {
        let skip = usize::from(level) * 7 + usize::try_from(at % 13).expect("small");
        Some(rest.get(skip..)?.to_vec())
    };
    drop(proofs::root(&tiles, size));
    drop(proofs::prove_leaf(&tiles, size, index));
    drop(proofs::prove_growth(&tiles, size, index));
    let hashes: Vec<_> = rest.chunks_exact(32).map(proofs::leaf_hash).collect();
    let (root, leaf) = (proofs::leaf_hash(b"root"), proofs::leaf_hash(b"leaf"));
    // A proof of arbitrary hashes that leads to a root which was not made of them is a forgery.
    if size > 1 {
        assert!(proofs::check_leaf(&hashes, size, root, index, leaf).is_err());
    }
    if index < size {
        assert!(proofs::check_growth(&hashes, size, root, index, leaf).is_err());
    }
}

fn name() -> RecordingName {
    RecordingName {
        session: SessionId::from_parts(1_700_000_000_000, 9),
        number: 0,
    }
}

/// A data key wrapped to the auditor, once: a fuzzer cannot make one.
static WRAPPED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let payload = DataKey::new([3; 32]).to_payload();
    age::encrypt(&AUDITOR.to_public(), &payload).expect("encryption to memory")
});

/// Files that are no recordings, records that were altered, and content that no recorder wrote.
pub(crate) fn recording(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else {
        return;
    };
    let auditors = std::slice::from_ref(&*AUDITOR);
    let started = Sealer::start(name(), &DataKey::new([3; 32]), &WRAPPED);
    let (mut sealer, mut file) = started.expect("a short key");
    match mode & 3 {
        0 => {
            drop(header_name(&mut &*input));
            drop(Opened::new(input, auditors));
        }
        1 => {
            file.extend_from_slice(input);
            let mut opened = Opened::new(&*file, auditors).expect("a whole header");
            while let Ok(Some(_)) = opened.next_record() {
                panic!("a record that was not sealed was opened");
            }
        }
        2 => {
            sealer.seal(input, true, &mut file).expect("a cipher");
            play(&file, auditors);
        }
        _ => {
            let header = format!(
                "{{\"version\":3,\"term\":{{\"cols\":80,\"rows\":24}},\"timestamp\":1,\"postern\":{{\"name\":\"{}\",\"kind\":\"terminal\"}}}}\n",
                name()
            );
            let plain = [header.as_bytes(), input].concat();
            sealer.seal(&plain, true, &mut file).expect("a cipher");
            play(&file, auditors);
        }
    }
}

fn play(file: &[u8], auditors: &[Identity]) {
    let Ok(mut player) = Player::new(file, auditors) else {
        return;
    };
    let mut at = 0;
    while let Ok(Some(line)) = player.next_line() {
        assert!(line.at_ms >= at, "time runs backwards");
        at = line.at_ms;
    }
}

/// Files of a store, by their paths.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl LogFiles for Files {
    fn read(&self, file: LogFile, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.0.get(&file.to_string()) {
            Some(bytes) if bytes.len() as u64 > limit => Err(io::Error::other("longer")),
            found => Ok(found.cloned()),
        }
    }

    fn has_entries(&self) -> bool {
        true
    }
}

impl StoreReader for Files {
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn io::Read + '_>>> {
        let file = self.0.get(&path.to_string());
        Ok(file.map(|bytes| Box::new(&**bytes) as Box<dyn io::Read>))
    }

    fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        let paths = self.0.keys().filter_map(|path| path.parse().ok());
        Ok(paths
            .filter_map(|path| match path {
                StorePath::Recording(name) => Some(name),
                _ => None,
            })
            .collect())
    }
}

/// Honest stores: a small one, and one with more than one bundle.
static STORES: LazyLock<[Files; 2]> = LazyLock::new(|| [honest_store(3), honest_store(258)]);

/// A log of so many entries, and a recording.
fn honest_store(entries: usize) -> Files {
    let mut files = Files::default();
    let started = Sealer::start(name(), &DataKey::new([3; 32]), &WRAPPED);
    let (mut sealer, mut recording) = started.expect("a short key");
    sealer
        .seal(b"what was seen", true, &mut recording)
        .expect("a cipher");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &recording);
    let closed = Fact::SessionClosed {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(0),
        up: 0,
        down: 0,
        duration_ms: 1,
        recordings: vec![RecordingDigest {
            name: name().to_string(),
            length: recording.len() as u64,
            sha256: hex::encode(hash),
            complete: true,
        }],
    };
    files
        .0
        .insert(StorePath::Recording(name()).to_string(), recording);
    let entry = |(number, fact)| {
        let event = Event {
            time_ms: 1,
            session: Some(name().session),
            actor: None,
            source: None,
            target: None,
            fact,
        };
        ocsf::encode(&event, place(number), &mut |_| Err("nothing".to_owned())).expect("short")
    };
    let granted = Fact::SessionGranted {
        access: postern_proto::audit::event::Access::Ssh {
            user: "root".parse().expect("a user"),
        },
        policies: vec![],
        ends_at: 0,
        host_key: None,
        step_up: false,
    };
    let facts = [granted]
        .into_iter()
        .chain(std::iter::repeat_n(Fact::AgentStopped, entries - 2));
    let entries: Vec<_> = (0..).zip(facts.chain([closed])).map(entry).collect();
    let (secret, _) = new_key(LOG.origin(), &[5; 32]).expect("a seed");
    let signer = LogSigner::new(LOG.origin(), &secret).expect("a key");
    let tail = Tail::default();
    let commit = tail
        .commit(LOG.origin(), &[signer], &entries)
        .expect("short");
    for step in commit.steps() {
        let (path, bytes) = match step {
            Step::Replace { file, bytes } => (file.to_string(), bytes),
            Step::Create { path, bytes } => (path.to_string(), bytes),
            Step::Publish {
                index,
                width,
                bytes,
            } => (StorePath::Entries { index, width }.to_string(), bytes),
            // Of the writer alone; readers know the copy.
            Step::Grow { .. } => continue,
        };
        files.0.insert(path, bytes.to_vec());
    }
    assert!(
        faults(&files, &checkpoint_of(&files)).is_empty(),
        "an honest store has no faults"
    );
    files
}

fn checkpoint_of(files: &Files) -> String {
    String::from_utf8_lossy(files.0.get("checkpoint").map_or(&[][..], |bytes| bytes)).into_owned()
}

fn faults(files: &Files, kept: &str) -> Vec<String> {
    let trust = Trust {
        log: LOG.clone(),
        outside: &[OutsideCheckpoint {
            name: "kept".to_owned(),
            note: kept.to_owned(),
        }],
        identities: &[],
    };
    let report = verify(files, &trust).expect("memory can be read");
    report.faults.iter().map(ToString::to_string).collect()
}

/// Somebody edits the files of a store: `verify` names it, and the agent does not open the log.
pub(crate) fn store(input: &[u8]) {
    let Some((size, input)) = input.split_first() else {
        return;
    };
    let honest = &STORES[usize::from(*size == 255)];
    let mut files = honest.clone();
    let paths: Vec<String> = honest.0.keys().cloned().collect();
    for edit in input.chunks_exact(5).take(16) {
        let &[which, how, a, b, byte] = edit else {
            return;
        };
        let path = &paths[usize::from(which) % paths.len()];
        let Some(mut bytes) = files.0.remove(path) else {
            continue;
        };
        let at = usize::from(u16::from_be_bytes([a, b])) % (bytes.len() + 1);
        match how % 8 {
            0 => continue,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, byte),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => {
                let other = &paths[usize::from(byte) % paths.len()];
                if let Some(other) = files.0.get_mut(other) {
                    std::mem::swap(other, &mut bytes);
                }
            }
            _ if at < bytes.len() => bytes[at] ^= byte,
            _ => {}
        }
        files.0.insert(path.clone(), bytes);
    }
    let kept = checkpoint_of(honest);
    let found = faults(&files, &kept);
    // Signatures of others may stand below ours.
    let signed = |files: &Files| checkpoint_of(files).split("\n\n").next().map(str::to_owned);
    let changed = signed(&files) != signed(honest)
        || paths
            .iter()
            .any(|path| path != "checkpoint" && files.0.get(path) != honest.0.get(path));
    assert!(!changed || !found.is_empty(), "an edit that nobody finds");
    let checkpoint = LOG.checkpoint(&kept).expect("our own");
    let mut read = Vec::new();
    let opened = replay(&files, &checkpoint, |entry| {
        assert!(postern_proto::audit::layout::push_entry(&mut read, entry));
    });
    if opened.is_ok() {
        let whole = honest
            .0
            .iter()
            .filter(|(path, _)| path.starts_with("tile/entries"));
        let whole: Vec<u8> = whole.flat_map(|(_, bytes)| bytes.clone()).collect();
        assert_eq!(read, whole, "the agent continues a log that was changed");
    }
}
