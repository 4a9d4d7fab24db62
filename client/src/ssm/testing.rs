//! SSM in this process: the API over HTTPS, the message service over WebSockets, and an SSM Agent
//! behind it (the proto machine in the other role), with faults on demand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_util::task::AbortOnDropHandle;

use futures_util::StreamExt as _;
use postern_proto::ssm::payload::OpenDataChannel;

use crate::identity::testing::World;

use super::Ssm;

mod agent;

pub(super) use agent::{Order, Plays};

pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// The service, and somebody who is logged in.
pub(super) struct FakeSsm {
    pub(super) world: World,
    pub(super) state: Arc<Mutex<State>>,
    _servers: [AbortOnDropHandle<()>; 2],
}

/// What the service knows, and how it is to behave.
pub(super) struct State {
    /// Actions in the order of their calls, with the key id that signed.
    pub(super) calls: Vec<(String, String)>,
    /// Bodies of StartSession.
    pub(super) started: Vec<Value>,
    /// What every new session's SSM Agent does.
    pub(super) plays: Plays,
    /// Error code and message for an action.
    pub(super) refusals: HashMap<String, (String, String)>,
    /// Access keys that the service takes for expired.
    pub(super) expired: Vec<String>,
    /// ResumeSession gives no token.
    pub(super) is_over: bool,
    /// Connections are refused.
    pub(super) is_shut: bool,
    /// Nodes of DescribeInstanceInformation.
    pub(super) nodes: Vec<Value>,
    pub(super) url: String,
    tokens: HashMap<String, String>,
    sessions: HashMap<String, mpsc::UnboundedSender<Order>>,
    agents: Vec<AbortOnDropHandle<()>>,
    count: usize,
}

impl FakeSsm {
    pub(super) async fn start(plays: Plays) -> Self {
        Self::configured(plays, "").await
    }

    /// `more` goes into the AWS profile.
    pub(super) async fn configured(plays: Plays, more: &str) -> Self {
        let world = World::new().await;
        let acceptor = world.authority.server("127.0.0.1", b"http/1.1", 86_400);
        let (api, streams) = (listener().await, listener().await);
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            calls: Vec::new(),
            started: Vec::new(),
            plays,
            refusals: HashMap::new(),
            expired: Vec::new(),
            is_over: false,
            is_shut: false,
            nodes: Vec::new(),
            url: format!("wss://127.0.0.1:{}", port(&streams)),
            tokens: HashMap::new(),
            sessions: HashMap::new(),
            agents: Vec::new(),
            count: 0,
        }));
        world.configure(&format!(
            "{more}services = fake\n[services fake]\nssm =\n  endpoint_url = https://127.0.0.1:{0}\n\
             kms =\n  endpoint_url = https://127.0.0.1:{0}\n",
            port(&api)
        ));
        world.log_in().await;
        let shared = Arc::clone(&state);
        let answering = serve(api, acceptor.clone(), move |stream| {
            answer(stream, Arc::clone(&shared))
        });
        let shared = Arc::clone(&state);
        let streaming = serve(streams, acceptor, move |stream| {
            connect(stream, Arc::clone(&shared))
        });
        Self {
            world,
            state,
            _servers: [answering, streaming],
        }
    }

    pub(super) fn ssm(&self) -> Arc<Ssm> {
        Ssm::of(&self.world.context).unwrap()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Tells the SSM Agents, or the service in front of them, of every session.
    pub(super) fn order(&self, order: Order) {
        for session in self.lock().sessions.values() {
            // One that is over has nobody to do it.
            let _over = session.send(order.clone());
        }
    }

    /// How often an action was asked for.
    pub(super) fn count(&self, action: &str) -> usize {
        let state = self.lock();
        state
            .calls
            .iter()
            .filter(|(name, _)| name == action)
            .count()
    }

    pub(super) fn refuse(&self, action: &str, code: &str, message: &str) {
        let refusal = (code.to_owned(), message.to_owned());
        self.lock().refusals.insert(action.to_owned(), refusal);
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn serve<F>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    serve: impl Fn(TlsStream<TcpStream>) -> F + Send + Sync + 'static,
) -> AbortOnDropHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let serve = Arc::new(serve);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, serve) = (acceptor.clone(), Arc::clone(&serve));
            tasks.spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    serve(stream).await;
                }
            });
        }
    }))
}

