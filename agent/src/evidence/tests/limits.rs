//! Quotas, the floor of free space, retention.

use bytes::Bytes;
use postern_proto::audit::event::Actor;
use postern_proto::names::Principal;

use super::*;

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
