use bytes::Bytes;
use postern_proto::audit::event::Actor;
use postern_proto::audit::layout::StorePath;
use postern_proto::names::Principal;

use super::*;

async fn opened(folder: &Path, change: impl FnOnce(&mut Settings)) -> (Evidence, Identity) {
    let (mut settings, identity) = settings(folder);
    change(&mut settings);
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    (evidence, identity)
}

#[tokio::test]
async fn what_write_reported_stands_in_the_file_before_anything_else_happens() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |_| ()).await;
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    let mut expected = Vec::new();
    for number in 0..200 {
        let text = format!("{number}\r\n");
        expected.extend_from_slice(text.as_bytes());
        recording.write(Entry::Output(text.into())).await.unwrap();
        // Read behind the writer's back: no buffer of ours holds anything.
        let lines = lines(folder.path(), recording.name(), &identity);
        assert_eq!(output(&lines), expected);
    }
}

#[tokio::test]
async fn several_relays_write_to_one_recording_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |_| ()).await;
    let kind = RecordingKind::Streams {
        command: "cat".to_owned(),
    };
    let recording = evidence.begin(session(1), "p", kind).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for relay in 0..8u8 {
        let recording = recording.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let chunk = Bytes::from(vec![relay; 20_000]);
                recording.write(Entry::Output(chunk)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let digest = recording.close().await.unwrap();
    assert!(digest.complete);
    assert_eq!(recording.close().await.unwrap(), digest);
    assert!(recording.write(Entry::Output("late".into())).await.is_err());
    let all = output(&lines(folder.path(), &digest.name, &identity));
    for relay in 0..8u8 {
        let count = all.iter().filter(|byte| **byte == relay).count();
        assert_eq!(count, 50 * 20_000, "{relay}");
    }
    evidence
        .append(closed(1, CloseReason::Done, vec![digest]))
        .await
        .unwrap();
    assert_eq!(report(folder.path(), &identity).faults, []);
}

/// Descriptors of this process that lead to `path`.
fn descriptors(path: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|one| std::fs::read_link(one.unwrap().path()).ok())
        .filter(|leads_to| leads_to == path)
        .count()
}

