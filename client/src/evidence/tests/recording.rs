//! What a session leaves: records and recordings, and who can read them.

use super::*;

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
