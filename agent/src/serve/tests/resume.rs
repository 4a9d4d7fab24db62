//! Pipes that outlive their connections, and who may continue them.

use std::time::Duration;

use postern_proto::audit::event::Fact;
use postern_proto::gateway::frame::{FrameKind, Piece};
use postern_proto::gateway::message::{CloseReason, DenyCode, Granted};
use postern_proto::gateway::resume::Claim;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testing::*;

fn claim(granted: &Granted) -> Claim {
    let secret = granted.secret.bytes().unwrap();
    Claim::new(&secret, granted.session, granted.pipe)
}

async fn tunnel(agent: &Agent) -> (Client, TcpStream, Claim) {
    let (client, target, granted) = agent.tunnel().await;
    assert!(granted.detach > 0, "the client is told that it may resume");
    (client, target, claim(&granted))
}

async fn read(target: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    tokio::time::timeout(SOON, target.read_exact(&mut bytes))
        .await
        .expect("bytes at the target")
        .unwrap();
    bytes
}

fn told<T>(agent: &Agent, wanted: impl Fn(&Fact) -> Option<T>) -> Vec<T> {
    let events = agent.events();
    events
        .iter()
        .filter_map(|event| wanted(&event.fact))
        .collect()
}

#[tokio::test]
async fn a_pipe_goes_on_where_it_was_cut_in_both_directions() {
    let agent = Agent::start().await;
    let (mut client, mut target, mut claim) = tunnel(&agent).await;
    client.send(&framed(b"one ")).await;
    assert_eq!(read(&mut target, 4).await, b"one ");
    target.write_all(b"eins ").await.unwrap();
    assert_eq!(client.data(5).await, b"eins ");
    client.cut();
    agent
        .event(|fact| matches!(fact, Fact::PipeDetached { pipe: 0, .. }).then_some(()))
        .await;
    // The target is served meanwhile.
    target.write_all(b"zwei ").await.unwrap();

    let mut client = agent.connect("alice").await;
    // Of what the target said, two bytes are claimed to have been lost.
    client.resume(&mut claim, 3).await;
    assert_eq!(client.resumed(&mut claim).await, 4);
    assert_eq!(client.data(7).await, b"s zwei ");
    client.send(&framed(b"two")).await;
    assert_eq!(read(&mut target, 3).await, b"two");

    client.close(CloseReason::Done).await;
    assert_eq!(client.closed().await.received, 7);
    assert_eq!(agent.closed().await, (CloseReason::Done, None, 7, 10));
    let resumed = told(&agent, |fact| match fact {
        Fact::PipeResumed { pipe, attempt } => Some((*pipe, *attempt)),
        _ => None,
    });
    assert_eq!(resumed, [(0, 1)]);
    agent.stopped().await;
}

#[tokio::test]
async fn the_old_connection_is_fenced_by_a_takeover_while_it_lives() {
    let agent = Agent::start().await;
    let (mut old, mut target, mut claim) = tunnel(&agent).await;
    old.send(&framed(b"before ")).await;
    assert_eq!(read(&mut target, 7).await, b"before ");

    let mut new = agent.connect("alice").await;
    new.resume(&mut claim, 0).await;
    assert_eq!(new.resumed(&mut claim).await, 7);
    // Whatever the old connection still says is dropped, and it is over.
    let late = old.stream.write_all(&framed(b"INJECTED")).await;
    if late.is_ok() {
        old.stream.flush().await.ok();
    }
    while old.next().await.is_some() {}
    new.send(&framed(b"after")).await;
    assert_eq!(read(&mut target, 5).await, b"after");
    new.close(CloseReason::Done).await;
    assert_eq!(new.closed().await.received, 12);
    agent.stopped().await;
}

