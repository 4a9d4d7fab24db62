//! A client's store, as the SSM commands write it and as the audit commands read it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use age::x25519::Identity;
use postern_proto::audit::event::Source;
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::verify::{Fault, OutsideCheckpoint, Report, SessionState, Trust, verify};
use postern_proto::recording::play::{Played, Player};

use super::store::LocalStore;
use super::*;
use crate::audit::log::{Sessions, walk};
use crate::audit::store::Folder;
use crate::audit::text;
use crate::config::{Environment, KeyringChoice, Settings};
use crate::output::Printer;

/// A client with a state folder of its own.
struct Home {
    folder: tempfile::TempDir,
    context: Context,
    auditor: Identity,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let auditor = Identity::generate();
        let settings = Settings {
            agents: Vec::new(),
            profile: "alice".to_owned(),
            profile_named: false,
            login_user: None,
            via: crate::cli::Via::Auto,
            aliases: std::collections::BTreeMap::new(),
            ssm_sessions: 4,
            keyring: KeyringChoice::Kernel,
            state: folder.path().join("state"),
            audit_store: None,
            auditor_identity: None,
            evidence: folder.path().join("state/evidence"),
            auditors: vec![auditor.to_public().to_string()],
            mfa_code: None,
        };
        let mut context = Context::new(Printer::plain_json(), settings, Environment::default());
        context.may_ask = false;
        Self {
            folder,
            context,
            auditor,
        }
    }

    /// As another process has it: nothing remembered.
    fn elsewhere(&self) -> Context {
        Context {
            memory: crate::identity::Memory::default(),
            ..self.context.clone()
        }
    }

    fn store(&self) -> LocalStore {
        local_stores(&self.context).unwrap().pop().unwrap()
    }

    fn verified(&self, outside: &[OutsideCheckpoint]) -> Report {
        let store = self.store();
        let trust = Trust {
            log: store.log,
            outside,
            identities: std::slice::from_ref(&self.auditor),
        };
        verify(&Folder::new(&store.folder).unwrap(), &trust).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let folder = Folder::new(&self.store().folder).unwrap();
        walk(&folder, std::slice::from_ref(&self.auditor), |entry| {
            assert_eq!(entry.source, Source::Client);
            lines.push(text::event(&entry.event.unwrap()));
        })
        .unwrap();
        lines
    }

    fn played(&self, record: &Record) -> Vec<Played> {
        let path = self
            .store()
            .folder
            .join(format!("recordings/{}-0", record.id()));
        played(&path, &self.auditor)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        forget_for_test(&self.context);
    }
}

fn played(path: &Path, identity: &Identity) -> Vec<Played> {
    let file = fs::File::open(path).unwrap();
    let mut player = Player::new(file, std::slice::from_ref(identity)).unwrap();
    let mut played = Vec::new();
    while let Some(line) = player.next_line().unwrap() {
        played.push(line.what);
    }
    played
}

fn facts(carries: Carries) -> Facts {
    Facts {
        target: "i-0123456789abcdef0".parse().unwrap(),
        name: "app-1".to_owned(),
        caller: Caller {
            account: "111122223333".to_owned(),
            user_id: "AIDAAAAAAAAAAAAAAAAA".to_owned(),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        },
        mfa_at: 1_700_000_000,
        ssm: ssm("alice-1"),
        carries,
    }
}

fn ssm(id: &str) -> SsmSession {
    SsmSession {
        id: id.to_owned(),
        document: "SSM-SessionManagerRunShell".to_owned(),
        region: "eu-west-1".to_owned(),
        reason: Some("ticket 7".to_owned()),
        request_id: Some("r-1".to_owned()),
    }
}

fn shell() -> Facts {
    facts(Carries::Shell {
        columns: 80,
        rows: 24,
        term: "xterm".to_owned(),
    })
}

fn tunnel() -> Facts {
    facts(Carries::Tunnel {
        host: None,
        port: 5432,
    })
}

