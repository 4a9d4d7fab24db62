//! Streams against an SSM Agent's multiplexer in this process.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::poll;
use postern_proto::ssm::Role;
use postern_proto::ssm::smux::{Event, Limits, Mux, StreamId};

use super::{Deaf, HELD, HoldUp, QUEUED, Stream, Streams};
use crate::error::Error;

/// What one message holds.
const MESSAGE: usize = 16 * 1024;

fn peer(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Both ends, and what the SSM Agent's end saw.
struct Session {
    streams: Streams,
    agent: Mux,
    opened: Vec<StreamId>,
    finished: Vec<StreamId>,
}

impl Session {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            streams: Streams::new(false, now),
            agent: Mux::new(Role::Agent, Limits::default(), false, now),
            opened: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Carries what there is to carry, both ways.
    fn carry(&mut self) {
        loop {
            let up = self.streams.output(MESSAGE);
            let is_idle = up.is_empty() && !self.agent.has_output();
            if !up.is_empty() {
                self.agent
                    .handle_data(Instant::now(), Bytes::from(up))
                    .unwrap();
            }
            while let Some(event) = self.agent.poll_event() {
                match event {
                    Event::Opened(id) => self.opened.push(id),
                    Event::Finished(id) => self.finished.push(id),
                    Event::Readable(_) => {}
                }
            }
            while self.agent.has_output() && !self.streams.is_full() {
                let mut down = Vec::new();
                self.agent.poll_transmit(&mut down, MESSAGE);
                let down = Bytes::from(down);
                self.streams.handle_data(Instant::now(), down).unwrap();
            }
            if is_idle || self.streams.is_full() {
                return;
            }
        }
    }

    fn open(&mut self, port: u16) -> (Stream, StreamId) {
        let stream = self.streams.open(peer(port)).unwrap();
        self.carry();
        (stream, *self.opened.last().unwrap())
    }

    /// What the SSM Agent got for a stream.
    fn got(&mut self, id: StreamId) -> Vec<u8> {
        let mut got = Vec::new();
        while let Some(bytes) = self.agent.read(id, usize::MAX) {
            got.extend_from_slice(&bytes);
        }
        got
    }

    /// Sends for a stream as much as is given, whatever the limits.
    fn send(&mut self, id: StreamId, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.streams.is_full() {
            let taken = self.agent.write(id, bytes);
            bytes = &bytes[taken..];
            self.carry();
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

#[tokio::test]
async fn a_connection_is_a_stream_with_an_odd_id_from_three() {
    let mut session = Session::new();
    let (one, one_id) = session.open(1);
    let (_two, two_id) = session.open(2);
    assert_eq!(
        (one_id.to_string(), two_id.to_string()),
        ("3".into(), "5".into())
    );
    one.write(b"\n").await.unwrap();
    session.carry();
    assert_eq!(session.got(one_id), b"\n", "a line feed stays one");
    assert_eq!(session.streams.count(), 2);
    session.send(one_id, b"answer");
    session.agent.finish(one_id);
    session.carry();
    assert_eq!(one.read().await, Ok(Some(Bytes::from_static(b"answer"))));
    assert_eq!(one.read().await, Ok(None));
    assert!(!one.is_refused());
    assert_eq!(one.write(b"more").await, Err(Deaf));
    drop(one);
    assert_eq!(session.streams.count(), 1);
}

#[tokio::test]
async fn a_dropped_stream_ends_behind_what_was_written() {
    let mut session = Session::new();
    let (stream, id) = session.open(1);
    stream.write(b"last words").await.unwrap();
    drop(stream);
    assert_eq!(session.streams.count(), 0);
    session.carry();
    assert_eq!(session.got(id), b"last words");
    // The end is told once all is read.
    session.carry();
    assert_eq!(session.finished, [id]);
    within(session.streams.drained()).await;
}

#[tokio::test]
async fn a_refusal_is_told_of_the_stream_that_nothing_came_for() {
    let mut session = Session::new();
    let (good, good_id) = session.open(1);
    let (bad, bad_id) = session.open(2);
    session.send(good_id, b"hello");
    session.streams.handle_refusal();
    session.agent.finish(bad_id);
    session.agent.finish(good_id);
    session.carry();
    assert_eq!(bad.read().await, Ok(None));
    assert_eq!(good.read().await, Ok(Some(Bytes::from_static(b"hello"))));
    assert_eq!(good.read().await, Ok(None));
    assert!(bad.is_refused());
    assert!(!good.is_refused());
}

#[tokio::test]
async fn a_writer_waits_for_room_and_never_keeps_another_from_its_turn() {
    let mut session = Session::new();
    let (bulk, bulk_id) = session.open(1);
    let (small, small_id) = session.open(2);
    let much = vec![7; 3 * QUEUED];
    let mut writing = pin!(bulk.write(&much));
    assert!(
        poll!(&mut writing).is_pending(),
        "it is more than is queued"
    );
    small.write(b"echo").await.unwrap();
    // Two messages hold a frame of either.
    for _ in 0..3 {
        let out = Bytes::from(session.streams.output(MESSAGE));
        session.agent.handle_data(Instant::now(), out).unwrap();
    }
    assert_eq!(session.got(small_id), b"echo");
    let mut got = session.got(bulk_id);
    while poll!(&mut writing).is_pending() {
        session.carry();
        got.extend(session.got(bulk_id));
    }
    session.carry();
    got.extend(session.got(bulk_id));
    assert_eq!(got, much);
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_until_the_buffer_is_full_and_is_named_then() {
    let mut session = Session::new();
    let (slow, slow_id) = session.open(41);
    let (quick, quick_id) = session.open(42);
    session.send(slow_id, &vec![1; HELD - 1024]);
    session.send(quick_id, b"still here");
    assert_eq!(
        quick.read().await,
        Ok(Some(Bytes::from_static(b"still here")))
    );
    session.send(slow_id, &vec![1; 64 * 1024]);
    assert!(session.streams.is_full());
    let (streams, mut named) = (session.streams.clone(), None);
    let told = |it: HoldUp| named = Some((it.peer, it.others));
    {
        let mut space = pin!(streams.space_after(Duration::ZERO, told));
        // Long enough for its timer.
        let waited = tokio::time::timeout(Duration::from_millis(100), &mut space).await;
        assert!(waited.is_err(), "nothing was taken");
        slow.read().await.unwrap().unwrap();
        within(space).await;
    }
    assert_eq!(named, Some((peer(41), 1)));
    // Hanging up frees all of it.
    drop(slow);
    assert!(!session.streams.is_full());
}

#[tokio::test]
async fn the_end_of_the_session_is_told_after_what_arrived() {
    let mut session = Session::new();
    let (stream, id) = session.open(1);
    let (idle, _) = session.open(2);
    session.send(id, b"arrived");
    let over = Error::failed("gone");
    {
        let mut waiting = pin!(idle.read());
        assert!(poll!(&mut waiting).is_pending());
        session.streams.end(over.clone());
        assert_eq!(within(waiting).await, Err(over.clone()));
    }
    assert_eq!(
        stream.read().await,
        Ok(Some(Bytes::from_static(b"arrived")))
    );
    assert_eq!(stream.read().await, Err(over.clone()));
    assert_eq!(stream.write(b"x").await, Err(Deaf));
    assert_eq!(session.streams.over(), Some(over.clone()));
    assert_eq!(session.streams.open(peer(3)).err(), Some(over));
}
