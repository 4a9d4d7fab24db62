//! SIGTERM: sessions are told, the log is closed in order.

use rustix::process::Signal;

use crate::harness::{ending, events, get, lab, postern, session};

#[tokio::test]
async fn a_session_is_told_and_the_log_is_closed_in_order() {
    let mut lab = lab().await;
    let running = session(&lab).await;
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
