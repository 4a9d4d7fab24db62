//! Disks that fill, processes that die.

use postern_proto::audit::event::{Access, Event, Fact};
use postern_proto::names::SessionId;

use super::super::open::{Marker, orphans};
use super::*;

#[tokio::test]
async fn without_a_place_for_evidence_no_session_of_the_client_opens() {
    let home = Home::new();
    fs::create_dir_all(&home.context.state).unwrap();
    fs::write(&home.context.evidence, "a file").unwrap();
    let error = Evidence::open(&home.context, shell()).await.unwrap_err();
    assert!(matches!(error, EvidenceError::Unusable { .. }), "{error}");
    let told = UserError::from(error);
    assert!(told.message.contains("state/evidence"), "{told}");
    assert!(told.hint.unwrap().contains("POSTERN_EVIDENCE"));
}

#[tokio::test]
async fn a_disk_that_fills_ends_the_client_s_session_with_that_reason() {
    let home = Home::new();
    let record = Evidence::open(&home.context, tunnel()).await.unwrap();
    let flow = record.flow_opened("127.0.0.1:5000").await.unwrap();
    // Where the log was is now something that cannot be written.
    let tiles = home.store().folder.join("tile/0/000.p");
    fs::remove_dir_all(&tiles).unwrap();
    fs::write(&tiles, "in the way").unwrap();
    let error = record.ssm_session(ssm("alice-2")).await.unwrap_err();
    assert!(
        error.to_string().contains("could not be written: the log:"),
        "{error}"
    );
    assert_eq!(record.failed().await, error);
    assert_eq!(record.output(b"x").await, Err(error.clone()));
    assert_eq!(flow.moved(1, 1), Err(error.clone()));
    assert!(record.close(done()).await.is_err());
}

#[tokio::test]
async fn a_session_whose_process_died_is_closed_as_interrupted_by_the_next_one() {
    let home = Home::new();
    let dead = Evidence::open(&home.context, shell()).await.unwrap();
    dead.output(b"last words").await.unwrap();
    // What a kill leaves: the log without an end, the mark without its lock.
    let copy = home.folder.path().join("copy");
    copy_tree(&home.context.evidence, &copy);
    let id = dead.id();
    dead.close(done()).await.unwrap();
    fs::remove_dir_all(&home.context.evidence).unwrap();
    fs::rename(&copy, &home.context.evidence).unwrap();

    let next = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
    let report = home.verified(&[]);
    assert_eq!(report.faults, []);
    let states: Vec<_> = report
        .claims
        .sessions
        .iter()
        .map(|session| (session.id, session.state))
        .collect();
    assert_eq!(
        states,
        [
            (id, SessionState::Interrupted),
            (next.id(), SessionState::Open)
        ]
    );
    next.close(done()).await.unwrap();
    // A live one is left alone.
    let live = Evidence::open(&home.context, shell()).await.unwrap();
    let other = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
    live.output(b"still here").await.unwrap();
    live.close(done()).await.unwrap();
    other.close(done()).await.unwrap();
    let report = home.verified(&[]);
    assert_eq!(report.faults, []);
    let open = |state| {
        let sessions = report.claims.sessions.iter();
        sessions.filter(|session| session.state == state).count()
    };
    assert_eq!(
        (open(SessionState::Interrupted), open(SessionState::Open)),
        (1, 0)
    );
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_record_that_nobody_closed_has_an_end_all_the_same() {
    let home = Home::new();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    drop(record);
    eventually("the session's end", || {
        home.lines()
            .last()
            .is_some_and(|line| line.contains("session closed (internal)"))
    })
    .await;
    assert_eq!(home.verified(&[]).faults, []);
}

#[test]
fn a_session_that_begins_is_not_taken_for_one_that_died() {
    const ROUNDS: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let begins = scope.spawn(|| {
            for number in 0..ROUNDS {
                let event = Event {
                    time_ms: 0,
                    session: Some(SessionId::of_client(number, 1)),
                    actor: None,
                    source: None,
                    target: None,
                    fact: Fact::SessionInterrupted { recordings: vec![] },
                };
                let access = Access::Tunnel {
                    host: None,
                    port: 80,
                };
                let marker = Marker::put(folder.path(), &event, &access).unwrap();
                marker.remove();
            }
        });
        while !begins.is_finished() {
            drop(orphans(folder.path()).unwrap());
        }
        begins.join().unwrap();
    });
}
