//! An agent that does as a test scripts it, and tells what it was asked.

mod serve;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use postern_proto::gateway::message::{Close, CloseReason, Denied, Open};
use postern_proto::gateway::{ALPN_HTTP, ALPN_PIPE};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{FakeLog, Pki};
use crate::config::AgentProfile;
use crate::gateway::{Gateway, GatewayError, Identity};
use crate::identity::{ClientCertificate, IdentityError};
use serve::serve;

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
