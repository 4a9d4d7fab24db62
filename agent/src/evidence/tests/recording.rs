use bytes::Bytes;
use postern_proto::audit::layout::StorePath;

use super::*;

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
