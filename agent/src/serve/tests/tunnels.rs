//! What a tunnel carries.

use std::future::poll_fn;
use std::net::Ipv4Addr;

use aws_lc_rs::digest::{Context, SHA256};
use postern_proto::audit::event::Fact;
use postern_proto::gateway::frame::{FrameKind, Piece};
use postern_proto::gateway::message::{CloseReason, Join, join_proof};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::pipe::{Budget, Driver, Finish, Relay, Share};
use crate::testing::*;

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_ends_in_order() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    // Early data: sent before the answer.
    client.send(&framed(b"hello")).await;
    let (mut target, _) = listener.accept().await.unwrap();
    let granted = client.granted().await;
    assert_eq!(granted.pipe, 0);
    let mut hello = [0; 5];
    target.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    target.write_all(b"world!").await.unwrap();
    assert_eq!(client.data(6).await, b"world!");

    // The client is done sending; the target still answers.
    client.control(FrameKind::Eof, &5u64.to_be_bytes()).await;
    assert_eq!(target.read(&mut hello).await.unwrap(), 0);
    target.write_all(b"bye").await.unwrap();
    drop(target);
    assert_eq!(client.data(3).await, b"bye");
    assert_eq!(
        client.frame(FrameKind::Eof).await.as_ref(),
        9u64.to_be_bytes()
    );
    let close = client.closed().await;
    assert_eq!(close.reason, CloseReason::Done);
    assert_eq!((close.sent, close.received), (9, 5));
    assert!(close.evidence.is_some());
    assert_eq!(agent.closed().await, (CloseReason::Done, None, 5, 9));
    // What the target took may still be acknowledged; nothing else follows.
    while let Some(piece) = client.next().await {
        assert!(
            matches!(piece, Piece::Frame(FrameKind::Ack, _)),
            "{piece:?}"
        );
    }
    agent.stopped().await;
}

#[tokio::test]
async fn the_log_tells_the_whole_story_of_a_tunnel() {
    let agent = Agent::start().await;
    let (mut client, target, granted) = agent.tunnel().await;
    client.send(&framed(b"12345")).await;
    client.close(CloseReason::Done).await;
    let close = client.closed().await;
    drop(target);
    let events: Vec<_> = agent
        .events()
        .into_iter()
        .filter(|event| event.session == Some(granted.session))
        .collect();
    assert!(
        matches!(&events[0].fact, Fact::SessionGranted { policies, .. } if policies == &["test"])
    );
    assert_eq!(events[0].target.as_ref().unwrap().id.as_str(), "web-1");
    assert!(events[0].target.as_ref().unwrap().address.is_some());
    let Fact::SessionClosed { recordings, .. } = &events.last().unwrap().fact else {
        panic!("{events:?}")
    };
    assert_eq!(recordings.len(), 1);
    assert!(recordings[0].complete);
    // What the client was shown is that very state of the log.
    let shown = close.evidence.unwrap();
    let size: u64 = shown.checkpoint.lines().nth(1).unwrap().parse().unwrap();
    assert!(size > shown.leaf);
    assert!(shown.leaf > granted.evidence.leaf);
    assert!(!shown.consistency.is_empty());
    agent.stopped().await;
}

/// Bytes that no mistake reproduces, and their hash.
async fn pour(mut to: impl tokio::io::AsyncWrite + Unpin, length: usize, seed: u64) -> Vec<u8> {
    let (mut state, mut hash) = (seed, Context::new(&SHA256));
    let mut block = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        for chunk in block.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(block.len());
        hash.update(&block[..part]);
        to.write_all(&block[..part]).await.unwrap();
        left -= part;
    }
    to.shutdown().await.unwrap();
    hash.finish().as_ref().to_vec()
}

