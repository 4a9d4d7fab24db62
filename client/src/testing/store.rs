//! A store as an agent writes it: one session with a sealed command and a recording.

use std::fs;
use std::path::Path;

use age::x25519::Identity;
use aws_lc_rs::digest::{SHA256, digest};
use postern_proto::audit::event::{
    Access, Actor, Channel, Event, EventTarget, Fact, RecordingDigest, Source,
};
use postern_proto::audit::layout::{StorePath, push_entry};
use postern_proto::audit::note::{LogSigner, new_key, sign_checkpoint};
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::audit::tree::{Edge, TileEdge, leaf_hash};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{AgentId, Assurance, Principal, SessionId};
use postern_proto::recording::cast::Encoder;
use postern_proto::recording::{DataKey, Entry, Kind, RecordingName, Sealer};

/// The session in it.
pub(crate) fn session() -> SessionId {
    SessionId::from_parts(1_700_000_000_000, 7)
}

/// Writes the store into `folder`, for `auditor`.
pub(crate) fn write(folder: &Path, auditor: &Identity) {
    let seal =
        |plain: &[u8]| age::encrypt(&auditor.to_public(), plain).map_err(|error| error.to_string());
    let name = RecordingName {
        session: session(),
        number: 0,
    };
    let file = recording(name, &seal);
    fs::create_dir_all(folder.join("recordings")).unwrap();
    fs::write(folder.join(StorePath::Recording(name).to_string()), &file).unwrap();
    let recording = RecordingDigest {
        name: name.to_string(),
        length: file.len() as u64,
        sha256: hex::encode(digest(&SHA256, &file)),
        complete: true,
    };
    let origin: AgentId = "bastion-1".parse().unwrap();
    let (mut edge, mut tiles, mut bundle) = (Edge::default(), TileEdge::default(), Vec::new());
    let events = events(name, recording);
    for (sequence, event) in (0..).zip(&events) {
        let place = Place {
            origin: &origin,
            sequence,
            version: "0.1.0",
            access: None,
            source: Source::Agent,
        };
        let leaf = ocsf::encode(event, place, &mut |plain| seal(plain)).unwrap();
        edge.push(leaf_hash(&leaf));
        tiles.push(leaf_hash(&leaf));
        assert!(push_entry(&mut bundle, &leaf));
    }
    let width = events.len() as u16;
    let put = |path: StorePath, bytes: &[u8]| {
        let file = folder.join(path.to_string());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    };
    put(StorePath::Entries { index: 0, width }, &bundle);
    for (level, index, bytes) in tiles.partial() {
        let width = (bytes.len() / 32) as u16;
        put(
            StorePath::Tile {
                level,
                index,
                width,
            },
            bytes,
        );
    }
    let (secret, _) = new_key(&origin, &[1; 32]).unwrap();
    let signer = LogSigner::new(&origin, &secret).unwrap();
    let note = sign_checkpoint(&origin, u64::from(width), edge.root(), &[&signer]).unwrap();
    put(StorePath::Checkpoint, note.as_bytes());
}

fn recording(name: RecordingName, seal: &dyn Fn(&[u8]) -> Result<Vec<u8>, String>) -> Vec<u8> {
    let key = DataKey::new([5; 32]);
    let (mut sealer, mut file) =
        Sealer::start(name, &key, &seal(&key.to_payload()).unwrap()).unwrap();
    let kind = Kind::Streams {
        command: "df -h".to_owned(),
    };
    let (mut encoder, mut lines) = Encoder::start(name, &kind, 1_700_000_000, false, false);
    encoder.entry(0, &Entry::Output("one\x1b[2J\n".into()), &mut lines);
    encoder.entry(2500, &Entry::Error("two\n".into()), &mut lines);
    encoder.entry(2600, &Entry::Exit(Ok(7)), &mut lines);
    encoder.finish(2600, &mut lines);
    sealer.seal(&lines, true, &mut file).unwrap();
    file
}

fn events(name: RecordingName, recording: RecordingDigest) -> Vec<Event> {
    let event = |time_ms: i64, session: Option<SessionId>, fact: Fact| Event {
        time_ms,
        session,
        actor: session.map(|_| Actor {
            principal: Principal {
                account: "111122223333".parse().unwrap(),
                user_id: "AIDAAAAAAAAAAAAAAAAA".parse().unwrap(),
                arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
            },
            assurance: Assurance::AwsMfa,
            mfa_not_before: 0,
            certificate: "00".to_owned(),
            aws_request_ids: vec![],
        }),
        source: None,
        target: session.map(|_| EventTarget {
            id: "i-1".parse().unwrap(),
            name: "web-1".to_owned(),
            address: Some("10.0.0.5:22".to_owned()),
        }),
        fact,
    };
    let id = Some(session());
    vec![
        event(
            1_700_000_000_000,
            None,
            Fact::AgentStarted {
                version: "0.1.0".to_owned(),
                recipients: vec![],
                interrupted: vec![],
            },
        ),
        event(
            1_700_000_001_000,
            id,
            Fact::SessionGranted {
                access: Access::Ssh {
                    user: "ec2-user".parse().unwrap(),
                },
                policies: vec!["operators".to_owned()],
                ends_at: 0,
                host_key: None,
                step_up: false,
            },
        ),
        event(
            1_700_000_002_000,
            id,
            Fact::ChannelOpened {
                channel: Channel::Command {
                    line: "df -h \x1b[1m".to_owned(),
                    terminal: false,
                },
                policies: vec!["operators".to_owned()],
                refused: None,
                recording: Some(name.to_string()),
            },
        ),
        event(
            1_700_000_005_200,
            id,
            Fact::SessionClosed {
                reason: CloseReason::Done,
                message: None,
                exit_status: Some(7),
                up: 10,
                down: 20,
                duration_ms: 4200,
                recordings: vec![recording],
            },
        ),
    ]
}
