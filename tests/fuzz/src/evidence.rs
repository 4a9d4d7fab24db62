//! The audit log and the recordings.

use std::sync::LazyLock;

use age::x25519::Identity;
use postern_proto::audit::layout::{StorePath, push_entry, split_entries};
use postern_proto::audit::note::{LogIdentity, new_key};
use postern_proto::audit::{ocsf, sealed, tree as proofs};
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
pub fn audit(input: &[u8]) {
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

/// Proofs from arbitrary tiles and of arbitrary hashes.
pub fn tree(input: &[u8]) {
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
pub fn recording(input: &[u8]) {
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