async fn drink(mut from: impl tokio::io::AsyncRead + Unpin) -> (usize, Vec<u8>) {
    let (mut length, mut hash) = (0, Context::new(&SHA256));
    let mut block = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut block).await.unwrap();
        if read == 0 {
            return (length, hash.finish().as_ref().to_vec());
        }
        length += read;
        hash.update(&block[..read]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_gigabyte_each_way_arrives_as_it_was_sent() {
    const LENGTH: usize = 256 * 1024 * 1024;
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let (target, _) = listener.accept().await.unwrap();
    client.granted().await;

    // The client's end: a local socket, coupled by the same relay.
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let user = TcpStream::connect(local.local_addr().unwrap())
        .await
        .unwrap();
    let (near, _) = local.accept().await.unwrap();
    let budget = Budget::new(Share::new(1 << 30), Share::new(1 << 30));
    let driver = Driver::new(
        client.stream,
        client.decoder,
        client.received,
        32 << 20,
        budget,
    );
    let forwarding = tokio::spawn(async move {
        let mut relay = Relay::tunnel(driver, near);
        poll_fn(|cx| relay.poll(cx)).await
    });
    let (user_read, user_write) = user.into_split();
    let (target_read, target_write) = target.into_split();
    let sent_up = tokio::spawn(pour(user_write, LENGTH, 0x9e37_79b9_7f4a_7c15));
    let sent_down = tokio::spawn(pour(target_write, LENGTH, 0xbf58_476d_1ce4_e5b9));
    let got_up = tokio::spawn(drink(target_read));
    let got_down = tokio::spawn(drink(user_read));
    assert_eq!(got_up.await.unwrap(), (LENGTH, sent_up.await.unwrap()));
    assert_eq!(got_down.await.unwrap(), (LENGTH, sent_down.await.unwrap()));
    // The agent closes the pipe once both directions are done.
    let finish = forwarding.await.unwrap();
    assert!(
        matches!(&finish, Finish::Done)
            || matches!(&finish, Finish::Closed(close) if close.reason == CloseReason::Done),
        "{finish:?}"
    );
    drop(agent);
}

#[tokio::test]
async fn a_slow_target_stops_the_client_and_not_the_other_direction() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let (mut target, _) = listener.accept().await.unwrap();
    client.granted().await;
    // Nobody reads at the target: the client must get stuck long before 256 MiB.
    let mut sent = 0;
    let body = framed(&[7; 60_000]);
    while sent < 256 << 20 {
        let write = client.stream.write_all(&body);
        let patience = std::time::Duration::from_millis(500);
        if tokio::time::timeout(patience, write).await.is_err() {
            break;
        }
        sent += body.len();
    }
    assert!(
        sent < 256 << 20,
        "{sent} bytes were taken for a target that reads nothing"
    );
    // What was cut above is no whole frame any more; the other direction does not care.
    target.write_all(b"still here").await.unwrap();
    assert_eq!(client.data(10).await, b"still here");
}

#[tokio::test]
async fn further_pipes_join_with_a_proof_and_only_with_it() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut first = agent.connect("alice").await;
    first.open(&open(5432)).await;
    let granted = first.granted().await;
    let secret = granted.secret.bytes().unwrap();
    let joining = |client: &Client, port| {
        let mut open = open(port);
        open.join = Some(Join {
            session: granted.session,
            proof: join_proof(&secret, &client.exporter(), granted.session),
        });
        open.known_size = Some(granted.evidence.leaf + 1);
        open
    };

    let mut second = agent.connect("alice").await;
    second.open(&joining(&second, 5432)).await;
    let joined = second.granted().await;
    assert_eq!((joined.session, joined.pipe), (granted.session, 1));
    assert_ne!(
        joined.secret.bytes().unwrap(),
        secret,
        "it never travels again"
    );
    assert_eq!(joined.evidence.leaf, granted.evidence.leaf);

    // A proof of another connection, another port, another person.
    let mut thief = agent.connect("alice").await;
    thief.open(&joining(&second, 5432)).await;
    assert!(thief.denied().await.message.contains("no such session"));
    let mut wider = agent.connect("alice").await;
    wider.open(&joining(&wider, 5433)).await;
    assert!(
        wider
            .denied()
            .await
            .message
            .contains("what its session was granted")
    );
    let mut other = agent.connect("bobby").await;
    other.open(&joining(&other, 5432)).await;
    assert!(other.denied().await.message.contains("no such session"));

    first.close(CloseReason::Done).await;
    first.closed().await;
    second.close(CloseReason::Done).await;
    assert!(
        second.closed().await.evidence.is_some(),
        "the last pipe closes the session"
    );
    // Not before: a target that goes away would end both pipes, in any order.
    drop(listener);
    let mut late = agent.connect("alice").await;
    late.open(&joining(&late, 5432)).await;
    assert!(late.denied().await.message.contains("no such session"));
    agent.stopped().await;
}

#[tokio::test]
async fn a_forward_may_pause_between_two_connections() {
    let mut knobs = Knobs::default();
    knobs.lifetimes.linger = SOON;
    let agent = Agent::with(knobs).await;
    let _listener = agent.listen().await;
    let mut first = agent.connect("alice").await;
    first.open(&open(5432)).await;
    let granted = first.granted().await;
    first.close(CloseReason::Done).await;
    assert!(
        first.closed().await.evidence.is_none(),
        "the session goes on"
    );

    let mut second = agent.connect("alice").await;
    let mut again = open(5432);
    let secret = granted.secret.bytes().unwrap();
    again.join = Some(Join {
        session: granted.session,
        proof: join_proof(&secret, &second.exporter(), granted.session),
    });
    second.open(&again).await;
    assert_eq!(second.granted().await.session, granted.session);
    // Ctrl-C: the client gives the session up.
    second.close(CloseReason::Client).await;
    assert!(second.closed().await.evidence.is_some());
    assert_eq!(agent.closed().await.0, CloseReason::Client);
    agent.stopped().await;
}
