#![expect(
    clippy::disallowed_methods,
    reason = "tests need some moment to begin with"
)]

use proptest::prelude::*;

use super::*;
use crate::gateway::frame::Decoder;
use crate::gateway::message::CloseReason;

fn framed(body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::zeroed(HEADER);
    buffer.extend_from_slice(body);
    frame::data(buffer).unwrap()
}

fn close() -> Close {
    Close {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(7),
        sent: 0,
        received: 0,
        evidence: None,
    }
}

/// Moves all that `from` has to say to `to`, whose owner takes data at once.
fn carry(from: &mut Pipe, to: &mut Pipe, now: Instant) -> Result<Vec<Event>, Violation> {
    let (mut decoder, mut wire, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
    while let Some(bytes) = from.poll_transmit(now) {
        wire.extend_from_slice(&bytes);
    }
    while let Some(piece) = decoder.next(&mut wire).unwrap() {
        let event = to.handle(piece)?;
        if let Some(Event::Data(bytes)) = &event {
            to.consume(bytes.len(), now);
        }
        events.extend(event);
    }
    Ok(events)
}

#[test]
fn end_of_file_and_close_follow_all_data() {
    let (mut a, mut b, now) = (Pipe::new(1000), Pipe::new(1000), Instant::now());
    a.send(framed(b"one"));
    a.send_eof();
    a.send_close(close());
    let events = carry(&mut a, &mut b, now).unwrap();
    assert_eq!(events[0], Event::Data(Bytes::from_static(b"one")));
    assert_eq!(events[1], Event::Eof);
    let Event::Closed(close) = &events[2] else {
        panic!("{events:?}")
    };
    assert_eq!((close.sent, close.exit_status), (3, Some(7)));
}

#[test]
fn room_is_what_the_peer_has_not_taken() {
    let (mut a, mut b, now) = (Pipe::new(10), Pipe::new(10), Instant::now());
    a.send(framed(b"12345678"));
    assert_eq!(a.room(), 2);
    carry(&mut a, &mut b, now).unwrap();
    assert_eq!(
        b.poll_transmit(now),
        None,
        "an acknowledgement waits for more to say"
    );
    carry(&mut b, &mut a, now + ACK_DELAY).unwrap();
    assert_eq!(a.room(), 10);
    assert!(a.is_acknowledged());
    assert_eq!(b.poll_timeout(), None, "an idle pipe has no deadline");
}

#[test]
fn an_acknowledgement_of_bytes_not_yet_sent_is_a_violation() {
    let (mut a, now) = (Pipe::new(100), Instant::now());
    let ack = |n: u64| Piece::Frame(FrameKind::Ack, Bytes::copy_from_slice(&n.to_be_bytes()));
    a.send(framed(b"12345678"));
    assert_eq!(a.handle(ack(3)), Err(Violation::Ack { acked: 3, sent: 0 }));
    a.poll_transmit(now).unwrap();
    assert_eq!(a.handle(ack(3)), Ok(None));
    assert_eq!(a.handle(ack(2)), Err(Violation::Ack { acked: 2, sent: 8 }));
    assert_eq!(a.handle(ack(9)), Err(Violation::Ack { acked: 9, sent: 8 }));
}

#[test]
fn end_of_file_at_another_offset_is_a_violation() {
    let mut a = Pipe::new(100);
    let eof = Piece::Frame(FrameKind::Eof, Bytes::copy_from_slice(&4u64.to_be_bytes()));
    assert_eq!(
        a.handle(eof),
        Err(Violation::Eof {
            stated: 4,
            received: 0
        })
    );
}

#[test]
fn a_flood_of_pings_is_a_violation() {
    let mut a = Pipe::new(100);
    let ping = Piece::Frame(FrameKind::Ping, Bytes::from_static(b"12345678"));
    let violation = (0..=CONTROL_QUEUE).find_map(|_| a.handle(ping.clone()).err());
    assert_eq!(violation, Some(Violation::Flood));
}

#[test]
fn open_on_a_running_pipe_is_a_violation() {
    let open = Piece::Frame(FrameKind::Open, Bytes::new());
    assert_eq!(
        Pipe::new(1).handle(open),
        Err(Violation::Unexpected(FrameKind::Open))
    );
}

proptest! {
    #[test]
    fn any_schedule_delivers_the_same_bytes(
        steps in proptest::collection::vec((any::<bool>(), 1usize..300, 0u64..40), 1..80)
    ) {
        let (mut a, mut b, mut now) = (Pipe::new(1000), Pipe::new(1000), Instant::now());
        let (mut put, mut got) = (Vec::new(), Vec::new());
        for (flip, length, wait) in steps {
            now += Duration::from_millis(wait);
            let length = length.min(a.room());
            if length > 0 {
                let body: Vec<u8> = (0..length).map(|i| (put.len() + i) as u8).collect();
                a.send(framed(&body));
                put.extend_from_slice(&body);
            }
            prop_assert!(a.sent() - a.acked <= 1000);
            if flip {
                for event in carry(&mut a, &mut b, now).unwrap() {
                    if let Event::Data(bytes) = event {
                        got.extend_from_slice(&bytes);
                    }
                }
                carry(&mut b, &mut a, now).unwrap();
            }
        }
        for event in carry(&mut a, &mut b, now).unwrap() {
            if let Event::Data(bytes) = event {
                got.extend_from_slice(&bytes);
            }
        }
        carry(&mut b, &mut a, now + ACK_DELAY).unwrap();
        prop_assert_eq!(put, got);
        prop_assert!(a.is_acknowledged());
        prop_assert!(a.replay.is_empty(), "an idle pipe holds nothing");
    }
}

/// One end with what it has to deliver, and the wire towards it.
struct End {
    pipe: Pipe,
    decoder: Decoder,
    wire: BytesMut,
    put: Vec<u8>,
    got: Vec<u8>,
    taken: usize,
    eofs: usize,
    close: Option<Close>,
}

impl End {
    fn new() -> Self {
        Self {
            pipe: Pipe::new(1000),
            decoder: Decoder::default(),
            wire: BytesMut::new(),
            put: Vec::new(),
            got: Vec::new(),
            taken: 0,
            eofs: 0,
            close: None,
        }
    }

    fn send(&mut self, length: usize) {
        let length = length.min(self.pipe.room());
        if length > 0 && !self.pipe.eof_sent {
            let body: Vec<u8> = (0..length)
                .map(|i| ((self.put.len() + i) % 251) as u8)
                .collect();
            self.pipe.send(framed(&body));
            self.put.extend_from_slice(&body);
        }
    }

    /// Writes all to the other's wire, of which `length` bytes arrive.
    fn talk(&mut self, to: &mut Self, length: usize, now: Instant) {
        while let Some(bytes) = self.pipe.poll_transmit(now) {
            to.wire.extend_from_slice(&bytes);
        }
        let mut arrived = to.wire.split_to(length.min(to.wire.len()));
        // What the decoder leaves is part of a frame: it stays in front of the rest.
        while let Some(piece) = to.decoder.next(&mut arrived).unwrap() {
            match to.pipe.handle(piece).unwrap() {
                Some(Event::Data(bytes)) => to.got.extend_from_slice(&bytes),
                Some(Event::Eof) => to.eofs += 1,
                Some(Event::Closed(close)) => to.close = Some(close),
                Some(Event::Pong(_)) | None => {}
            }
        }
        arrived.unsplit(to.wire.split());
        to.wire = arrived;
    }

    /// Takes some of what arrived.
    fn take(&mut self, length: usize, now: Instant) {
        let length = length.min(self.got.len() - self.taken);
        self.taken += length;
        self.pipe.consume(length, now);
    }

    fn cut(&mut self) {
        self.wire.clear();
        self.decoder = Decoder::default();
        self.pipe.cut();
    }
}

fn reconnect(a: &mut End, b: &mut End) {
    let (of_a, of_b) = (a.pipe.received(), b.pipe.received());
    a.pipe.resume(of_b).unwrap();
    b.pipe.resume(of_a).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Send(bool, usize),
    Talk(bool, usize),
    Take(bool, usize),
    Eof(bool),
    Ping(bool),
    Cut,
    Reconnect,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 1usize..400).prop_map(|(a, n)| Step::Send(a, n)),
        6 => (any::<bool>(), 1usize..600).prop_map(|(a, n)| Step::Talk(a, n)),
        4 => (any::<bool>(), 1usize..600).prop_map(|(a, n)| Step::Take(a, n)),
        1 => any::<bool>().prop_map(Step::Eof),
        1 => any::<bool>().prop_map(Step::Ping),
        2 => Just(Step::Cut),
        2 => Just(Step::Reconnect),
        2 => (0u64..60).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn any_schedule_of_cuts_delivers_the_same_bytes_once(
        steps in proptest::collection::vec(step(), 1..150)
    ) {
        let (mut a, mut b, mut now) = (End::new(), End::new(), Instant::now());
        let mut cut = false;
        for step in steps {
            match step {
                Step::Send(true, n) => a.send(n),
                Step::Send(false, n) => b.send(n),
                Step::Talk(true, n) if !cut => a.talk(&mut b, n, now),
                Step::Talk(false, n) if !cut => b.talk(&mut a, n, now),
                Step::Talk(..) => {}
                Step::Take(true, n) => a.take(n, now),
                Step::Take(false, n) => b.take(n, now),
                Step::Eof(true) => a.pipe.send_eof(),
                Step::Eof(false) => b.pipe.send_eof(),
                Step::Ping(true) => a.pipe.send_ping(1),
                Step::Ping(false) => b.pipe.send_ping(1),
                Step::Cut => {
                    cut = true;
                    a.cut();
                    b.cut();
                }
                Step::Reconnect => {
                    // Also over a connection that is believed alive.
                    a.cut();
                    b.cut();
                    reconnect(&mut a, &mut b);
                    cut = false;
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
            }
            prop_assert!(a.pipe.sent() - a.pipe.acked <= 1000);
            prop_assert!(b.pipe.sent() - b.pipe.acked <= 1000);
            prop_assert!(a.put.starts_with(&b.got));
            prop_assert!(b.put.starts_with(&a.got));
        }
        a.pipe.send_eof();
        b.pipe.send_eof();
        a.pipe.send_close(close());
        // The close is lost once, with all before it that was on its way.
        if !cut {
            a.talk(&mut b, 40, now);
        }
        a.cut();
        b.cut();
        reconnect(&mut a, &mut b);
        for _ in 0..3 {
            a.talk(&mut b, usize::MAX, now);
            b.talk(&mut a, usize::MAX, now);
            a.take(usize::MAX, now);
            b.take(usize::MAX, now);
            now += ACK_DELAY;
        }
        prop_assert_eq!(&a.put, &b.got);
        prop_assert_eq!(&b.put, &a.got);
        prop_assert_eq!((a.eofs, b.eofs), (1, 1));
        let close = b.close.expect("a close");
        prop_assert_eq!((close.sent, close.exit_status), (a.put.len() as u64, Some(7)));
        prop_assert!(a.pipe.is_acknowledged() && b.pipe.is_acknowledged());
        prop_assert!(a.pipe.replay.is_empty() && b.pipe.replay.is_empty());
    }
}

#[test]
fn a_resume_where_nothing_can_be_is_a_violation() {
    let (mut a, mut b, now) = (Pipe::new(1000), Pipe::new(1000), Instant::now());
    a.send(framed(b"taken"));
    carry(&mut a, &mut b, now).unwrap();
    carry(&mut b, &mut a, now + ACK_DELAY).unwrap();
    a.send(framed(b"not sent yet"));
    a.cut();
    for stated in [4, 6] {
        let violation = Violation::Resume {
            stated,
            acked: 5,
            sent: 5,
        };
        assert_eq!(a.resume(stated), Err(violation));
    }
    assert_eq!(a.resume(5), Ok(()));
}

#[test]
fn a_second_end_of_file_is_a_violation_unless_the_pipe_was_cut_in_between() {
    let eof = Piece::Frame(FrameKind::Eof, Bytes::copy_from_slice(&0u64.to_be_bytes()));
    let mut a = Pipe::new(100);
    assert_eq!(a.handle(eof.clone()), Ok(Some(Event::Eof)));
    assert!(a.handle(eof.clone()).is_err());
    a.resume(0).unwrap();
    assert_eq!(a.handle(eof.clone()), Ok(None));
    assert!(a.handle(eof).is_err());
}
