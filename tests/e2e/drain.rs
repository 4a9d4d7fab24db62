//! SIGTERM: sessions are told, the log is closed in order.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;

use crate::harness::{ending, events, get, lab, postern};

#[tokio::test]
async fn a_session_is_told_and_the_log_is_closed_in_order() {
    let mut lab = lab().await;
    let mut running = lab.postern("alice");
    let mut running = running
        .args(["connect", "web-1", "--", "echo in; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 3];
    let stdout = running.stdout.as_mut().unwrap();
    stdout.read_exact(&mut first).await.unwrap();
    assert!(get(&lab, "/metrics").await.1.contains("postern_sessions 1"));

    lab.agent.signal(Signal::TERM).unwrap();
    let told = ending(running).await;
    told.status(255).says(&["shutting down"]);
    lab.agent.ended().await.unwrap();

    let log = events(&lab).await;
    assert!(log.contains("draining"), "{log}");
    assert!(log.trim_end().ends_with("agent stopped"), "{log}");
    assert!(!log.contains("interrupted"), "{log}");
    let store = lab.agent.audit_store.display().to_string();
    postern(&lab, &["audit", "verify", "--store", &store])
        .await
        .status(0);
    // A start after an orderly stop has nobody to mourn.
    lab.agent.start().await.unwrap();
    let log = events(&lab).await;
    assert!(!log.contains("interrupted"), "{log}");
    lab.stop().await.unwrap();
}
