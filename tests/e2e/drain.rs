//! SIGTERM, as an upgrade of the agent sends it: sessions are told, the log is closed in order.
//!
//! Sessions end: the connections to their targets and the SSH that they speak are the process's
//! own. A forward goes on, with a new session for its next connection.

use lab::cutter::Cutter;
use lab::forward::Forward;
use lab::stack::DATABASE_PORT;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    PATIENCE, STAYS, ending, events, eventually, get, lab, postern, running, session,
};

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

/// A connection through the forward, and its other end, if it can be had.
async fn pair(forward: &Forward, database: &TcpListener) -> Option<(TcpStream, TcpStream)> {
    let mut near = TcpStream::connect(forward.local).await.ok()?;
    near.write_all(b"?").await.ok()?;
    tokio::select! {
        far = database.accept() => {
            let mut far = far.unwrap().0;
            far.read_exact(&mut [0]).await.ok()?;
            Some((near, far))
        }
        // Nothing comes from there: an end.
        _ended = near.readable() => None,
    }
}

#[tokio::test]
async fn a_forward_goes_on_when_its_agent_was_upgraded() {
    let mut lab = lab().await;
    let database = TcpListener::bind((lab.network.db(), DATABASE_PORT))
        .await
        .unwrap();
    let forward = Forward::start(lab.postern("alice"), "db-1", &format!("0:{DATABASE_PORT}"))
        .await
        .unwrap();
    let (mut near, _far) = pair(&forward, &database).await.unwrap();
    lab.agent.signal(Signal::TERM).unwrap();
    // The connection breaks: nothing may take it for an end of file.
    let read = tokio::time::timeout(PATIENCE, near.read(&mut [0])).await;
    assert!(read.expect("an end").is_err());
    lab.agent.ended().await.unwrap();
    assert!(pair(&forward, &database).await.is_none());
    lab.agent.start().await.unwrap();
    eventually("a connection through the new agent", async || {
        pair(&forward, &database).await
    })
    .await;
    forward.interrupt().await.unwrap();
    let log = events(&lab).await;
    assert_eq!(log.matches("session granted: tunnel").count(), 2, "{log}");
    assert!(!log.contains("interrupted"), "{log}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn who_was_away_while_the_agent_was_upgraded_learns_that_the_session_is_over() {
    let mut lab = lab().await;
    let network = Cutter::start(lab.agent.address).await.unwrap();
    let mut command = lab.postern("alice");
    command.env("POSTERN_AGENT", network.address.to_string());
    let away = running(command.args(["connect", "web-1", "--", STAYS])).await;
    network.cut();
    eventually("the agent notices", async || {
        events(&lab)
            .await
            .contains("lost its connection")
            .then_some(())
    })
    .await;
    lab.agent.signal(Signal::TERM).unwrap();
    lab.agent.ended().await.unwrap();
    let log = events(&lab).await;
    assert!(log.trim_end().ends_with("agent stopped"), "{log}");
    lab.agent.start().await.unwrap();
    network.heal();
    let told = ending(away).await;
    told.status(255).says(&["no such session to resume"]);
    let store = lab.agent.audit_store.display().to_string();
    postern(&lab, &["audit", "verify", "--store", &store])
        .await
        .status(0);
    lab.stop().await.unwrap();
}
