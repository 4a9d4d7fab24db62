//! The log itself: who appends to it, and what a change of it or of its key shows.

use super::*;

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