fn done() -> End {
    End {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(0),
    }
}

/// Waits for something that another thread does soon.
async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is() {
        assert!(tokio::time::Instant::now() < until, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_claimed_session_is_whole_in_log_and_recording() {
    let home = Home::new();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    assert!(record.id().is_of_client());
    record.output(b"$ ").await.unwrap();
    record.resize(120, 40).await.unwrap();
    record.output(b"secret-output\r\n").await.unwrap();
    record.input(b"secret-input").await.unwrap();
    record.note("the websocket was lost for 2 s").await.unwrap();
    record.ssm_session(ssm("alice-2")).await.unwrap();
    record.close(done()).await.unwrap();

    let report = home.verified(&[]);
    assert_eq!(report.faults, []);
    assert_eq!((report.recordings, report.sessions.len()), (1, 0));
    let session = &report.claims.sessions[0];
    assert_eq!(
        (session.id, session.state),
        (record.id(), SessionState::Closed)
    );
    let lines = home.lines().join("\n");
    for part in [
        "session opened through SSM: shell, SSM session alice-1 of SSM-SessionManagerRunShell in \
         eu-west-1, reason: ticket 7; target app-1; by arn:aws:iam::111122223333:user/alice (aws-mfa)",
        "shell opened, recorded as",
        "carried further by SSM session alice-2",
        "session closed (done)",
        "12 bytes up, 17 down, exit status 0",
    ] {
        assert!(lines.contains(part), "{part}\n{lines}");
    }
    let played = home.played(&record);
    let output: Vec<u8> = played
        .iter()
        .flat_map(|line| match line {
            Played::Entry(Entry::Output(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(output, b"$ secret-output\r\n");
    // Passwords are typed in terminals.
    let input = |line: &&Played| matches!(line, Played::Entry(Entry::Input(_)));
    assert_eq!(played.iter().filter(input).count(), 0);
    assert!(played.contains(&Played::Entry(Entry::Note(
        "the websocket was lost for 2 s".to_owned()
    ))));
}

#[tokio::test]
async fn what_a_client_records_is_written_before_it_is_relayed() {
    let home = Home::new();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    for chunk in 0..20 {
        let text = format!("chunk {chunk}\r\n");
        record.output(text.as_bytes()).await.unwrap();
        // As the file is at this moment, with the process killed.
        let copy = home.folder.path().join("copy");
        let name = format!("recordings/{}-0", record.id());
        fs::copy(home.store().folder.join(name), &copy).unwrap();
        let last = played(&copy, &home.auditor).pop();
        assert_eq!(last, Some(Played::Entry(Entry::Output(text.into()))));
    }
    record.close(done()).await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_client_s_evidence_is_readable_by_others_or_in_the_clear() {
    let home = Home::new();
    let command = facts(Carries::Command {
        line: "mysql -p hunter2-canary".to_owned(),
        terminal: None,
    });
    let record = Evidence::open(&home.context, command).await.unwrap();
    record.output(b"canary-output").await.unwrap();
    record.input(b"canary-input").await.unwrap();
    record.close(done()).await.unwrap();
    let mut folders = vec![home.context.evidence.clone()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            let bytes = fs::read(&path).unwrap();
            for secret in ["canary", "PRIVATE+KEY", "AGE-SECRET-KEY"] {
                let found = bytes
                    .windows(secret.len())
                    .any(|at| at == secret.as_bytes());
                assert!(!found, "{secret} stands in {}", path.display());
            }
        }
    }
    assert!(files > 8, "{files}");
    assert!(home.lines().join("\n").contains("hunter2-canary"));
}

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
async fn a_log_that_was_changed_is_not_appended_to() {
    let home = Home::new();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    record.close(done()).await.unwrap();
    let checkpoint = home.store().folder.join("checkpoint");
    let whole = fs::read(&checkpoint).unwrap();
    fs::remove_file(&checkpoint).unwrap();
    let error = Evidence::open(&home.context, shell()).await.unwrap_err();
    assert!(error.to_string().contains("it was removed"), "{error}");
    fs::write(&checkpoint, &whole).unwrap();
    let tile = home.store().folder.join("tile/0/000.p");
    let newest = fs::read_dir(&tile)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[3] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let error = Evidence::open(&home.context, shell()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not what the checkpoint signs"),
        "{error}"
    );
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
async fn several_processes_append_to_one_log() {
    let home = Home::new();
    let mut tasks = Vec::new();
    for number in 0..6 {
        let context = home.elsewhere();
        tasks.push(tokio::spawn(async move {
            let record = Evidence::open(&context, tunnel()).await.unwrap();
            let flow = record.flow_opened("127.0.0.1:5000").await.unwrap();
            flow.moved(number, 10 * number).unwrap();
            flow.close(None).await.unwrap();
            for further in 0..8 {
                let id = format!("alice-{number}-{further}");
                record.ssm_session(ssm(&id)).await.unwrap();
            }
            record.close(done()).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let report = home.verified(&[]);
    assert_eq!(report.faults, []);
    // The log's start, and ten events of each session.
    assert_eq!((report.size, report.recordings), (1 + 6 * 10, 6));
    assert_eq!(report.claims.sessions.len(), 6);
    assert_eq!(local_stores(&home.context).unwrap().len(), 1);
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

#[tokio::test]
async fn connections_of_a_tunnel_leave_counts_and_no_content() {
    let home = Home::new();
    let record = Evidence::open(&home.context, tunnel()).await.unwrap();
    let one = record.flow_opened("127.0.0.1:5000").await.unwrap();
    let other = record.flow_opened("127.0.0.1:5001").await.unwrap();
    one.moved(100, 2000).unwrap();
    other.moved(11, 22).unwrap();
    one.close(None).await.unwrap();
    drop(other);
    record.close(done()).await.unwrap();
    let (mut up, mut down, mut notes) = (0, 0, Vec::new());
    for line in home.played(&record) {
        match line {
            Played::Entry(Entry::Flow { up: u, down: d }) => {
                up += u;
                down += d;
            }
            Played::Entry(Entry::Note(note)) => notes.push(note),
            _ => {}
        }
    }
    assert_eq!((up, down), (111, 2022));
    assert_eq!(
        notes,
        [
            "connection 0 opened from 127.0.0.1:5000",
            "connection 1 opened from 127.0.0.1:5001",
            "connection 0 closed",
            "connection 1 broke: it was dropped",
        ]
    );
    assert!(
        home.lines()
            .last()
            .unwrap()
            .contains("111 bytes up, 2022 down")
    );
}

#[tokio::test]
async fn a_rewritten_or_cut_log_of_a_client_is_found() {
    let home = Home::new();
    for _ in 0..2 {
        let record = Evidence::open(&home.context, shell()).await.unwrap();
        record.output(b"text").await.unwrap();
        record.close(done()).await.unwrap();
    }
    let folder = home.store().folder;
    let recording = fs::read_dir(folder.join("recordings"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let bytes = fs::read(&recording).unwrap();
    fs::write(&recording, &bytes[..bytes.len() - 9]).unwrap();
    assert!(matches!(
        home.verified(&[]).faults[..],
        [Fault::RecordingCut { .. }]
    ));
    fs::write(&recording, &bytes).unwrap();
    assert_eq!(home.verified(&[]).faults, []);
    let note = fs::read_to_string(folder.join("checkpoint")).unwrap();
    let outside = OutsideCheckpoint {
        name: "kept elsewhere".to_owned(),
        note,
    };
    let size: u64 = outside.note.lines().nth(1).unwrap().parse().unwrap();
    let growing = folder.join("tile/entries/000.p/growing");
    let named = folder.join(
        StorePath::Entries {
            index: 0,
            width: size as u16,
        }
        .to_string(),
    );
    let mut bytes = fs::read(&growing).unwrap();
    let at = bytes.windows(5).position(|text| text == b"app-1").unwrap();
    bytes[at] = b'x';
    fs::write(named, bytes).unwrap();
    assert!(!home.verified(&[outside]).holds());
}

#[tokio::test]
async fn without_auditors_the_user_s_own_key_opens_recordings() {
    let mut home = Home::new();
    home.context.auditors.clear();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    record.output(b"mine").await.unwrap();
    record.close(done()).await.unwrap();
    let own = own_identity(&home.elsewhere()).await.unwrap().unwrap();
    let path = home
        .store()
        .folder
        .join(format!("recordings/{}-0", record.id()));
    assert_eq!(
        played(&path, &own),
        [
            Played::Entry(Entry::Output("mine".into())),
            Played::Entry(Entry::Exit(Ok(0)))
        ]
    );
    // Auditors from now on: the log says so.
    home.context.auditors = vec![home.auditor.to_public().to_string()];
    let record = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
    record.output(b"theirs").await.unwrap();
    record.close(done()).await.unwrap();
    let lines = home.lines().join("\n");
    assert!(lines.contains(&format!(
        "recordings are for {} from",
        home.auditor.to_public()
    )));
    assert_eq!(home.played(&record).len(), 2);
}

#[tokio::test]
async fn a_lost_key_begins_a_new_log_that_names_the_old_one() {
    let home = Home::new();
    let record = Evidence::open(&home.context, shell()).await.unwrap();
    record.close(done()).await.unwrap();
    let old = home.store();
    let note = fs::read_to_string(old.folder.join("checkpoint")).unwrap();
    // A reboot, with the kernel's keyring.
    forget_for_test(&home.context);
    let record = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
    record.close(done()).await.unwrap();
    let stores = local_stores(&home.context).unwrap();
    assert_eq!(stores.len(), 2);
    assert_eq!(stores[0].folder, old.folder);
    assert_ne!(stores[1].folder, old.folder);
    let mut first = None;
    walk(&Folder::new(&stores[1].folder).unwrap(), &[], |entry| {
        first = first.take().or(entry.event);
    })
    .unwrap();
    let Some(Fact::ClientLogStarted {
        previous: Some(previous),
        ..
    }) = first.map(|event| event.fact)
    else {
        panic!("the new log does not name the old one");
    };
    assert_eq!(previous.checkpoint, note);
}

#[tokio::test]
async fn logging_out_of_everything_ends_the_log_but_keeps_what_opens_recordings() {
    let mut home = Home::new();
    for _ in 0..2 {
        let record = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
        record.close(done()).await.unwrap();
        forget(&home.elsewhere()).await.unwrap();
        assert!(own_identity(&home.elsewhere()).await.unwrap().is_none());
    }
    assert_eq!(local_stores(&home.context).unwrap().len(), 2);
    home.context.auditors.clear();
    let record = Evidence::open(&home.elsewhere(), shell()).await.unwrap();
    record.close(done()).await.unwrap();
    forget(&home.elsewhere()).await.unwrap();
    assert!(own_identity(&home.elsewhere()).await.unwrap().is_some());
}

#[tokio::test]
async fn sessions_of_a_client_are_listed_as_its_word() {
    let home = Home::new();
    let record = Evidence::open(&home.context, tunnel()).await.unwrap();
    record.close(done()).await.unwrap();
    let mut sessions = Sessions::default();
    walk(&Folder::new(&home.store().folder).unwrap(), &[], |entry| {
        sessions.add(&entry);
    })
    .unwrap();
    let session = sessions.newest(1).remove(0);
    assert_eq!(session.source, Source::Client);
    assert_eq!(
        (
            session.kind.as_str(),
            session.end.as_str(),
            session.target.as_str()
        ),
        ("tunnel to 5432", "done", "app-1")
    );
}