async fn rests(path: &Path) {
    for _ in 0..1000 {
        if descriptors(path) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its file stays open");
}

#[tokio::test]
async fn an_idle_recording_holds_no_descriptor_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |settings| {
        settings.quiet = Duration::from_millis(300);
    })
    .await;
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    let path = folder.path().join("recordings").join(recording.name());
    assert_eq!(descriptors(&path), 1);
    let mut expected = Vec::new();
    for text in ["one\r\n", "two\r\n", "three\r\n"] {
        rests(&path).await;
        expected.extend_from_slice(text.as_bytes());
        recording.write(Entry::Output(text.into())).await.unwrap();
        assert_eq!(descriptors(&path), 1);
        let lines = lines(folder.path(), recording.name(), &identity);
        assert_eq!(output(&lines), expected);
    }
    rests(&path).await;
    let digest = recording.close().await.unwrap();
    evidence
        .append(closed(1, CloseReason::Done, vec![digest]))
        .await
        .unwrap();
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn a_recording_that_was_replaced_while_it_was_idle_ends_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, _) = opened(folder.path(), |settings| {
        settings.quiet = Duration::from_millis(100);
    })
    .await;
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    let path = folder.path().join("recordings").join(recording.name());
    rests(&path).await;
    let content = std::fs::read(&path).unwrap();
    // Times have the resolution of the kernel's clock.
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &content).unwrap();
    let written = recording.write(Entry::Output("x".into())).await;
    assert!(written.is_err());
    let failure = evidence.failure().borrow().clone().unwrap();
    assert!(
        failure.contains("is not the file that was written"),
        "{failure}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[tokio::test]
async fn over_the_sessions_quota_that_session_ends_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |settings| {
        settings.session_quota = 100_000;
    })
    .await;
    evidence.append(granted(2)).await.unwrap();
    let mine = evidence.begin(session(1), "p", terminal()).await.unwrap();
    let other = evidence.begin(session(2), "p", terminal()).await.unwrap();
    let chunk = Entry::Output(vec![b'x'; 30_000].into());
    for _ in 0..3 {
        mine.write(chunk.clone()).await.unwrap();
    }
    for _ in 0..2 {
        let refused = mine.write(chunk.clone()).await;
        assert!(matches!(refused, Err(EvidenceError::Quota(100_000))));
    }
    other.write(chunk).await.unwrap();
    assert!(evidence.failure().borrow().is_none());
    // What was relayed is there, and the recording says why it ends.
    let digest = mine.close().await.unwrap();
    let lines = lines(folder.path(), mine.name(), &identity);
    assert_eq!(output(&lines).len(), 90_000);
    assert!(matches!(
        &lines.last().unwrap().what,
        Played::Entry(Entry::Note(text)) if text.contains("quota")
    ));
    let digests = vec![digest];
    evidence
        .append(closed(1, CloseReason::Quota, digests))
        .await
        .unwrap();
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn over_the_principals_quota_none_of_his_sessions_records_on() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, _) = opened(folder.path(), |settings| {
        settings.principal_quota = 50_000;
    })
    .await;
    let chunk = Entry::Output(vec![b'x'; 30_000].into());
    let first = evidence
        .begin(session(1), "alice", terminal())
        .await
        .unwrap();
    first.write(chunk.clone()).await.unwrap();
    let second = evidence
        .begin(session(2), "alice", terminal())
        .await
        .unwrap();
    let refused = second.write(chunk.clone()).await;
    assert!(matches!(refused, Err(EvidenceError::Quota(50_000))));
    let third = evidence.begin(session(3), "bob", terminal()).await.unwrap();
    third.write(chunk).await.unwrap();
}

#[tokio::test]
async fn a_growing_recording_is_stated_in_the_log_after_it_was_synced() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |settings| {
        settings.progress = Duration::ZERO;
    })
    .await;
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    recording.write(Entry::Output("x".into())).await.unwrap();
    let path = StorePath::Recording(recording.name().parse().unwrap());
    let cut_is_found = async {
        loop {
            tokio::task::yield_now().await;
            // A copy of the store whose recording is shorter than the log states.
            let report = report(folder.path(), &identity);
            if report.size >= 3 {
                assert_eq!(report.faults, []);
                let file = folder.path().join(path.to_string());
                let whole = std::fs::read(&file).unwrap();
                std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
                break super::report(folder.path(), &identity);
            }
        }
    };
    let report = tokio::time::timeout(Duration::from_secs(60), cut_is_found)
        .await
        .unwrap();
    assert!(
        report.faults[0].to_string().contains("was cut"),
        "{:?}",
        report.faults
    );
}

#[tokio::test]
async fn a_recording_whose_relay_went_away_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |settings| {
        settings.progress = Duration::ZERO;
    })
    .await;
    drop(evidence.begin(session(1), "p", terminal()).await.unwrap());
    let stated = async {
        while report(folder.path(), &identity).recordings == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), stated)
        .await
        .unwrap();
    evidence
        .append(closed(1, CloseReason::Internal, vec![]))
        .await
        .unwrap();
    evidence.shutdown().await.unwrap();
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.interrupted), (vec![], vec![]));
}

