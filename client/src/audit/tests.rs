//! Reading a store from a folder and through an agent.

use std::fs;
use std::time::Duration;

use age::x25519::Identity;
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::note::LogIdentity;
use postern_proto::audit::verify::{StoreReader, Trust, verify};
use postern_proto::recording::RecordingName;

use super::log::{Sessions, walk};
use super::play::{Pace, play, raw};
use super::store::{Folder, Remote};
use super::text;
use crate::output::neutral;
use crate::testing::{FakeAgent, FakeLog, store};

fn lines(reader: &dyn StoreReader, keys: &[Identity]) -> Vec<String> {
    let mut lines = Vec::new();
    walk(reader, keys, |entry| {
        let event = entry.event.unwrap();
        lines.push(format!(
            "{} {}",
            text::moment(event.time_ms),
            neutral(&text::event(&event))
        ));
    })
    .unwrap();
    lines
}

fn recording(reader: &dyn StoreReader) -> Box<dyn std::io::Read + '_> {
    let name = RecordingName {
        session: store::session(),
        number: 0,
    };
    reader.open(StorePath::Recording(name)).unwrap().unwrap()
}

#[test]
fn events_read_as_sentences_and_only_an_auditor_sees_what_is_sealed() {
    let (folder, auditor) = (tempfile::tempdir().unwrap(), Identity::generate());
    store::write(folder.path(), &auditor);
    let reader = Folder::new(folder.path()).unwrap();
    let opened = lines(&reader, std::slice::from_ref(&auditor)).join("\n");
    let hash = word_after(&opened, "sha256 ");
    // The length varies: age adds a random stanza.
    let length = format!(" of {} bytes, sha256", word_after(&opened, " of "));
    let stable = opened
        .replace(&hash, "HASH")
        .replace(&length, " of N bytes, sha256");
    insta::assert_snapshot!(stable, @r#"
        2023-11-14 22:13:20.000 agent 0.1.0 started
        2023-11-14 22:13:21.000 session granted: ssh as ec2-user, by policy operators; target web-1 at 10.0.0.5:22; by arn:aws:iam::111122223333:user/alice (aws-mfa)
        2023-11-14 22:13:22.000 command `df -h \u{1b}[1m` opened, recorded as 01HF7YAT000000000000000007-0; target web-1 at 10.0.0.5:22; by arn:aws:iam::111122223333:user/alice (aws-mfa)
        2023-11-14 22:13:25.200 session closed (done) after 4.2s, 10 bytes up, 20 down, exit status 7; recording 01HF7YAT000000000000000007-0 of N bytes, sha256 HASH; target web-1 at 10.0.0.5:22; by arn:aws:iam::111122223333:user/alice (aws-mfa)
        "#);
    assert!(!lines(&reader, &[]).join("\n").contains("df -h"));
}

/// The word after `label`: hashes of encrypted files differ each time.
fn word_after(text: &str, label: &str) -> String {
    let after = text.split_once(label).unwrap().1;
    after.split([' ', ';']).next().unwrap().to_owned()
}

#[test]
fn sessions_say_when_who_where_and_how_they_ended() {
    let (folder, auditor) = (tempfile::tempdir().unwrap(), Identity::generate());
    store::write(folder.path(), &auditor);
    let mut sessions = Sessions::default();
    walk(&Folder::new(folder.path()).unwrap(), &[], |entry| {
        sessions.add(&entry)
    })
    .unwrap();
    let sessions = sessions.newest(10);
    insta::assert_snapshot!(serde_json::to_string(&sessions).unwrap(), @r#"[{"session":"01HF7YAT000000000000000007","started_ms":1700000001000,"who":"arn:aws:iam::111122223333:user/alice","target":"web-1","kind":"ssh as ec2-user","duration_ms":4200,"end":"done","exit_status":7,"source":"agent"}]"#);
}

#[test]
fn a_recording_plays_in_its_time_with_escapes_shown() {
    let (folder, auditor) = (tempfile::tempdir().unwrap(), Identity::generate());
    store::write(folder.path(), &auditor);
    let reader = Folder::new(folder.path()).unwrap();
    let (mut out, mut waited) = (Vec::new(), Vec::new());
    let pace = Pace {
        speed: 2.0,
        terminal: true,
    };
    let note = play(
        recording(&reader),
        std::slice::from_ref(&auditor),
        pace,
        &mut out,
        |pause| waited.push(pause),
    )
    .unwrap();
    assert_eq!(note, None);
    assert_eq!(waited.iter().sum::<Duration>(), Duration::from_millis(1300));
    insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
        one\u{1b}[2J
        stderr: two

        [exit status 7]
        "#);
    let mut plain = Vec::new();
    raw(recording(&reader), &[auditor], &mut plain).unwrap();
    assert!(
        String::from_utf8(plain)
            .unwrap()
            .starts_with(r#"{"version":3,"#)
    );
    let stranger = play(
        recording(&reader),
        &[Identity::generate()],
        pace,
        &mut Vec::new(),
        |_| {},
    );
    assert!(stranger.unwrap_err().hint.unwrap().contains("--identity"));
}

#[tokio::test]
async fn what_an_agent_serves_is_verified_like_any_copy() {
    let (folder, auditor) = (tempfile::tempdir().unwrap(), Identity::generate());
    store::write(folder.path(), &auditor);
    let agent = FakeAgent::start().await;
    agent.serve_store(folder.path());
    let remote = Remote::connect(agent.gateway().await).await.unwrap();
    let keys = vec![auditor];
    let report = tokio::task::spawn_blocking(move || {
        let log =
            LogIdentity::new("bastion-1".parse().unwrap(), &FakeLog::default().key()).unwrap();
        let trust = Trust {
            log,
            outside: &[],
            identities: &keys,
        };
        (verify(&remote, &trust).unwrap(), lines(&remote, &[]).len())
    });
    let (report, events) = report.await.unwrap();
    assert_eq!(report.faults, []);
    assert_eq!((report.size, report.recordings, events), (4, 1, 4));
    assert!(!report.rollback_excluded());
    // An agent that serves another recording than it logged is caught.
    let name = RecordingName {
        session: store::session(),
        number: 0,
    };
    let path = folder.path().join(StorePath::Recording(name).to_string());
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    agent.serve_store(folder.path());
    let remote = Remote::connect(agent.gateway().await).await.unwrap();
    let report = tokio::task::spawn_blocking(move || {
        let log =
            LogIdentity::new("bastion-1".parse().unwrap(), &FakeLog::default().key()).unwrap();
        verify(
            &remote,
            &Trust {
                log,
                outside: &[],
                identities: &[],
            },
        )
        .unwrap()
    });
    assert!(!report.await.unwrap().holds());
}

#[test]
fn a_folder_without_a_log_is_told_apart_from_an_empty_log() {
    let folder = tempfile::tempdir().unwrap();
    let error = Folder::new(folder.path()).unwrap_err();
    assert!(
        error
            .message
            .ends_with("is no audit store: it holds neither `checkpoint` nor `tile`"),
        "{error}"
    );
}
