//! A disk that is full under a running store.

use std::ffi::CString;
use std::io::Write as _;
use std::time::Instant;

use postern_proto::audit::verify::SessionState;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

/// A small file system of its own, which is gone with the value.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = CString::new(format!("size={size}")).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            flags,
            Some(data.as_c_str()),
        )
        .unwrap_or_else(|error| {
            panic!("this test mounts a small tmpfs, for which it must run as root: {error}")
        });
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// Writes until nothing fits any more.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn on_a_full_disk_nothing_starts_running_sessions_fail_at_once_and_their_ends_are_logged() {
    let small = Small::new("24m");
    let store = small.path().join("store");
    let (settings, identity) = settings(&store);
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    let mut recordings = Vec::new();
    for number in 0..5 {
        evidence.append(granted(number)).await.unwrap();
        let recording = evidence
            .begin(session(number), "p", terminal())
            .await
            .unwrap();
        recording
            .write(Entry::Output("before".into()))
            .await
            .unwrap();
        recordings.push(recording);
    }
    fill(&small.path().join("ballast"));

    let began = Instant::now();
    let chunk = Entry::Output(vec![b'x'; 100_000].into());
    let failed = recordings[0].write(chunk.clone()).await;
    assert!(
        matches!(failed, Err(EvidenceError::Failed(_))),
        "{failed:?}"
    );
    // Everybody is told, with the reason.
    let why = evidence.failure().borrow().clone().unwrap();
    assert!(why.contains("No space left"), "{why}");
    for recording in &recordings {
        assert!(recording.write(chunk.clone()).await.is_err());
    }
    assert!(evidence.admit().is_err());
    assert!(evidence.begin(session(9), "p", terminal()).await.is_err());
    assert!(evidence.append(granted(9)).await.is_err());

    // The space that was set aside takes the end of every open session.
    for (number, recording) in (0..).zip(&recordings) {
        let digest = recording.close().await.unwrap();
        assert!(!digest.complete);
        let end = closed(number, CloseReason::Evidence, vec![digest]);
        evidence.append(end).await.unwrap();
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "nothing may hang"
    );
    evidence.shutdown().await.unwrap();

    let report = report(&store, &identity);
    assert_eq!(report.faults, []);
    assert!(
        report
            .sessions
            .iter()
            .all(|session| session.state == SessionState::Closed)
    );
    let name = recordings[1].name();
    assert_eq!(output(&lines(&store, name, &identity)), b"before");

    // With space again the store opens as if nothing had been.
    std::fs::remove_file(small.path().join("ballast")).unwrap();
    let (evidence, startup) = Evidence::open(settings).unwrap();
    assert_eq!((startup.dropped, startup.interrupted.len()), (0, 0));
    evidence.append(granted(20)).await.unwrap();
}

#[tokio::test]
async fn on_a_full_disk_the_log_too_says_no_and_stays_verifiable() {
    let small = Small::new("8m");
    let store = small.path().join("store");
    let (settings, identity) = settings(&store);
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    fill(&small.path().join("ballast"));
    let mut durable = 0;
    let mut failed = None;
    for _ in 0..5000 {
        match evidence
            .append(event(
                None,
                Fact::PolicyBroken {
                    reason: "x".repeat(2000),
                },
            ))
            .await
        {
            Ok(witness) => durable = witness.leaf,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    assert!(
        matches!(failed, Some(EvidenceError::Failed(_))),
        "{failed:?}"
    );
    let end = closed(1, CloseReason::Evidence, vec![]);
    let last = evidence.append(end).await.unwrap();
    let report = report(&store, &identity);
    assert_eq!(report.faults, []);
    assert_eq!(report.size, last.leaf + 1);
    assert!(last.leaf > durable);
}
