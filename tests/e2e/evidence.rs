//! Evidence on bad days: a killed agent, a full disk.

use std::path::Path;
use std::process::Stdio;

use lab::stack::Options;
use tokio::io::AsyncReadExt as _;

use crate::harness::{PATIENCE, eventually, get, lab, lab_with, postern, postern_as, run};

#[tokio::test]
async fn an_auditor_reads_the_log_and_plays_a_recording_and_that_is_an_event() {
    let lab = lab().await;
    postern(&lab, &["connect", "web-1", "--", "echo the-words-to-find"])
        .await
        .status(0);
    postern_as(&lab, "carol", &["login"]).await.status(0);
    let listed = postern_as(&lab, "carol", &["--json", "audit", "ls"])
        .await
        .status(0);
    let rows: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let session = rows.to_string();
    let id = session
        .split('"')
        .find(|text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_alphanumeric()))
        .expect("a session id")
        .to_owned();
    let played = postern_as(&lab, "carol", &["audit", "play", &id])
        .await
        .status(0);
    assert!(
        played.out().contains("the-words-to-find"),
        "{}",
        played.out()
    );
    let told = postern_as(&lab, "carol", &["audit", "ls", "--events"])
        .await
        .status(0);
    assert!(told.out().contains("recording"), "{}", told.out());
    postern_as(&lab, "carol", &["connect", "web-1", "--", "true"])
        .await
        .status(255);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_agent_loses_nothing_that_the_client_received() {
    let mut lab = lab().await;
    let mut client = lab
        .postern("alice")
        .args([
            "connect",
            "web-1",
            "--",
            "i=0; while [ $i -lt 10000000 ]; do echo line $i || exit; i=$((i+1)); done",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = client.stdout.take().unwrap();
    let mut received = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while received.len() < 1 << 20 {
        let length = tokio::time::timeout(PATIENCE, stdout.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(length > 0, "ended after {}", received.len());
        received.extend_from_slice(&buffer[..length]);
    }
    lab.agent.kill().await.unwrap();
    tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    let _ = client.wait().await;

    lab.agent.start().await.unwrap();
    let store = lab.agent.audit_store.display().to_string();
    let listed = postern(&lab, &["--json", "audit", "ls", "--store", &store])
        .await
        .status(0);
    let text = listed.out();
    assert!(text.contains("interrupted"), "{text}");
    let id = text
        .split('"')
        .find(|text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_alphanumeric()))
        .unwrap()
        .to_owned();
    let played = postern(
        &lab,
        &["audit", "play", "--speed", "0", &id, "--store", &store],
    )
    .await
    .status(0);
    assert!(
        played.stdout.starts_with(&received),
        "{} bytes recorded, {} received",
        played.stdout.len(),
        received.len()
    );
    postern(&lab, &["audit", "verify", "--store", &store])
        .await
        .status(0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_ends_running_sessions_with_the_reason_and_starts_none() {
    let disk = TinyDisk::mount();
    let lab = lab_with(Options {
        no_database: true,
        audit_store: Some(disk.path().join("evidence")),
        agent: vec![("evidence.free_floor".to_owned(), "\"1MiB\"".to_owned())],
        ..Options::default()
    })
    .await;
    let mut running = lab.postern("alice");
    running.args([
        "connect",
        "web-1",
        "--",
        "while head -c 65536 /dev/urandom | base64; do :; done",
    ]);
    let told = run(&mut running, b"").await;
    assert_eq!(told.status, Some(255), "{}", told.stderr);
    assert!(
        told.stderr.contains("evidence") || told.stderr.contains("recording"),
        "{}",
        told.stderr
    );
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(255)
        .says(&["evidence"]);
    eventually("the agent is not ready", async || {
        let (status, text) = get(&lab, "/readyz").await;
        (status == 503 && text.contains("evidence")).then_some(())
    })
    .await;
    drop(lab);
}

/// A file system of 32 MiB, for as long as this lives.
struct TinyDisk {
    folder: Option<tempfile::TempDir>,
}

impl TinyDisk {
    fn mount() -> Self {
        use rustix::mount::{MountFlags, mount};

        let folder = tempfile::tempdir().unwrap();
        mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=32m"),
        )
        .expect("mounting a small tmpfs needs root: run the tests as root");
        Self {
            folder: Some(folder),
        }
    }

    fn path(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let folder = self.folder.take().unwrap();
        // Lazily: the agent may still be ending.
        let _ = rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH);
    }
}