#[tokio::test]
async fn a_flush_that_takes_too_long_fails_the_store_until_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, identity) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    evidence.shutdown().await.unwrap();
    // Nothing is done within no time at all.
    settings.deadline = Duration::ZERO;
    match Evidence::open(settings) {
        Err(OpenError::Evidence(EvidenceError::Failed(why))) => {
            assert!(why.contains("not done within"), "{why}");
        }
        Err(other) => panic!("{other}"),
        Ok((evidence, _)) => {
            let mut failure = evidence.failure();
            let failed = failure.wait_for(Option::is_some);
            tokio::time::timeout(Duration::from_secs(10), failed)
                .await
                .unwrap()
                .unwrap();
            assert!(evidence.admit().is_err());
            assert!(evidence.begin(session(1), "p", terminal()).await.is_err());
            assert!(evidence.append(granted(1)).await.is_err());
            assert!(
                evidence
                    .append(closed(1, CloseReason::Evidence, vec![]))
                    .await
                    .is_err()
            );
        }
    }
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn below_the_free_space_floor_no_session_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, _) = opened(folder.path(), |settings| settings.free_floor = u64::MAX).await;
    assert!(matches!(evidence.admit(), Err(EvidenceError::Space { .. })));
    let refused = evidence.begin(session(1), "p", terminal()).await;
    assert!(matches!(refused, Err(EvidenceError::Space { .. })));
    // It is no failure: running sessions go on.
    assert!(evidence.failure().borrow().is_none());
}

#[tokio::test]
async fn retention_deletes_whole_recordings_after_an_event_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |_| ()).await;
    let done = evidence.begin(session(1), "p", terminal()).await.unwrap();
    let digest = done.close().await.unwrap();
    evidence
        .append(closed(1, CloseReason::Done, vec![digest]))
        .await
        .unwrap();
    evidence.append(granted(2)).await.unwrap();
    let live = evidence.begin(session(2), "p", terminal()).await.unwrap();
    let names = evidence.reader().recordings().unwrap();
    assert_eq!(names.len(), 2);
    assert_eq!(
        evidence
            .delete_recordings(&names, "400 days")
            .await
            .unwrap(),
        1
    );
    assert_eq!(evidence.reader().recordings().unwrap().len(), 1);
    live.write(Entry::Output("x".into())).await.unwrap();
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.deleted.len()), (vec![], 1));
}

#[tokio::test]
async fn retention_deletes_daily_what_is_old_enough_by_then() {
    const DAY: Duration = Duration::from_hours(24);
    let folder = tempfile::tempdir().unwrap();
    let (evidence, identity) = opened(folder.path(), |_| ()).await;
    let now = std::time::SystemTime::now();
    for (number, age) in [(2, 100), (3, 80)] {
        evidence.append(granted(number)).await.unwrap();
        let recording = evidence
            .begin(session(number), "p", terminal())
            .await
            .unwrap();
        let digest = recording.close().await.unwrap();
        let path = folder.path().join("recordings").join(recording.name());
        evidence
            .append(closed(number, CloseReason::Done, vec![digest]))
            .await
            .unwrap();
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(now - DAY * age).unwrap();
    }
    // The clock stands still; each message is a day.
    let days = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (began, mut waiting) = mpsc::unbounded_channel();
    let clock = {
        let days = Arc::clone(&days);
        move || now + DAY * days.load(std::sync::atomic::Ordering::SeqCst)
    };
    let day = move || {
        let (over, next) = oneshot::channel::<()>();
        began.send(over).unwrap();
        async move { next.await.unwrap_or_default() }
    };
    let job = tokio::spawn(evidence.clone().retain(DAY * 90, clock, day));
    let left = || evidence.reader().recordings().unwrap().len();

    let first = waiting.recv().await.unwrap();
    assert_eq!(left(), 1, "one is older than 90 days");
    days.store(9, std::sync::atomic::Ordering::SeqCst);
    first.send(()).unwrap();
    let second = waiting.recv().await.unwrap();
    assert_eq!(left(), 1, "the other one is 89 days old");
    days.store(11, std::sync::atomic::Ordering::SeqCst);
    second.send(()).unwrap();
    waiting.recv().await.unwrap();
    assert_eq!(left(), 0);
    job.abort();
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.deleted.len()), (vec![], 2));
}

