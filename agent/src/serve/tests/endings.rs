//! Every way in which a session ends.

use std::time::Duration;

use postern_proto::audit::event::Fact;
use postern_proto::gateway::message::{CloseReason, DenyCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::testing::*;

async fn tunnel(agent: &Agent) -> (Client, TcpStream) {
    let (client, target, _) = agent.tunnel().await;
    (client, target)
}

#[tokio::test]
async fn a_policy_change_ends_a_session_that_it_no_longer_allows() {
    let agent = Agent::start().await;
    let (mut client, _target) = tunnel(&agent).await;
    agent.decide(allow);
    client.send(&framed(b"still allowed")).await;
    agent.decide(|_| deny("not any more"));
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Policy);
    assert!(close.message.unwrap().contains("not any more"));
    assert_eq!(agent.closed().await.0, CloseReason::Policy);
    agent.stopped().await;
}

#[tokio::test]
async fn a_denied_user_loses_running_sessions_and_others_keep_theirs() {
    let agent = Agent::start().await;
    let (mut alice, _target) = tunnel(&agent).await;
    let listener = agent.listen().await;
    let mut bob = agent.connect("bobby").await;
    bob.open(&open(5432)).await;
    let (mut target, _) = listener.accept().await.unwrap();
    bob.granted().await;

    *agent.barred.lock().unwrap() = Some(principal("alice").principal().key());
    agent.changes.send_modify(|count| *count += 1);
    let close = alice.closed().await;
    assert_eq!(close.reason, CloseReason::Policy);
    assert_eq!(
        close.message.unwrap(),
        "you may not come in any more: this user is denied"
    );
    target.write_all(b"still here").await.unwrap();
    assert_eq!(bob.data(10).await, b"still here");
    drop(bob);
    agent.stopped().await;
}

#[tokio::test]
async fn an_enrolment_that_comes_to_nothing_counts_as_a_failure_of_its_source() {
    let agent = Agent::start().await;
    drop(agent.tls("alice", b"postern-enroll/1").await.unwrap());
    let kinds = eventually(|| {
        // What the keeper does each minute; nothing is written while nothing was noted.
        agent.core.each_minute();
        agent
            .events()
            .into_iter()
            .find_map(|event| match event.fact {
                Fact::Unauthenticated { count, kinds } => {
                    assert_eq!((count, event.source.as_deref()), (1, Some("127.0.0.1")));
                    Some(kinds)
                }
                _ => None,
            })
    })
    .await;
    assert_eq!(kinds, ["broken enrolment"]);
    agent.stopped().await;
}

#[tokio::test]
async fn failed_evidence_ends_everything_and_opens_nothing() {
    let agent = Agent::start().await;
    let (mut client, mut target) = tunnel(&agent).await;
    agent.evidence.fail();
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Evidence);
    assert!(
        !close.message.unwrap().contains("disk"),
        "no detail for the peer"
    );
    eventually(|| target.try_write(b"x").is_err().then_some(())).await;
    target.shutdown().await.ok();
    let mut late = agent.connect("alice").await;
    late.open(&open(5432)).await;
    assert_eq!(late.denied().await.code, DenyCode::Evidence);
    drop(agent);
}

#[tokio::test]
async fn a_cut_connection_is_a_lost_network_and_not_an_end_of_file() {
    let agent = Agent::with(Knobs::without_resume()).await;
    let (client, _target) = tunnel(&agent).await;
    let (tcp, _) = client.stream.into_inner();
    drop(tcp);
    let (reason, message, ..) = agent.closed().await;
    assert_eq!(reason, CloseReason::Client);
    assert!(message.unwrap().contains("the network was lost"));
    agent.stopped().await;
}

#[tokio::test]
async fn an_orderly_end_of_tls_without_close_is_a_lost_network_too() {
    let agent = Agent::with(Knobs::without_resume()).await;
    let (mut client, _target) = tunnel(&agent).await;
    client.stream.shutdown().await.unwrap();
    let (_, message, ..) = agent.closed().await;
    assert!(message.unwrap().contains("without Close"));
    agent.stopped().await;
}

#[tokio::test]
async fn a_target_that_breaks_is_told_as_that() {
    let agent = Agent::start().await;
    let (mut client, target) = tunnel(&agent).await;
    // A reset, not an end.
    rustix::net::sockopt::set_socket_linger(&target, Some(Duration::ZERO)).unwrap();
    drop(target);
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Target);
    agent.stopped().await;
}

#[tokio::test]
async fn a_tunnel_that_begins_to_carry_ssh_ends() {
    let agent = Agent::start().await;
    let (mut client, mut target) = tunnel(&agent).await;
    target
        .write_all(b"hello\r\nSSH-2.0-OpenSSH_9.9\r\n")
        .await
        .unwrap();
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Policy);
    assert!(close.message.unwrap().contains("must not carry SSH"));

    let (mut client, _target) = tunnel(&agent).await;
    client.send(&framed(b"SSH-2.0-client\r\n")).await;
    assert_eq!(client.closed().await.reason, CloseReason::Policy);
    agent.stopped().await;
}

#[tokio::test]
async fn a_grant_ends_at_its_time() {
    let mut knobs = Knobs::default();
    knobs.lifetimes.grant = Duration::from_millis(100);
    let agent = Agent::with(knobs).await;
    let (mut client, _target) = tunnel(&agent).await;
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Expired);
    agent.stopped().await;
}

#[tokio::test]
async fn a_drain_tells_sessions_and_closes_the_log_in_order() {
    let agent = Agent::start().await;
    let (mut client, _target) = tunnel(&agent).await;
    let spare = agent.connect("bobby").await;
    let evidence = agent.evidence.clone();
    agent.shut_down();
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Draining);
    assert!(close.evidence.is_some());
    agent.stopped().await;
    drop(spare);
    let closed = events(&evidence)
        .into_iter()
        .filter(|event| matches!(event.fact, Fact::SessionClosed { .. }))
        .count();
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let knobs = Knobs {
        drain: Duration::from_millis(200),
        ..Knobs::default()
    };
    let agent = Agent::with(knobs).await;
    agent.hold.send_replace(true);
    let mut stuck = agent.connect("alice").await;
    stuck.open(&open(5432)).await;
    agent.stopped().await;
}
