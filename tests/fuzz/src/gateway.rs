//! The protocol between client and agent.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use postern_proto::gateway::frame::{self, CONTROL_LIMIT, DATA_LIMIT, Decoder, HEADER, Piece};
use postern_proto::gateway::message::{Close, CloseReason, Denied, Granted, Join, Open, open_hash};
use postern_proto::gateway::pipe::{Event, Pipe};
use postern_proto::{enroll, names};

/// Any bytes, cut anywhere, decode to the same pieces.
pub fn frames(input: &[u8]) {
    let Some((step, input)) = input.split_first() else {
        return;
    };
    let whole = decode(input, input.len().max(1));
    let cut = decode(input, usize::from(*step).max(1));
    assert_eq!(whole, cut, "the cut of the input changes its meaning");
}

/// Data joined, frames as they are, and whether it ended in an error.
fn decode(input: &[u8], step: usize) -> (Vec<u8>, Vec<Piece>, bool) {
    let (mut decoder, mut received) = (Decoder::default(), BytesMut::new());
    let (mut data, mut control) = (Vec::new(), Vec::new());
    for chunk in input.chunks(step) {
        received.extend_from_slice(chunk);
        loop {
            match decoder.next(&mut received) {
                Ok(Some(Piece::Data(bytes))) => {
                    assert!(bytes.len() <= DATA_LIMIT && !bytes.is_empty());
                    data.extend_from_slice(&bytes);
                }
                Ok(Some(frame @ Piece::Frame(..))) => control.push(frame),
                Ok(None) => break,
                Err(_) => return (data, control, true),
            }
        }
        assert!(received.len() < HEADER + CONTROL_LIMIT + step);
    }
    (data, control, false)
}

/// Operations on two pipes that talk to each other, and a peer that injects frames of its own.
pub fn pipe(input: &[u8]) {
    const CEILING: usize = 4096;
    let mut now = Instant::now();
    let mut ends = [End::new(CEILING), End::new(CEILING)];
    let (mut honest, mut pings) = (true, 0);
    for operation in input.chunks(3) {
        let &[kind, a, b] = operation else { return };
        let (mine, other) = if kind & 1 == 0 { (0, 1) } else { (1, 0) };
        match kind >> 1 & 7 {
            0 | 1 => {
                let length = usize::from(u16::from_be_bytes([a, b])).min(ends[mine].pipe.room());
                ends[mine].send(length);
                assert!(ends[mine].pipe.room() <= CEILING);
            }
            2 | 3 => {
                now += Duration::from_millis(a.into());
                let mut wire = BytesMut::new();
                while let Some(bytes) = ends[mine].pipe.poll_transmit(now) {
                    wire.extend_from_slice(&bytes);
                }
                if ends[other].take(&mut wire, now).is_err() {
                    assert!(!honest, "an honest peer was refused");
                    return;
                }
            }
            4 => ends[mine].pipe.send_eof(),
            // Nobody may ask for more without hearing answers.
            5 if pings < 60 => {
                pings += 1;
                ends[mine].pipe.send_ping(a.into());
            }
            5 => {}
            6 => ends[mine].pipe.send_close(Close {
                reason: CloseReason::Done,
                message: None,
                exit_status: Some(a.into()),
                sent: 0,
                received: 0,
                evidence: None,
            }),
            _ => {
                honest = false;
                let number = u64::from_be_bytes([0, 0, 0, 0, 0, 0, a & 15, b]);
                let mut wire = BytesMut::from(&[a >> 4, 0, 0, 8][..]);
                wire.extend_from_slice(&number.to_be_bytes());
                if ends[mine].take(&mut wire, now).is_err() {
                    return;
                }
            }
        }
        if honest {
            assert!(
                ends[1].sent.starts_with(&ends[0].got) && ends[0].sent.starts_with(&ends[1].got)
            );
        }
    }
}

struct End {
    pipe: Pipe,
    decoder: Decoder,
    sent: Vec<u8>,
    ended: bool,
    got: Vec<u8>,
}

impl End {
    fn new(ceiling: usize) -> Self {
        Self {
            pipe: Pipe::new(ceiling),
            decoder: Decoder::default(),
            sent: Vec::new(),
            ended: false,
            got: Vec::new(),
        }
    }

    fn send(&mut self, length: usize) {
        let before = self.pipe.sent();
        let mut buffer = BytesMut::zeroed(HEADER);
        buffer.extend((0..length).map(|n| (self.sent.len() + n) as u8));
        let body = buffer[HEADER..].to_vec();
        if let Some(frame) = frame::data(buffer) {
            self.pipe.send(frame);
        }
        if self.pipe.sent() > before {
            self.sent.extend_from_slice(&body);
        }
    }

    fn take(&mut self, wire: &mut BytesMut, now: Instant) -> Result<(), ()> {
        while let Some(piece) = self.decoder.next(wire).map_err(drop)? {
            match self.pipe.handle(piece).map_err(drop)? {
                Some(Event::Data(bytes)) => {
                    self.pipe.consume(bytes.len(), now);
                    self.got.extend_from_slice(&bytes);
                }
                Some(Event::Eof) => self.ended = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Bodies of control frames and of the enrolment, and the names inside them.
pub fn messages(input: &[u8]) {
    if let Ok(open) = serde_json::from_slice::<Open>(input) {
        let again: Open = serde_json::from_slice(&serde_json::to_vec(&open).expect("JSON"))
            .expect("what was written is read");
        assert_eq!(open_hash(&open), open_hash(&again));
    }
    drop(serde_json::from_slice::<Granted>(input));
    drop(serde_json::from_slice::<Denied>(input));
    drop(serde_json::from_slice::<Close>(input));
    drop(serde_json::from_slice::<Join>(input));
    drop(serde_json::from_slice::<enroll::Challenge>(input));
    drop(serde_json::from_slice::<enroll::Proof>(input));
    drop(serde_json::from_slice::<enroll::StepUp>(input));
    drop(serde_json::from_slice::<enroll::Outcome>(input));
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(user) = text.parse::<names::LoginUser>() {
        // What would split or end a name in a certificate, a command line or a log.
        assert!(!user.as_str().contains([',', ' ', '\n', '\0', '/', '@']));
    }
    drop(text.parse::<names::TargetName>());
    drop(text.parse::<names::TargetId>());
    drop(text.parse::<names::HostName>());
    drop(text.parse::<names::AgentId>());
    drop(text.parse::<names::SessionId>());
}
