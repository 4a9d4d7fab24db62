//! The protocol between client and agent.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use postern_proto::gateway::frame::{self, CONTROL_LIMIT, DATA_LIMIT, Decoder, HEADER, Piece};
use postern_proto::gateway::message::{Close, CloseReason, Denied, Granted, Join, Open, open_hash};
use postern_proto::gateway::pipe::{Event, Pipe};
use postern_proto::gateway::resume::{Claim, Custody, Resume, Resumed};
use postern_proto::{enroll, names};

/// Any bytes, cut anywhere, decode to the same pieces.
pub(crate) fn frames(input: &[u8]) {
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
pub(crate) fn pipe(input: &[u8]) {
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
            // Who closes twice may have said too much at once.
            6 if ends[mine].closed => {}
            6 => {
                ends[mine].closed = true;
                ends[mine].pipe.send_close(Close {
                    reason: CloseReason::Done,
                    message: None,
                    exit_status: Some(a.into()),
                    sent: 0,
                    received: 0,
                    evidence: None,
                });
            }
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
    closed: bool,
    ended: bool,
    got: Vec<u8>,
}

impl End {
    fn new(ceiling: usize) -> Self {
        Self {
            pipe: Pipe::new(ceiling),
            decoder: Decoder::default(),
            sent: Vec::new(),
            closed: false,
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
pub(crate) fn messages(input: &[u8]) {
    if let Ok(open) = serde_json::from_slice::<Open>(input) {
        let again: Open = serde_json::from_slice(&serde_json::to_vec(&open).expect("JSON"))
            .expect("what was written is read");
        assert_eq!(open_hash(&open), open_hash(&again));
    }
    drop(serde_json::from_slice::<Granted>(input));
    drop(serde_json::from_slice::<Denied>(input));
    drop(serde_json::from_slice::<Close>(input));
    drop(serde_json::from_slice::<Join>(input));
    drop(serde_json::from_slice::<Resume>(input));
    drop(serde_json::from_slice::<Resumed>(input));
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

/// What became of a `Resume`.
#[derive(PartialEq)]
enum Fate {
    Lost,
    /// Its answer was lost.
    Arrived,
    Answered,
}

/// A client that resumes on ever new connections, with answers and frames that get lost, and
/// somebody who replays all that was ever said, on any connection, and changes it.
pub(crate) fn resume(input: &[u8]) {
    let (secret, session) = ([7; 32], names::SessionId::from_parts(1, 2));
    let mut claim = Claim::new(&secret, session, 3);
    let mut custody = Custody::new(&secret, session, 3);
    // What was said, with its connection.
    let mut said: Vec<(Resume, [u8; 32], Fate)> = Vec::new();
    let mut fresh = 0u64;
    for operation in input.chunks_exact(3) {
        let &[kind, a, b] = operation else { return };
        let place = usize::from(a) % said.len().max(1);
        match kind % 8 {
            // A new connection, whose answer arrives or not.
            0..=2 => {
                fresh += 1;
                let mut exporter = [0; 32];
                exporter[..8].copy_from_slice(&fresh.to_be_bytes());
                let resume = claim.resume(&exporter, b.into());
                let fate = match kind % 8 {
                    0 => Fate::Answered,
                    1 => Fate::Arrived,
                    _ => Fate::Lost,
                };
                if fate != Fate::Lost {
                    let taken = custody.take(&resume, &exporter);
                    assert!(taken.is_ok(), "the owner was refused: {taken:?}");
                }
                if fate == Fate::Answered {
                    claim.accepted(&exporter);
                }
                said.push((resume, exporter, fate));
            }
            // A frame of the newest connection, which the client only sends with the next key.
            3 => {
                if let Some((resume, _, Fate::Answered)) = said.last() {
                    custody.confirm(resume.attempt);
                }
            }
            // Replayed where it was said: once is once.
            4 => {
                if let Some((resume, exporter, Fate::Arrived | Fate::Answered)) = said.get(place) {
                    assert!(custody.take(resume, exporter).is_err(), "taken twice");
                }
            }
            // Replayed on a connection of somebody else's.
            5 => {
                if let Some((resume, _, _)) = said.get(place) {
                    assert!(custody.take(resume, &[b; 32]).is_err(), "taken elsewhere");
                }
            }
            // Changed on its way.
            6 => {
                if let Some((resume, exporter, _)) = said.get(place) {
                    let mut changed = resume.clone();
                    match b % 4 {
                        0 => changed.attempt = changed.attempt.wrapping_add(u64::from(b) + 1),
                        1 => changed.received = changed.received.wrapping_add(u64::from(b) + 1),
                        2 => changed.pipe ^= u32::from(b) + 1,
                        _ => drop(changed.proof.pop()),
                    }
                    assert!(
                        custody.take(&changed, exporter).is_err(),
                        "taken though changed"
                    );
                }
            }
            // A late frame of an old connection confirms nothing.
            _ => custody.confirm(u64::from(a) << 32),
        }
    }
}