#[tokio::test]
async fn a_restart_gives_nobody_a_new_quota() {
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, _) = settings(folder.path());
    settings.principal_quota = 300_000;
    let alice = Principal {
        account: "111122223333".parse().unwrap(),
        user_id: "AIDAALICEALICEALICE1".parse().unwrap(),
        arn: String::new(),
    };
    let by_alice = |event: Event| Event {
        actor: Some(Actor {
            principal: alice.clone(),
            assurance: postern_proto::names::Assurance::AwsMfa,
            mfa_not_before: 0,
            certificate: String::new(),
            aws_request_ids: vec![],
        }),
        ..event
    };
    let chunk = || Entry::Output(Bytes::from(vec![b'x'; 60_000]));
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    // One session that ended, one that the stop of the agent cut off.
    for number in [1, 2] {
        evidence.append(by_alice(granted(number))).await.unwrap();
        let key = alice.key();
        let recording = evidence
            .begin(session(number), &key, terminal())
            .await
            .unwrap();
        recording.write(chunk()).await.unwrap();
        recording.write(chunk()).await.unwrap();
        let digest = recording.close().await.unwrap();
        if number == 1 {
            let end = closed(number, CloseReason::Done, vec![digest]);
            evidence.append(by_alice(end)).await.unwrap();
        }
    }
    evidence.shutdown().await.unwrap();

    let (evidence, _) = Evidence::open(settings).unwrap();
    let recording = evidence
        .begin(session(3), &alice.key(), terminal())
        .await
        .unwrap();
    recording
        .write(Entry::Output("a little".into()))
        .await
        .unwrap();
    assert!(matches!(
        recording.write(chunk()).await,
        Err(EvidenceError::Quota(300_000))
    ));
    let other = evidence
        .begin(session(4), "1/AIDABOB", terminal())
        .await
        .unwrap();
    other.write(chunk()).await.unwrap();
}

#[test]
fn only_the_programs_themselves_are_bulk() {
    let programs = ["rsync".to_owned(), "git".to_owned()];
    for command in [
        "rsync --server -logDtpre.iLsfxCIvu . /srv",
        "/usr/bin/rsync --server . /x",
        "git-upload-pack 'repo.git'",
        "git upload-pack repo",
    ] {
        assert!(is_bulk(command, &programs), "{command}");
    }
    for command in [
        "",
        "rsyncd",
        "cat rsync",
        "./rsync --server",
        "/tmp/rsync --server",
        "git-x/../../../bin/bash",
        "rsync x; bash",
        "rsync $(bash)",
        "rsync x\nbash",
        "rsync < x",
    ] {
        assert!(!is_bulk(command, &programs), "{command}");
    }
}

#[tokio::test]
async fn after_shutdown_nothing_is_taken_and_nothing_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, _) = opened(folder.path(), |_| ()).await;
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    evidence.shutdown().await.unwrap();
    assert!(recording.write(Entry::Output("x".into())).await.is_err());
    assert!(recording.close().await.is_err());
    assert!(evidence.begin(session(1), "p", terminal()).await.is_err());
    assert!(evidence.append(granted(2)).await.is_err());
    assert!(evidence.shutdown().await.is_err());
}

#[tokio::test]
async fn programs_that_are_set_as_bulk_leave_a_digest() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, _) = opened(folder.path(), |settings| {
        settings.bulk_programs = vec!["rsync".to_owned()];
    })
    .await;
    let size = |command: &str| {
        let kind = RecordingKind::Streams {
            command: command.to_owned(),
        };
        let evidence = evidence.clone();
        async move {
            let recording = evidence.begin(session(1), "p", kind).await.unwrap();
            for _ in 0..64 {
                let chunk = Bytes::from(vec![b'x'; 65_000]);
                recording.write(Entry::Output(chunk)).await.unwrap();
            }
            recording.close().await.unwrap().length
        }
    };
    assert!(size("/usr/bin/rsync --server . /x").await < 1_200_000);
    assert!(size("cat rsync").await > 4_000_000);
}
