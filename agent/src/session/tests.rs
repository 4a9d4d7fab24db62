//! Pipes and sessions through the widest door: TLS on loopback.

use postern_proto::gateway::frame::{FrameKind, Piece};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::testing::*;
use postern_proto::gateway::message::CloseReason;

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
    assert_eq!(client.next().await, None::<Piece>);
    agent.stopped().await;
}