/// One call of the API.
async fn answer(stream: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    let mut headers = HashMap::new();
    let mut line = String::new();
    while let Ok(count) = stream.read_line(&mut line).await {
        if count == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        line.clear();
    }
    let Some(target) = headers.get("x-amz-target") else {
        return;
    };
    let length = headers["content-length"].parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let action = target.split('.').next_back().unwrap();
    let credential = headers["authorization"]
        .split("Credential=")
        .nth(1)
        .unwrap();
    let key = credential.split('/').next().unwrap();
    let (status, answer) = {
        let mut state = state.lock().unwrap();
        state.calls.push((action.to_owned(), key.to_owned()));
        act(&mut state, action, key, &body)
    };
    let answer = answer.to_string();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\nconnection: close\r\n\
         x-amzn-requestid: r-1\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
    // A caller that is gone hears nothing.
    let _gone = stream.write_all(text.as_bytes()).await;
    let _gone = stream.shutdown().await;
}

fn act(state: &mut State, action: &str, key: &str, body: &Value) -> (u16, Value) {
    let refuse = |code: &str, message: &str| (400, json!({"__type": code, "message": message}));
    if state.expired.iter().any(|expired| expired == key) {
        return refuse(
            "ExpiredTokenException",
            "The security token included in the request is expired",
        );
    }
    if let Some((code, message)) = state.refusals.get(action) {
        return refuse(code, message);
    }
    state.count += 1;
    let token = format!("token-{}", state.count);
    match action {
        "StartSession" => {
            state.started.push(body.clone());
            let id = format!("alice-{:04}", state.count);
            let (orders, obey) = mpsc::unbounded_channel();
            let agent = agent::run(state.plays, obey);
            state
                .agents
                .push(AbortOnDropHandle::new(tokio::spawn(agent)));
            state.sessions.insert(id.clone(), orders);
            state.tokens.insert(token.clone(), id.clone());
            let url = format!("{}/v1/data-channel/{id}?role=publish_subscribe", state.url);
            (
                200,
                json!({"SessionId": id, "TokenValue": token, "StreamUrl": url}),
            )
        }
        "ResumeSession" => {
            let id = body["SessionId"].as_str().unwrap().to_owned();
            let is_over = state
                .sessions
                .get(&id)
                .is_none_or(|orders| orders.is_closed());
            if state.is_over || is_over {
                return (200, json!({"SessionId": id}));
            }
            state.tokens.insert(token.clone(), id.clone());
            (
                200,
                json!({"SessionId": id, "TokenValue": token, "StreamUrl": "wss://wrong.invalid/"}),
            )
        }
        "TerminateSession" => {
            let id = body["SessionId"].as_str().unwrap();
            if let Some(session) = state.sessions.get(id) {
                let _over = session.send(Order::Close(String::new()));
            }
            (200, json!({"SessionId": id}))
        }
        "GetConnectionStatus" => (200, json!({"Status": "connected"})),
        "DescribeInstanceInformation" => (200, json!({"InstanceInformationList": state.nodes})),
        _ => refuse("UnknownOperationException", action),
    }
}

/// One connection of a stream: its first message decides whose it is.
async fn connect(stream: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
    if state.lock().unwrap().is_shut {
        return;
    }
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
        return;
    };
    let Some(Ok(Frame::Text(first))) = socket.next().await else {
        return;
    };
    let open = OpenDataChannel::from_text(&first).unwrap();
    assert_eq!(
        open.client_version.as_deref(),
        Some(postern_proto::ssm::CLIENT_VERSION)
    );
    let mut state = state.lock().unwrap();
    // A token opens one connection.
    let session = state.tokens.remove(open.token_value.expose());
    if let Some(session) = session.and_then(|id| state.sessions.get(&id)) {
        let _over = session.send(Order::Connect(Arc::new(Mutex::new(Some(socket)))));
    }
}
