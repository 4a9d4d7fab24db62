//! The agent's side of pipes.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use postern_proto::gateway::ALPN_HTTP;
use postern_proto::gateway::frame::{self, FrameKind, HEADER, Piece};
use postern_proto::gateway::message::{
    Close, CloseReason, Granted, GrantedTarget, HexSecret, HostKeyCheck, HostKeySeen,
    JOIN_EXPORTER, Open, OpenKind, join_proof,
};
use postern_proto::gateway::pipe::Event;
use postern_proto::names::{Assurance, SessionId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Script, State};
use crate::pipe::Wire;
use crate::testing::ssh;

const SECRET: [u8; 32] = [9; 32];

pub(super) async fn serve(connection: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
    if connection.get_ref().1.alpn_protocol() == Some(ALPN_HTTP) {
        return serve_http(connection, state).await;
    }
    let exporter = connection
        .get_ref()
        .1
        .export_keying_material([0; 32], JOIN_EXPORTER, None)
        .unwrap();
    state.lock().unwrap().connections += 1;
    let mut wire = Wire::new(connection, Bytes::new());
    let Ok(Piece::Frame(FrameKind::Open, body)) = poll_fn(|cx| wire.poll_piece(cx)).await else {
        return;
    };
    let open: Open = serde_json::from_slice(&body).unwrap();
    let session = SessionId::from_parts(1, 1);
    if let Some(join) = &open.join {
        assert_eq!(join.proof, join_proof(&SECRET, &exporter, session));
    }
    let (script, evidence) = {
        let mut state = state.lock().unwrap();
        state.opens.push(open.clone());
        let script = state.script.pop_front();
        if matches!(script, Some(Script::Rewrite)) {
            state.log.entries.remove(0);
        }
        (script, state.log.append("granted", open.known_size))
    };
    if let Some(Script::Deny(mut denied)) = script {
        if denied.open_hash.as_deref() == Some("right") {
            denied.open_hash = Some(hex::encode(postern_proto::gateway::message::open_hash(
                &open,
            )));
        }
        let body = serde_json::to_vec(&denied).unwrap();
        wire.say(frame::control(FrameKind::Denied, &body).unwrap());
        poll_fn(|cx| wire.poll_transmit(cx)).await.unwrap();
        // Until the client has read it and goes.
        let _gone = poll_fn(|cx| wire.poll_piece(cx)).await;
        return;
    }
    let mut early = Bytes::new();
    if let Some(Script::HearFirst) = script
        && let Ok(Event::Data(bytes)) = poll_fn(|cx| wire.poll_event(cx)).await
    {
        wire.machine_mut().consume(bytes.len(), Instant::now());
        early = bytes;
    }
    let pipe = state
        .lock()
        .unwrap()
        .opens
        .iter()
        .filter(|open| open.join.is_some())
        .count();
    let granted = Granted {
        session,
        pipe: pipe as u32,
        secret: HexSecret::new(&SECRET),
        detach: 0,
        ends_at: 2_000_000_000,
        target: GrantedTarget {
            id: "i-0123456789abcdef0".parse().unwrap(),
            name: "web-1".to_owned(),
            address: "10.0.0.5:22".to_owned(),
            host_key: Some(HostKeySeen {
                fingerprint: "SHA256:abc".to_owned(),
                check: HostKeyCheck::Pinned,
            }),
        },
        policies: vec!["operators".to_owned()],
        assurance: Assurance::AwsMfa,
        ssh_host_ca: Some(ssh::host_ca()),
        recorded: true,
        evidence,
    };
    let body = serde_json::to_vec(&granted).unwrap();
    wire.say(frame::control(FrameKind::Granted, &body).unwrap());
    match open.kind {
        OpenKind::Ssh { user } => {
            let (near, far) = tokio::io::duplex(64 * 1024 * 1024);
            let status = Arc::new(Mutex::new(None));
            let server = ssh::serve(near, user, Arc::clone(&status));
            tokio::join!(server, run(wire, far, state, script, granted, status));
        }
        OpenKind::Tunnel { .. } => {
            let address = state.lock().unwrap().tunnel.unwrap();
            let mut target = TcpStream::connect(address).await.unwrap();
            target.write_all(&early).await.unwrap();
            run(wire, target, state, script, granted, Arc::default()).await;
        }
    }
}

