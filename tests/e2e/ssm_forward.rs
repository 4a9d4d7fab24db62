//! Tunnels over SSM, as people use them: many connections, cut and noisy networks, old SSM Agents,
//! stock `ssh` on top.

mod long;
pub(crate) mod peer;
mod ssh;
mod storm;

use std::io;

use lab::aws::Aws;
use lab::forward::Forward;
use lab::stack::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

use self::peer::Peer;
use crate::harness::{eventually, lab, postern, run};

/// `postern` as alice, over SSM.
fn over_ssm(lab: &Lab) -> Command {
    let mut command = lab.postern("alice");
    command.env("POSTERN_VIA", "ssm");
    command
}

async fn forward(lab: &Lab, to: &str) -> Forward {
    Forward::start(over_ssm(lab), "app-1", to).await.unwrap()
}

/// A lab, a service behind app-1, and a forward to it.
async fn set_up() -> (Lab, Peer, Forward) {
    let lab = lab().await;
    let peer = Peer::start().await;
    let forward = forward(&lab, &format!("0:{}", peer.port)).await;
    (lab, peer, forward)
}

/// Every session that was started at AWS was ended there.
async fn all_ended(aws: &Aws) {
    eventually("every session is ended", async || {
        aws.sessions().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_carry_their_own_bytes_and_ctrl_c_ends_every_session() {
    let (lab, peer, forward) = set_up().await;
    let mut exchanges = JoinSet::new();
    for seed in 0..8 {
        exchanges.spawn(peer::exchange(forward.local, seed, 300_000));
    }
    while let Some(exchanged) = exchanges.join_next().await {
        exchanged.unwrap().unwrap();
    }
    for seed in 8..20 {
        peer::exchange(forward.local, seed, 5_000).await.unwrap();
    }
    let sessions = lab.aws.sessions().len();
    assert_eq!(sessions, 4, "connections at once are spread over the pool");
    forward.interrupt().await.unwrap();
    all_ended(&lab.aws).await;
    let ended = lab.aws.events_of("TerminateSession").len();
    assert_eq!(ended, lab.aws.events_of("StartSession").len());
    drop(peer);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_single_line_feed_stays_one_and_so_does_the_last_of_1017_bytes() {
    let (lab, _peer, forward) = set_up().await;
    for length in [1, 1016, 1017, 1018, 32 * 1024 - 7] {
        let mut bytes = vec![b'a'; length - 1];
        bytes.push(b'\n');
        assert!(
            peer::echo(forward.local, &bytes).await.unwrap() == bytes,
            "{length}"
        );
    }
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_behind_the_target_is_reached_by_its_name() {
    let lab = lab().await;
    let peer = Peer::at(lab.network.db()).await;
    let forward = forward(&lab, &format!("0:db-1:{}", peer.port)).await;
    peer::exchange(forward.local, 1, 100_000).await.unwrap();
    let started = lab.aws.events_of("StartSession");
    let told = serde_json::to_string(&started).unwrap();
    assert!(
        told.contains("AWS-StartPortForwardingSessionToRemoteHost"),
        "{told}"
    );
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_where_nothing_answers_ends_that_connection_alone() {
    let lab = lab().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forward = forward(&lab, &format!("0:{port}")).await;
    let mut near = TcpStream::connect(forward.local).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    drop(listener);
    let mut refused = TcpStream::connect(forward.local).await.unwrap();
    let mut nothing = Vec::new();
    let error = refused.read_to_end(&mut nothing).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // The other one does not notice.
    near.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    far.read_exact(&mut got).await.unwrap();
    far.write_all(&got).await.unwrap();
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_answer_arrives_though_the_local_program_has_ended_its_sending() {
    let lab = lab().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forward = forward(&lab, &format!("0:{port}")).await;
    let mut near = TcpStream::connect(forward.local).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = [0; 8];
    far.read_exact(&mut question).await.unwrap();
    far.write_all(&vec![7; 50_000]).await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, vec![7; 50_000]);
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_read_does_not_stop_the_others() {
    let (lab, peer, forward) = set_up().await;
    // As many as there are sessions: every one of them has somebody who does not read.
    lab.aws.change_knobs(|knobs| {
        knobs.pace = std::time::Duration::ZERO;
        knobs.payload = 16 * 1024;
    });
    let mut slow = Vec::new();
    for seed in 0..4 {
        slow.push(peer::ask(forward.local, seed, 8 << 20).await.unwrap());
    }
    for seed in 10..14 {
        peer::exchange(forward.local, seed, 200_000).await.unwrap();
    }
    for (seed, stream) in slow.into_iter().enumerate() {
        peer::receive(stream, seed as u64, 8 << 20).await.unwrap();
    }
    drop(peer);
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_old_ssm_agent_gets_a_session_for_each_connection() {
    let lab = lab().await;
    lab.aws
        .change_knobs(|knobs| knobs.agent_version = "3.0.100.0".to_owned());
    let peer = Peer::start().await;
    let forward = forward(&lab, &format!("0:{}", peer.port)).await;
    // More than there may be sessions: some wait for their turn.
    let mut exchanges = JoinSet::new();
    for seed in 0..6 {
        exchanges.spawn(peer::exchange(forward.local, seed, 50_000));
    }
    while let Some(exchanged) = exchanges.join_next().await {
        exchanged.unwrap().unwrap();
    }
    assert!(lab.aws.events_of("StartSession").len() >= 6);
    drop(peer);
    forward.interrupt().await.unwrap();
    all_ended(&lab.aws).await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_forward_runs_for_one_command_and_returns_its_status() {
    let lab = lab().await;
    let peer = Peer::start().await;
    let mut command = over_ssm(&lab);
    command.args(["forward", "app-1", &format!("0:{}", peer.port), "--"]);
    command.args(["sh", "-c", "test -n \"$POSTERN_FORWARD_PORT\" && exit 7"]);
    let told = run(&mut command, b"").await.status(7);
    assert!(told.out().contains("-> app-1:"), "{}", told.out());
    assert!(told.stderr.contains("0 connections"), "{}", told.stderr);
    all_ended(&lab.aws).await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_was_ended_by_somebody_else_is_replaced() {
    let (lab, _peer, forward) = set_up().await;
    peer::exchange(forward.local, 1, 10_000).await.unwrap();
    for session in lab.aws.sessions() {
        assert!(lab.aws.end_session(&session, ""));
    }
    eventually("the next connection finds a session", async || {
        peer::exchange(forward.local, 2, 10_000).await.ok()
    })
    .await;
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_evidence_is_one_session_with_every_ssm_session_and_every_connection() {
    let (lab, _peer, forward) = set_up().await;
    let mut exchanges = JoinSet::new();
    for seed in 0..3 {
        exchanges.spawn(peer::exchange(forward.local, seed, 100_000));
    }
    while let Some(exchanged) = exchanges.join_next().await {
        exchanged.unwrap().unwrap();
    }
    let sessions = lab.aws.sessions().len();
    assert!(sessions > 1, "{sessions}");
    forward.interrupt().await.unwrap();
    let evidence = lab.folder().join("state").join("evidence");
    let own = std::fs::read_dir(evidence).unwrap().flatten();
    let mut logs = own.filter(|entry| entry.file_name().to_string_lossy().starts_with("client-"));
    let store = logs.next().unwrap().path().display().to_string();
    let told = postern(&lab, &["--json", "audit", "verify", "--store", &store])
        .await
        .status(0);
    let report: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(report["claims"]["sessions"]["closed"], 1, "{report}");
    assert_eq!(report["recordings"]["match"], 1, "{report}");
    lab.stop().await.unwrap();
}
