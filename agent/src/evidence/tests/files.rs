//! Files of recordings, open and closed.

use super::*;

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