#[tokio::test]
async fn a_close_with_its_exit_status_waits_for_a_client_that_is_away() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    let mut wanted = open(22);
    wanted.kind = postern_proto::gateway::message::OpenKind::Ssh {
        user: "ubuntu".parse().unwrap(),
    };
    client.open(&wanted).await;
    let (mut target, _) = listener.accept().await.unwrap();
    let mut claim = claim(&client.granted().await);
    client.cut();
    agent
        .event(|fact| matches!(fact, Fact::PipeDetached { .. }).then_some(()))
        .await;
    target.write_all(b"the last words").await.unwrap();
    drop(target);
    assert_eq!(agent.closed().await.0, CloseReason::Done);

    // The answer is lost once more, with the connection.
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 0).await;
    client.resumed(&mut claim).await;
    assert_eq!(client.data(4).await.len(), 14);
    client.cut();
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 4).await;
    client.resumed(&mut claim).await;
    assert_eq!(client.data(10).await, b"last words");
    let eof = client.frame(FrameKind::Eof).await;
    assert_eq!(eof.as_ref(), 14u64.to_be_bytes());
    let close = client.closed().await;
    assert_eq!((close.sent, close.exit_status), (14, Some(7)));
    assert!(close.evidence.is_some());
    client.close(CloseReason::Done).await;
    while client.next().await.is_some() {}

    // Answered: nothing is kept any more.
    let mut late = agent.connect("alice").await;
    late.resume(&mut claim, 14).await;
    assert!(late.denied().await.message.contains("no such session"));
    agent.stopped().await;
}

#[tokio::test]
async fn only_the_owner_with_a_fresh_proof_may_resume() {
    let agent = Agent::start().await;
    let (client, mut target, mut claim) = tunnel(&agent).await;
    client.cut();

    // Another secret.
    let mut guess = agent.connect("alice").await;
    let good = claim.resume(&guess.exporter(), 0);
    let mut forged = good.clone();
    forged.proof = "00".repeat(32);
    guess.ask(&forged).await;
    assert!(guess.denied().await.message.contains("no such session"));
    // A proof that was made for another connection.
    let mut replay = agent.connect("alice").await;
    replay.ask(&good).await;
    assert!(replay.denied().await.message.contains("no such session"));
    // Another person with the whole secret.
    let mut other = agent.connect("bobby").await;
    other.resume(&mut claim, 0).await;
    assert!(other.denied().await.message.contains("no such session"));
    // An attempt that a later one overtook.
    let mut early = agent.connect("alice").await;
    let overtaken = claim.resume(&early.exporter(), 0);
    let mut owner = agent.connect("alice").await;
    owner.resume(&mut claim, 0).await;
    owner.resumed(&mut claim).await;
    early.ask(&overtaken).await;
    assert!(early.denied().await.message.contains("no such session"));

    owner.send(&framed(b"mine")).await;
    assert_eq!(read(&mut target, 4).await, b"mine");
    let refused = told(&agent, |fact| match fact {
        Fact::SessionDenied { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(refused.len(), 4, "{refused:?}");
    agent.stopped().await;
}

#[tokio::test]
async fn a_certificate_that_counts_no_more_resumes_nothing() {
    let agent = Agent::start().await;
    let (client, _target, mut claim) = tunnel(&agent).await;
    client.cut();
    let mut barred = agent.connect("alice").await;
    // An answer: the handshake is over on the other side too.
    barred.control(FrameKind::Ping, &1u64.to_be_bytes()).await;
    barred.frame(FrameKind::Pong).await;
    *agent.barred.lock().unwrap() = Some(principal("alice").principal().key());
    barred.resume(&mut claim, 0).await;
    assert_eq!(barred.denied().await.code, DenyCode::Certificate);
    // A client with a better certificate may come back.
    *agent.barred.lock().unwrap() = None;
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 0).await;
    client.resumed(&mut claim).await;
    agent.stopped().await;
}

#[tokio::test]
async fn policy_is_asked_again_and_its_no_ends_the_session() {
    let agent = Agent::start().await;
    let (client, mut target, mut claim) = tunnel(&agent).await;
    client.cut();
    // Without a word to the keeper: the resume itself asks.
    *agent.policy.lock().unwrap() = std::sync::Arc::new(|_| deny("not from there"));
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 0).await;
    let denied = client.denied().await;
    assert_eq!(denied.code, DenyCode::Policy);
    assert!(denied.message.contains("not from there"), "{denied:?}");
    assert_eq!(agent.closed().await.0, CloseReason::Policy);
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, target.read_to_end(&mut rest))
        .await
        .expect("the target is let go")
        .ok();
    agent.stopped().await;
}

