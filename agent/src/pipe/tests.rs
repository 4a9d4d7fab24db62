//! Connections that take no more while the peer's last words are still to be read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postern_proto::gateway::frame::{self, Decoder, FrameKind, HEADER};
use postern_proto::gateway::message::{Close, CloseReason};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

/// A connection whose peer has left: nothing can be written, and what it said last comes to light
/// when that is noticed.
struct Left {
    said: Bytes,
    /// Whether the end of the connection shows behind it.
    ends: bool,
    noticed: bool,
}

impl AsyncRead for Left {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.noticed || (self.said.is_empty() && !self.ends) {
            return Poll::Pending;
        }
        if self.said.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let length = self.said.len().min(buffer.remaining());
        buffer.put_slice(&self.said[..length]);
        self.said.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Left {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.noticed = true;
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
}

fn driver(said: &[&[u8]], ends: bool) -> Driver<Left> {
    let left = Left {
        said: said.concat().into(),
        ends,
        noticed: false,
    };
    let budget = Budget::new(Share::new(1 << 20), Share::new(1 << 20));
    Driver::new(left, Decoder::default(), BytesMut::new(), 1 << 20, budget)
}

fn data(body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::zeroed(HEADER);
    buffer.extend_from_slice(body);
    frame::data(buffer).unwrap()
}

fn close(reason: CloseReason) -> Close {
    Close {
        reason,
        message: None,
        exit_status: None,
        sent: 4,
        received: 0,
        evidence: None,
    }
}

fn goodbye() -> Bytes {
    let body = serde_json::to_vec(&close(CloseReason::Done)).unwrap();
    frame::control(FrameKind::Close, &body).unwrap()
}

/// How a tunnel over `driver` ends once its target says something; and the target.
async fn end(driver: Driver<Left>) -> (Finish, DuplexStream) {
    let (near, mut target) = tokio::io::duplex(1024);
    target.write_all(b"to nobody").await.unwrap();
    let mut relay = Relay::tunnel(driver, near);
    (poll_fn(|cx| relay.poll(cx)).await, target)
}

#[tokio::test]
async fn a_goodbye_behind_a_failed_write_ends_the_pipe() {
    let (finish, mut target) = end(driver(&[&data(b"last"), &goodbye()], true)).await;
    let Finish::Closed(close) = finish else {
        panic!("{finish:?}");
    };
    assert_eq!(close.reason, CloseReason::Done);
    let mut got = Vec::new();
    target.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last", "what came before it is the target's");
}

#[tokio::test]
async fn a_failed_write_without_a_goodbye_is_a_lost_network() {
    let (finish, _target) = end(driver(&[&data(b"last")], true)).await;
    let Finish::Pipe(PipeError::Lost(why)) = finish else {
        panic!("{finish:?}");
    };
    assert_eq!(&*why, "broken pipe", "the first failure is told");
}

#[tokio::test]
async fn the_last_words_of_a_connection_are_not_waited_for() {
    let ending = tokio::time::timeout(Duration::from_secs(60), end(driver(&[], false)));
    let (finish, _target) = ending.await.expect("an end in time");
    assert!(matches!(finish, Finish::Pipe(PipeError::Lost(_))));
}

#[tokio::test]
async fn a_peer_that_said_goodbye_too_needs_no_more() {
    let mut driver = driver(&[&goodbye()], true);
    driver.say_close(close(CloseReason::Done));
    let said = driver.farewell(false, Duration::from_secs(60)).await;
    assert_eq!(said, Ok(()));
}
