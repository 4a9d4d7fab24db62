//! The agent's side of pipes.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use postern_proto::gateway::frame::{self, FrameKind, HEADER, Piece};
use postern_proto::gateway::message::{
    Close, CloseReason, Denied, Granted, GrantedTarget, HexSecret, HostKeyCheck, HostKeySeen,
    JOIN_EXPORTER, Open, OpenKind, join_proof,
};
use postern_proto::gateway::pipe::Event;
use postern_proto::gateway::{ALPN_HTTP, ALPN_PIPE};
use postern_proto::names::{Assurance, SessionId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{FakeLog, Pki, ssh};
use crate::config::AgentProfile;
use crate::gateway::{Gateway, GatewayError, Identity};
use crate::identity::{ClientCertificate, IdentityError};
use crate::pipe::Wire;

/// What the agent does with one `Open`; without a script it grants and serves.
#[derive(Clone)]
pub(crate) enum Script {
    /// Says no.
    Deny(Denied),
    /// Grants, serves, and drops the TCP connection after this many bytes from the target.
    Cut(u64),
    /// Grants, serves, and ends it for this reason after this many bytes from the target.
    End(CloseReason, u64),
    /// Grants with the evidence of a log that lost its first entry.
    Rewrite,
    /// Grants a tunnel only once its first bytes are there.
    HearFirst,
}

pub(crate) struct State {
    pub(crate) script: VecDeque<Script>,
    pub(crate) opens: Vec<Open>,
    /// Connections for pipes, used or not.
    pub(crate) connections: usize,
    pub(crate) log: FakeLog,
    pub(crate) closes: Vec<Close>,
    /// Where tunnels lead.
    pub(crate) tunnel: Option<SocketAddr>,
    pub(crate) step_ups: Vec<Denied>,
    pub(crate) certificates: usize,
    /// What HTTP answers, by path.
    pub(crate) http: HashMap<String, (u16, Bytes)>,
    /// Requests over HTTP: path and body.
    pub(crate) asked: Vec<(String, Bytes)>,
}

pub(crate) struct FakeAgent {
    pub(crate) profile: AgentProfile,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) folder: tempfile::TempDir,
    pki: Arc<Pki>,
    _serving: JoinSet<()>,
}

const SECRET: [u8; 32] = [9; 32];

impl FakeAgent {
    pub(crate) async fn start() -> Self {
        Self::named("bastion-1", false).await
    }

    /// With a certificate for `name`.
    pub(crate) async fn named(name: &str, expired: bool) -> Self {
        let pki = Arc::new(Pki::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let profile = AgentProfile {
            address: listener.local_addr().unwrap().to_string(),
            ca: pki.server_pem.clone(),
            ..super::profile()
        };
        let state = Arc::new(Mutex::new(State {
            script: VecDeque::new(),
            opens: Vec::new(),
            connections: 0,
            log: FakeLog::default(),
            closes: Vec::new(),
            tunnel: None,
            step_ups: Vec::new(),
            certificates: 0,
            http: HashMap::new(),
            asked: Vec::new(),
        }));
        let acceptor = TlsAcceptor::from(pki.server(name, &[ALPN_PIPE, ALPN_HTTP], expired));
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&state);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    if let Ok(connection) = acceptor.accept(socket).await {
                        serve(connection, state).await;
                    }
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        Self {
            profile,
            state,
            folder,
            pki,
            _serving: serving,
        }
    }

    pub(crate) fn script(self, script: impl IntoIterator<Item = Script>) -> Self {
        self.state.lock().unwrap().script.extend(script);
        self
    }

    pub(crate) async fn gateway(&self) -> Arc<Gateway> {
        self.try_gateway().await.unwrap()
    }

    pub(crate) async fn try_gateway(&self) -> Result<Arc<Gateway>, GatewayError> {
        self.gateway_to(self.profile.clone()).await
    }

    /// With this agent's identity towards another one.
    pub(crate) async fn gateway_to(
        &self,
        profile: AgentProfile,
    ) -> Result<Arc<Gateway>, GatewayError> {
        let identity = FakeIdentity {
            pki: Arc::clone(&self.pki),
            state: Arc::clone(&self.state),
        };
        Gateway::new(profile, Arc::new(identity), self.folder.path()).await
    }

    /// Serves a store's files, and a list of its recordings, as agents do.
    pub(crate) fn serve_store(&self, folder: &Path) {
        let mut files = vec![folder.to_owned()];
        let mut names = Vec::new();
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                continue;
            }
            let inside = path.strip_prefix(folder).unwrap().to_str().unwrap();
            let url = match inside.strip_prefix("recordings/") {
                Some(name) => {
                    names.push(serde_json::json!({ "name": name, "length": 0 }));
                    format!("/v1/{inside}")
                }
                None => format!("/v1/log/{inside}"),
            };
            let body = Bytes::from(std::fs::read(&path).unwrap());
            self.state.lock().unwrap().http.insert(url, (200, body));
        }
        let list = serde_json::json!({ "recordings": names }).to_string();
        self.answer("/v1/recordings", 200, &list);
    }

    /// Answers one HTTP path.
    pub(crate) fn answer(&self, path: &str, status: u16, body: &str) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.state
            .lock()
            .unwrap()
            .http
            .insert(path.to_owned(), (status, body));
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }
}

struct FakeIdentity {
    pki: Arc<Pki>,
    state: Arc<Mutex<State>>,
}

impl Identity for FakeIdentity {
    fn certified<'a>(
        &'a self,
        _agent: &'a AgentProfile,
        _refused: Option<&'a ClientCertificate>,
    ) -> BoxFuture<'a, Result<ClientCertificate, IdentityError>> {
        self.state.lock().unwrap().certificates += 1;
        Box::pin(async { Ok(self.pki.client()) })
    }

    fn step_up<'a>(
        &'a self,
        _agent: &'a AgentProfile,
        _certificate: &'a ClientCertificate,
        denied: &'a Denied,
    ) -> BoxFuture<'a, Result<(), IdentityError>> {
        self.state.lock().unwrap().step_ups.push(denied.clone());
        Box::pin(async { Ok(()) })
    }
}

async fn serve(connection: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
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