#[tokio::test]
async fn an_order_to_end_reaches_a_pipe_that_is_away() {
    let agent = Agent::start().await;
    let (client, _target, mut claim) = tunnel(&agent).await;
    client.cut();
    agent
        .event(|fact| matches!(fact, Fact::PipeDetached { .. }).then_some(()))
        .await;
    agent.decide(|_| deny("not any more"));
    assert_eq!(agent.closed().await.0, CloseReason::Policy);
    agent.decide(allow);
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 0).await;
    assert_eq!(client.denied().await.code, DenyCode::Policy);
    agent.stopped().await;
}

#[tokio::test]
async fn a_pipe_that_nobody_comes_back_for_ends_with_the_reason() {
    let mut knobs = Knobs::default();
    knobs.lifetimes.detach = Duration::from_secs(1);
    let agent = Agent::with(knobs).await;
    let (client, _target, mut claim) = tunnel(&agent).await;
    client.cut();
    let (reason, message, ..) = agent.closed().await;
    assert_eq!(reason, CloseReason::Client);
    assert!(message.unwrap().contains("not resumed within 1 s"));
    let mut late = agent.connect("alice").await;
    late.resume(&mut claim, 0).await;
    assert!(late.denied().await.message.contains("no such session"));
    agent.stopped().await;
}

#[tokio::test]
async fn the_right_to_resume_ends_with_the_grant() {
    let mut knobs = Knobs::default();
    knobs.lifetimes.grant = Duration::from_secs(1);
    let agent = Agent::with(knobs).await;
    let (client, _target, mut claim) = tunnel(&agent).await;
    client.cut();
    assert_eq!(agent.closed().await.0, CloseReason::Expired);
    let mut late = agent.connect("alice").await;
    late.resume(&mut claim, 0).await;
    late.denied().await;
    agent.stopped().await;
}

#[tokio::test]
async fn an_offset_that_cannot_be_ends_the_pipe() {
    let agent = Agent::start().await;
    let (client, _target, mut claim) = tunnel(&agent).await;
    client.cut();
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 1000).await;
    while client.next().await.is_some() {}
    assert_eq!(agent.closed().await.0, CloseReason::Protocol);
    agent.stopped().await;
}

#[tokio::test]
async fn what_the_target_says_meanwhile_is_kept_up_to_the_ceiling_and_arrives_once() {
    const LENGTH: usize = 48 << 20;
    let agent = Agent::start().await;
    let (client, target, mut claim) = tunnel(&agent).await;
    client.cut();
    let (_unread, mut writer) = target.into_split();
    let pouring = tokio::spawn(async move {
        let block: Vec<u8> = (0..251u8).cycle().take(251 * 1024).collect();
        let mut left = LENGTH;
        while left > 0 {
            let part = left.min(block.len());
            writer.write_all(&block[..part]).await.unwrap();
            left -= part;
        }
        writer
    });
    agent
        .event(|fact| matches!(fact, Fact::PipeDetached { .. }).then_some(()))
        .await;
    let (mut got, mut cuts) = (0, 0);
    let mut client = agent.connect("alice").await;
    client.resume(&mut claim, 0).await;
    client.resumed(&mut claim).await;
    while got < LENGTH {
        match client.next().await {
            Some(Piece::Data(bytes)) => {
                for (index, byte) in bytes.iter().enumerate() {
                    assert_eq!(usize::from(*byte), (got + index) % 251);
                }
                got += bytes.len();
                let ack = (got as u64).to_be_bytes();
                client.control(FrameKind::Ack, &ack).await;
            }
            Some(Piece::Frame(FrameKind::Ack | FrameKind::Pong, _)) => {}
            other => panic!("{other:?} at {got}"),
        }
        if got > (cuts + 1) * (LENGTH / 8) {
            cuts += 1;
            client.cut();
            client = agent.connect("alice").await;
            client.resume(&mut claim, got as u64).await;
            client.resumed(&mut claim).await;
        }
    }
    assert!(cuts >= 7, "{cuts}");
    drop(pouring.await.unwrap());
    agent.stopped().await;
}
