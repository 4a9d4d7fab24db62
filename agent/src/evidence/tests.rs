mod claims;
mod crash;
mod disk_full;
mod files;
mod limits;
mod log;
mod recording;

use std::path::Path;
use std::time::Duration;

use age::secrecy::ExposeSecret as _;
use age::x25519::Identity;
use postern_proto::audit::event::Access;
use postern_proto::audit::note::{LogIdentity, new_key};
use postern_proto::audit::verify::{Report, Trust, verify};
use postern_proto::gateway::message::CloseReason;
use postern_proto::recording::play::{Line, Played, Player};

use super::*;

const SEED: [u8; 32] = [7; 32];

fn agent() -> postern_proto::names::AgentId {
    "bastion-1".parse().unwrap()
}

fn key(seed: u8) -> (secrecy::SecretString, String) {
    let (secret, vkey) = new_key(&agent(), &[seed; 32]).unwrap();
    (secret.as_str().into(), vkey)
}

/// Settings for a store in `folder`, and the identity that reads its recordings. The deadline is
/// long: other work on the machine must not fail a test.
pub(super) fn settings(folder: &Path) -> (Settings, Identity) {
    let identity = Identity::generate();
    let settings = Settings {
        free_floor: 0,
        deadline: Duration::from_secs(60),
        ..Settings::new(
            folder.to_owned(),
            agent(),
            key(SEED[0]).0,
            vec![identity.to_public().to_string()],
        )
    };
    (settings, identity)
}

fn session(number: u64) -> SessionId {
    SessionId::from_parts(1_700_000_000_000 + number, 1)
}

fn event(session: Option<SessionId>, fact: Fact) -> Event {
    Event {
        session,
        ..agent_event(fact)
    }
}

fn granted(number: u64) -> Event {
    let fact = Fact::SessionGranted {
        access: Access::Ssh {
            user: "root".parse().unwrap(),
        },
        policies: vec!["p".to_owned()],
        ends_at: 0,
        host_key: None,
        step_up: false,
    };
    event(Some(session(number)), fact)
}

fn closed(number: u64, reason: CloseReason, recordings: Vec<RecordingDigest>) -> Event {
    let fact = Fact::SessionClosed {
        reason,
        message: None,
        exit_status: None,
        up: 0,
        down: 0,
        duration_ms: 0,
        recordings,
    };
    event(Some(session(number)), fact)
}

fn terminal() -> RecordingKind {
    RecordingKind::Terminal {
        columns: 80,
        rows: 24,
        term: "xterm".to_owned(),
        command: None,
    }
}

fn log_identity() -> LogIdentity {
    LogIdentity::new(agent(), &key(SEED[0]).1).unwrap()
}

fn report(folder: &Path, identity: &Identity) -> Report {
    let trust = Trust {
        log: log_identity(),
        outside: &[],
        identities: std::slice::from_ref(identity),
    };
    verify(&FolderStore::new(folder.to_owned()), &trust).unwrap()
}

fn lines(folder: &Path, name: &str, identity: &Identity) -> Vec<Line> {
    let file = FolderStore::new(folder.to_owned())
        .file(postern_proto::audit::layout::StorePath::Recording(
            name.parse().unwrap(),
        ))
        .unwrap()
        .unwrap();
    let mut player = Player::new(file, std::slice::from_ref(identity)).unwrap();
    let mut lines = Vec::new();
    while let Some(line) = player.next_line().unwrap() {
        lines.push(line);
    }
    lines
}

fn output(lines: &[Line]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| match &line.what {
            Played::Entry(Entry::Output(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect()
}

/// Every file under `folder`, with its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// The text form of an identity, for a child process.
fn identity_text(identity: &Identity) -> String {
    identity.to_string().expose_secret().to_owned()
}

async fn opened(folder: &Path, change: impl FnOnce(&mut Settings)) -> (Evidence, Identity) {
    let (mut settings, identity) = settings(folder);
    change(&mut settings);
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    (evidence, identity)
}
