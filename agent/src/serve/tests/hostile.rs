//! Peers that do not keep to the protocol, with a valid certificate or without.

use std::time::Duration;

use postern_proto::gateway::frame::FrameKind;
use postern_proto::gateway::message::{CloseReason, DenyCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testing::*;

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 64];
    let read = async {
        loop {
            match stream.read(&mut byte).await {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(SOON, read).await.unwrap_or(false)
}

#[tokio::test]
async fn a_slow_handshake_costs_its_connection_and_holds_nobody_up() {
    let mut knobs = Knobs::default();
    knobs.patience.handshake = Duration::from_secs(2);
    let agent = Agent::with(knobs).await;
    let _listener = agent.listen().await;
    let mut slow = TcpStream::connect(agent.address).await.unwrap();
    slow.write_all(&[22]).await.unwrap();
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    client.granted().await;
    assert!(is_closed(&mut slow).await);
    agent.stopped().await;
}

#[tokio::test]
async fn a_stranger_cannot_make_the_agent_read_much() {
    let agent = Agent::start().await;
    let mut stranger = TcpStream::connect(agent.address).await.unwrap();
    // A handshake record that never ends.
    let mut hello = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    hello.resize(16 * 1024 + 5, 0);
    for _ in 0..8 {
        if stranger.write_all(&hello).await.is_err() {
            break;
        }
    }
    assert!(is_closed(&mut stranger).await);
    agent.stopped().await;
}

#[tokio::test]
async fn strangers_are_limited_and_make_room_again() {
    let mut knobs = Knobs::default();
    knobs.ceilings.unauthenticated_per_address = 2;
    let agent = Agent::with(knobs).await;
    let first = TcpStream::connect(agent.address).await.unwrap();
    let _second = TcpStream::connect(agent.address).await.unwrap();
    let mut third = TcpStream::connect(agent.address).await.unwrap();
    assert!(is_closed(&mut third).await);
    drop(first);
    eventually(|| (agent.core.limits.connections().1 < 2).then_some(())).await;
    let _listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    client.granted().await;
    agent.stopped().await;
}

#[tokio::test]
async fn an_unknown_protocol_is_no_protocol() {
    let agent = Agent::start().await;
    let refused = agent.tls("alice", b"h2").await;
    assert!(refused.is_err());
    agent.stopped().await;
}

#[tokio::test]
async fn what_is_not_an_open_gets_one_answer() {
    let agent = Agent::start().await;
    for (frame, what) in [
        (&[99, 0, 0, 0][..], "unknown frame type 99"),
        (&[1, 0, 0x40, 1], "at most 16384 allowed"),
        (&[4, 0, 0, 1, 0], "Data frame before Open"),
        (&[1, 0, 0, 2, b'{', b'}'], "malformed Open"),
        (&[10, 0, 0, 2, b'{', b'}'], "malformed Resume"),
        (&[11, 0, 0, 0], "Resumed frame before Open"),
    ] {
        let mut client = agent.connect("alice").await;
        client.send(frame).await;
        let denied = client.denied().await;
        assert_eq!(denied.code, DenyCode::Protocol);
        assert!(denied.message.contains(what), "{}", denied.message);
        assert_eq!(client.next().await, None, "one chance");
    }
    agent.stopped().await;
}

#[tokio::test]
async fn an_open_that_never_ends_is_not_waited_for() {
    let mut knobs = Knobs::default();
    knobs.patience.prompt = Duration::from_millis(100);
    let agent = Agent::with(knobs).await;
    let mut client = agent.connect("alice").await;
    client.send(&[1, 0, 1, 0, b'{']).await;
    assert_eq!(client.next().await, None);
    agent.stopped().await;
}

#[tokio::test]
async fn a_spare_connection_is_not_kept_for_ever() {
    let mut knobs = Knobs::default();
    knobs.patience.spare = Duration::from_millis(100);
    let agent = Agent::with(knobs).await;
    let mut client = agent.connect("alice").await;
    assert_eq!(client.next().await, None);
    agent.stopped().await;
}

#[tokio::test]
async fn a_running_pipe_that_breaks_the_protocol_ends_with_that_reason() {
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    let ack = |n: u64| {
        let mut frame = vec![6, 0, 0, 8];
        frame.extend_from_slice(&n.to_be_bytes());
        frame
    };
    let eof = [&[5, 0, 0, 8][..], &99u64.to_be_bytes()].concat();
    for frame in [
        vec![99, 0, 0, 0],
        vec![4, 0, 0xff, 0xff],
        ack(1),
        eof,
        vec![1, 0, 0, 0],
    ] {
        let mut client = agent.connect("alice").await;
        client.open(&open(5432)).await;
        client.granted().await;
        client.send(&frame).await;
        let close = client.closed().await;
        assert_eq!(close.reason, CloseReason::Protocol, "{frame:?}");
    }
    agent.stopped().await;
}

#[tokio::test]
async fn a_flood_of_pings_stops_at_the_flooder() {
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    client.granted().await;
    // Never read: the answers fill the socket, then either side gives up.
    let ping = [7, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0].repeat(1000);
    let flood = async {
        for _ in 0..10_000 {
            if client.stream.write_all(&ping).await.is_err() {
                return;
            }
        }
    };
    // 120 MB of pings: none of it piles up in the agent.
    tokio::time::timeout(Duration::from_secs(2), flood)
        .await
        .ok();
    let mut other = agent.connect("bobby").await;
    other.open(&open(5432)).await;
    other.granted().await;
    other.control(FrameKind::Ping, &1u64.to_be_bytes()).await;
    other.frame(FrameKind::Pong).await;
    drop(client);
    agent.stopped().await;
}
