//! Pipes whose connections are lost, on connections in memory.

use std::sync::Mutex;

use bytes::Bytes;
use postern_proto::gateway::frame::HEADER;
use postern_proto::gateway::message::CloseReason;
use postern_proto::gateway::resume::Custody;
use postern_proto::names::SessionId;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;
use crate::pipe::{Outcome, Wire, relay};

const SECRET: [u8; 32] = [5; 32];
const SOON: Duration = Duration::from_secs(20);

/// Hands out one end of in-memory connections, after as many failures as asked for.
struct Dialer {
    agent: mpsc::Sender<(DuplexStream, [u8; 32])>,
    failures: Mutex<usize>,
    renewals: Mutex<usize>,
}

impl Redial<DuplexStream> for Dialer {
    fn dial(&self) -> BoxFuture<'static, Result<Dialled<DuplexStream>, String>> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Box::pin(async { Err("no route".to_owned()) });
        }
        let agent = self.agent.clone();
        Box::pin(async move {
            let (stream, far) = duplex(1 << 20);
            let exporter = [7; 32];
            agent.send((far, exporter)).await.unwrap();
            Ok(Dialled { stream, exporter })
        })
    }

    fn renew(&self) -> BoxFuture<'static, Result<(), String>> {
        *self.renewals.lock().unwrap() += 1;
        Box::pin(async { Ok(()) })
    }
}

struct Story {
    dialer: Arc<Dialer>,
    dialled: mpsc::Receiver<(DuplexStream, [u8; 32])>,
    /// The agent's end of the first connection.
    first: DuplexStream,
    local: DuplexStream,
    outages: Outages,
    relayed: tokio::task::JoinHandle<Result<Outcome, PipeError>>,
}

fn begin(failures: usize) -> Story {
    let session = SessionId::from_parts(1, 1);
    let (sender, dialled) = mpsc::channel(8);
    let dialer = Arc::new(Dialer {
        agent: sender,
        failures: Mutex::new(failures),
        renewals: Mutex::new(0),
    });
    let outages = Outages::new();
    let (near, first) = duplex(1 << 20);
    let (local, mut far) = duplex(1 << 20);
    let redial: Arc<dyn Redial<DuplexStream>> = dialer.clone();
    let claim = Claim::new(&SECRET, session, 0);
    let mut wire = Wire::new(near, Bytes::new());
    wire.set_line(Line::new(redial, claim, SOON, outages.clone()));
    let relayed = tokio::spawn(async move { relay(&mut wire, &mut far).await });
    Story {
        dialer,
        dialled,
        first,
        local,
        outages,
        relayed,
    }
}

fn data(body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::zeroed(HEADER);
    buffer.extend_from_slice(body);
    frame::data(buffer).unwrap()
}

async fn say<T: serde::Serialize>(stream: &mut DuplexStream, kind: FrameKind, body: &T) {
    let body = serde_json::to_vec(body).unwrap();
    let frame = frame::control(kind, &body).unwrap();
    stream.write_all(&frame).await.unwrap();
}

/// The next frame with its header.
async fn hear(stream: &mut DuplexStream) -> (u8, Vec<u8>) {
    let read = async {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.unwrap();
        (header[0], body)
    };
    tokio::time::timeout(SOON, read).await.expect("a frame")
}

async fn heard_data(stream: &mut DuplexStream) -> Vec<u8> {
    loop {
        let (kind, body) = hear(stream).await;
        if kind == FrameKind::Data as u8 {
            return body;
        }
    }
}

#[tokio::test]
async fn a_cut_connection_is_replaced_and_what_was_lost_is_sent_again() {
    let mut story = begin(3);
    story.local.write_all(b"hello").await.unwrap();
    assert_eq!(heard_data(&mut story.first).await, b"hello");
    story.first.write_all(&data(b"world")).await.unwrap();
    let mut world = [0; 5];
    story.local.read_exact(&mut world).await.unwrap();
    let mut away = story.outages.watch();
    drop(story.first);
    story.local.write_all(b" again").await.unwrap();

    // Three attempts fail before this one.
    let (mut second, exporter) = story.dialled.recv().await.unwrap();
    assert!(away.borrow_and_update().since.is_some());
    let (kind, body) = hear(&mut second).await;
    assert_eq!(kind, FrameKind::Resume as u8);
    let resume: Resume = serde_json::from_slice(&body).unwrap();
    assert_eq!(resume.received, 5);
    let mut custody = Custody::new(&SECRET, resume.session, 0);
    custody.take(&resume, &exporter).unwrap();
    // Of what was sent, two bytes had arrived.
    say(&mut second, FrameKind::Resumed, &Resumed { received: 2 }).await;
    let mut got = heard_data(&mut second).await;
    while got.len() < 9 {
        got.extend(heard_data(&mut second).await);
    }
    assert_eq!(got, b"llo again");
    away.wait_for(|away| away.since.is_none()).await.unwrap();

    let close = postern_proto::gateway::message::Close {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(7),
        sent: 8,
        received: 11,
        evidence: None,
    };
    second.write_all(&data(b"bye")).await.unwrap();
    say(&mut second, FrameKind::Close, &close).await;
    let outcome = tokio::time::timeout(SOON, story.relayed).await;
    let outcome = outcome.unwrap().unwrap().unwrap();
    assert_eq!((outcome.up, outcome.down), (11, 8));
    assert_eq!(outcome.close.exit_status, Some(7));
}

#[tokio::test]
async fn a_no_of_the_agent_is_final_and_a_refused_certificate_is_renewed() {
    let mut story = begin(0);
    drop(story.first);
    for code in [DenyCode::Certificate, DenyCode::Limit, DenyCode::Policy] {
        let (mut stream, _) = story.dialled.recv().await.unwrap();
        hear(&mut stream).await;
        let denied = Denied {
            code,
            message: "no such session".to_owned(),
            hint: None,
            session: None,
            open_hash: None,
            candidates: vec![],
        };
        say(&mut stream, FrameKind::Denied, &denied).await;
    }
    let outcome = tokio::time::timeout(SOON, story.relayed).await;
    let refused = outcome.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, PipeError::Refused(_)), "{refused}");
    assert_eq!(*story.dialer.renewals.lock().unwrap(), 1);
}

#[tokio::test]
async fn an_outage_longer_than_the_agents_patience_is_the_end() {
    let (sender, _dialled) = mpsc::channel(1);
    let dialer = Arc::new(Dialer {
        agent: sender,
        failures: Mutex::new(usize::MAX),
        renewals: Mutex::new(0),
    });
    let claim = Claim::new(&SECRET, SessionId::from_parts(1, 1), 0);
    let mut line = Line::new(dialer, claim, Duration::from_secs(1), Outages::new());
    line.seek(Instant::now());
    let end = std::future::poll_fn(|cx| line.poll(cx));
    let end = tokio::time::timeout(SOON, end).await.unwrap();
    assert!(matches!(end, Err(PipeError::Away(1))));
}