async fn serve_http(connection: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let state = Arc::clone(&state);
            async move {
                let path = request.uri().to_string();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut state = state.lock().unwrap();
                state.asked.push((path.clone(), body));
                let missing = (
                    404,
                    Bytes::from_static(br#"{"error":"the log has no such file"}"#),
                );
                let (status, body) = state.http.get(&path).cloned().unwrap_or(missing);
                let response = http::Response::builder().status(status);
                Ok::<_, std::convert::Infallible>(response.body(Full::new(body)).unwrap())
            }
        });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service);
    let _ended = served.await;
}

enum Step {
    Event(Event),
    Local(Bytes),
    LocalEof,
    Tick,
    Lost,
}

/// A plain relay with the agent's manners: it says `Close` when both directions are done.
async fn run<L: AsyncRead + AsyncWrite + Unpin>(
    mut wire: Wire<TlsStream<TcpStream>>,
    mut local: L,
    state: Arc<Mutex<State>>,
    script: Option<Script>,
    granted: Granted,
    status: Arc<Mutex<Option<u32>>>,
) {
    let (mut down, mut closed, mut local_open) = (0, false, true);
    loop {
        let step = step(&mut wire, &mut local, local_open && !closed).await;
        match step {
            Step::Lost => return,
            Step::Tick => {}
            Step::LocalEof => {
                local_open = false;
                wire.machine_mut().send_eof();
            }
            Step::Local(bytes) => {
                down += bytes.len() as u64;
                let mut buffer = BytesMut::zeroed(HEADER);
                buffer.extend_from_slice(&bytes);
                wire.machine_mut().send(frame::data(buffer).unwrap());
            }
            Step::Event(Event::Data(bytes)) => {
                if local.write_all(&bytes).await.is_err() {
                    local_open = false;
                }
                wire.machine_mut().consume(bytes.len(), Instant::now());
            }
            Step::Event(Event::Eof) => {
                let _gone = local.shutdown().await;
            }
            Step::Event(Event::Closed(close)) => {
                state.lock().unwrap().closes.push(close);
                if closed {
                    return;
                }
                say_close(&mut wire, &state, &granted, CloseReason::Client, None);
                let _sent = poll_fn(|cx| wire.poll_transmit(cx)).await;
                return;
            }
            Step::Event(Event::Pong(_)) => {}
        }
        match &script {
            Some(Script::Cut(after)) if down >= *after => return,
            Some(Script::End(reason, after)) if down >= *after && !closed => {
                closed = true;
                say_close(&mut wire, &state, &granted, *reason, None);
            }
            _ => {}
        }
        if wire.machine().is_done() && !closed {
            closed = true;
            let status = *status.lock().unwrap();
            say_close(&mut wire, &state, &granted, CloseReason::Done, status);
        }
    }
}

fn say_close(
    wire: &mut Wire<TlsStream<TcpStream>>,
    state: &Mutex<State>,
    granted: &Granted,
    reason: CloseReason,
    exit_status: Option<u32>,
) {
    // Of the checkpoint in `Granted`: its size stands in its second line.
    let known = granted
        .evidence
        .checkpoint
        .lines()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let evidence = Some(state.lock().unwrap().log.append("closed", Some(known)));
    wire.machine_mut().send_close(Close {
        reason,
        message: None,
        exit_status,
        sent: 0,
        received: 0,
        evidence,
    });
}

async fn step<L: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<TlsStream<TcpStream>>,
    local: &mut L,
    reading: bool,
) -> Step {
    let mut buffer = BytesMut::with_capacity(32 * 1024);
    let room = reading && wire.machine().room() > 0;
    let next = async {
        poll_fn(|cx| {
            if let Poll::Ready(Err(_)) = wire.poll_transmit(cx) {
                return Poll::Ready(Step::Lost);
            }
            match wire.poll_event(cx) {
                Poll::Ready(Ok(event)) => return Poll::Ready(Step::Event(event)),
                Poll::Ready(Err(_)) => return Poll::Ready(Step::Lost),
                Poll::Pending => {}
            }
            wire.poll_timers(cx, true).map(|_| Step::Tick)
        })
        .await
    };
    tokio::select! {
        step = next => step,
        read = local.read_buf(&mut buffer), if room => match read {
            Ok(length) if length > 0 => Step::Local(buffer.freeze()),
            _ => Step::LocalEof,
        },
        () = tokio::time::sleep(Duration::from_millis(200)) => Step::Tick,
    }
}
