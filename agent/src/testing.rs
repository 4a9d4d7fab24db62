//! For tests: an agent in this process, and a client that can also misbehave.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use postern_proto::audit::event::{Access, Event, EventTarget, Fact};
use postern_proto::audit::layout::{StorePath, split_entries};
use postern_proto::audit::ocsf::decode;
use postern_proto::gateway::frame::{self, Decoder, FrameKind, HEADER, Piece};
use postern_proto::gateway::message::{
    Close, CloseReason, Denied, DenyCode, Granted, HostKeyCheck, HostKeySeen, JOIN_EXPORTER, Open,
    OpenKind, Witness,
};
use postern_proto::gateway::resume::{Claim, Resume, Resumed};
use postern_proto::names::{AgentId, SessionId};
use rcgen::KeyPair;
use rcgen::PublicKeyData as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::assemble::Core;
use crate::ca::ClientSubject;
use crate::ca::client::ClientCa;
use crate::ca::ssh::SshExtension;
use crate::ca::x509::{Authority, Purpose};
use crate::config::Config;
use crate::doors::{Dialled, Doors, Fresh, SshTarget};
use crate::end::SshEnd;
use crate::evidence::{self, Evidence};
use crate::http::Api;
use crate::identity::testing::Says;
use crate::identity::{DenyHook, EnrollEnd, PeerTrust, VerifiedPrincipal};
use crate::inventory::{Target, TargetLogin};
use crate::limits::{Ceilings, Limits};
use crate::pipe::Patience;
use crate::policy::{Decision, Denial, Explanation, Grant, Request, Verdict};
use crate::refusal::NotReached;
use crate::rules::{NotFound, NotVerified, Rules};
use crate::server::Server;
use crate::session::{Beginning, Lifetimes, Session};
use crate::tls::TlsSettings;

/// How long a test waits for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

thread_local! {
    /// Gone with the test's thread.
    static FOLDERS: RefCell<Vec<tempfile::TempDir>> = const { RefCell::new(Vec::new()) };
}

/// A real store in a folder that goes with the test.
pub(crate) fn evidence() -> Evidence {
    let folder = tempfile::tempdir().unwrap();
    let agent: AgentId = "bastion-1".parse().unwrap();
    let (key, _) = crate::ca::log::generate(&agent).unwrap();
    let mut settings = evidence::Settings::new(
        folder.path().join("evidence"),
        agent,
        key.as_str().into(),
        vec![RECIPIENT.to_owned()],
    );
    // Tests are about what happens, not about how fast this disk is.
    settings.deadline = Duration::from_secs(30);
    settings.free_floor = 0;
    let (evidence, _) = Evidence::open(settings).unwrap();
    FOLDERS.with_borrow_mut(|folders| folders.push(folder));
    evidence
}

/// A session whose channels are all allowed, for tests of the relays.
pub(crate) fn session(evidence: Evidence, id: SessionId, grant: Grant) -> Arc<Session> {
    let target = grant
        .request()
        .target
        .clone()
        .unwrap_or_else(|| target("web-1"));
    let user = grant.request().user.clone();
    let changes = watch::Sender::new(0);
    Session::new(Beginning {
        id,
        actor: grant.request().who.actor(),
        access: match user {
            Some(user) => Access::Ssh { user },
            None => Access::Tunnel {
                host: None,
                port: 1,
            },
        },
        target: EventTarget {
            id: target.id.clone(),
            name: target.name.clone(),
            address: None,
        },
        source: (Ipv4Addr::LOCALHOST, 1).into(),
        ends_at: OffsetDateTime::now_utc() + Duration::from_secs(3600),
        evidence,
        rules: rules(
            Arc::new(|_| unreachable!("the session is granted")),
            Arc::new(allow),
            &changes,
        ),
        witness: Witness {
            checkpoint: String::new(),
            leaf: 0,
            leaf_hash: String::new(),
            proof: vec![],
            consistency: vec![],
        },
        secret: zeroize::Zeroizing::new([0; 32]),
        place: None,
        grant,
    })
}

type Verify =
    dyn Fn(&CertificateDer<'static>) -> Result<VerifiedPrincipal, NotVerified> + Send + Sync;

/// What the core asks, with an inventory of two targets.
fn rules(verify: Arc<Verify>, decide: Arc<Decider>, changes: &watch::Sender<u64>) -> Rules {
    Rules {
        verify,
        admit: Arc::new(|_, _| Ok(())),
        possible: {
            let decide = decide.clone();
            Arc::new(move |request| matches!(decide(request), Decision::Allow(_)))
        },
        decide,
        lookup: Arc::new(|name| match name.as_str() {
            "web-1" | "db-1" => Ok(target(name.as_str())),
            "web" => Err(NotFound::Ambiguous(vec!["web-1".into(), "web-2".into()])),
            _ => Err(NotFound::Unknown {
                hint: "postern ls".to_owned(),
            }),
        }),
        target: Arc::new(|id| Some(target(id.as_str()))),
        is_ssh_port: Arc::new(|port| port == 2222),
        list: Arc::new(|_| vec![target("web-1")]),
        inventory_trouble: Arc::new(|| None),
        explain: Arc::new(|request| Explanation {
            verdict: Verdict::Allow,
            action: request.action.to_string(),
            principal: request.who.principal().key(),
            target: None,
            policies: vec![],
            message: None,
            hint: None,
            permits: vec![],
            users: vec![],
            ports: vec![5432],
            digest: String::new(),
        }),
        login_users: Arc::new(|_| vec!["ubuntu".to_owned()]),
        changes: changes.subscribe(),
    }
}

/// All events of a store, as they stand in the log.
pub(crate) fn events(evidence: &Evidence) -> Vec<Event> {
    let checkpoint = evidence.checkpoint();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let store = evidence.reader();
    let mut events = Vec::new();
    for (index, width) in StorePath::bundles(size) {
        let mut bundle = Vec::new();
        let path = StorePath::Entries { index, width };
        let Some(mut file) = store.file(path).unwrap() else {
            // Grown meanwhile: the next look sees it.
            return events;
        };
        file.read_to_end(&mut bundle).unwrap();
        let (entries, _) = split_entries(&bundle);
        events.extend(
            entries
                .iter()
                .map(|entry| decode(entry, &[]).unwrap().event),
        );
    }
    events
}

const RECIPIENT: &str = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg";

/// Everything that a test may turn.
pub(crate) struct Knobs {
    pub(crate) ceilings: Ceilings,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) drain: Duration,
    pub(crate) patience: Patience,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            ceilings: Ceilings {
                connections: 1000,
                unauthenticated: 64,
                unauthenticated_per_address: 32,
                enrollments: 8,
                enrollments_per_address: 4,
                pipes_per_principal: 100,
                sessions_per_principal: 50,
            },
            lifetimes: Lifetimes {
                grant: Duration::from_secs(3600),
                detach: Duration::from_secs(3600),
                linger: Duration::ZERO,
            },
            drain: Duration::from_millis(100),
            patience: Patience {
                farewell: Duration::from_secs(1),
                ..Patience::default()
            },
        }
    }
}

impl Knobs {
    /// An agent that keeps no pipe without a connection.
    pub(crate) fn without_resume() -> Self {
        let mut knobs = Self::default();
        knobs.lifetimes.detach = Duration::ZERO;
        knobs
    }
}

type Decider = dyn Fn(&Request) -> Decision + Send + Sync;

/// An agent that runs.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) core: Arc<Core>,
    pub(crate) evidence: Evidence,
    pub(crate) policy: Arc<Mutex<Arc<Decider>>>,
    /// Where targets live: what the dialler connects to.
    pub(crate) target: Arc<Mutex<SocketAddr>>,
    pub(crate) approvals: Arc<Mutex<Vec<[u8; 32]>>>,
    /// What each login at a target was to permit.
    pub(crate) permitted: Arc<Mutex<Vec<Vec<SshExtension>>>>,
    /// While true, dialling waits.
    pub(crate) hold: watch::Sender<bool>,
    /// Key of a principal whose certificates count no more.
    pub(crate) barred: Arc<Mutex<Option<String>>>,
    pub(crate) changes: watch::Sender<u64>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    certificates: Certificates,
}

struct Certificates {
    root: CertificateDer<'static>,
    clients: HashMap<&'static str, (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

pub(crate) fn allow(request: &Request) -> Decision {
    Decision::Allow(Grant {
        request: request.clone(),
        policies: vec!["test".to_owned()],
    })
}

pub(crate) fn deny(message: &str) -> Decision {
    Decision::Deny(Denial {
        policies: vec!["no".to_owned()],
        message: message.to_owned(),
        hint: None,
    })
}

pub(crate) fn principal(name: &str) -> VerifiedPrincipal {
    Says {
        name,
        user_id: &format!("AIDA{:A<16}", name.to_uppercase()),
        ..Says::default()
    }
    .verified()
}

pub(crate) fn target(name: &str) -> Arc<Target> {
    Arc::new(Target {
        id: name.parse().unwrap(),
        name: name.to_owned(),
        tags: BTreeMap::new(),
        account: None,
        region: None,
        vpc: None,
        zone: None,
        platform: "linux".to_owned(),
        address: "10.0.0.1".to_owned(),
        aliases: vec![],
        ssh_port: 22,
        login: TargetLogin::Certificate,
    })
}

/// As `init` makes them: a server CA, this agent's client CA, and what they sign.
fn issue() -> Issued {
    let agent = "bastion-1".parse().unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let servers = Authority::root(Purpose::Server, "servers", now).unwrap();
    let (server, server_key) = servers.server_certificate(&agent, now).unwrap();
    let clients = Authority::root(Purpose::Client, "clients", now).unwrap();
    let ca = ClientCa::new(clients.intermediate(&agent, now).unwrap());
    let certify = |name: &'static str| {
        let key = KeyPair::generate().unwrap();
        let who = principal(name);
        let subject = ClientSubject {
            principal: who.principal().clone(),
            assurance: who.assurance(),
            mfa_not_before: now - 60,
            claimed_end: None,
            claimed_serial: None,
            aws_request_ids: vec!["login".to_owned()],
        };
        let spki = key.subject_public_key_info();
        let issued = ca.issue(&subject, &spki, now, now + 3600).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (name, (issued.chain.to_vec(), key))
    };
    let clients = ["alice", "bobby"].map(certify).into();
    Issued {
        server: (
            server,
            PrivateKeyDer::from_pem_slice(server_key.as_bytes()).unwrap(),
        ),
        own: ca.certificate().clone(),
        certificates: Certificates {
            root: servers.certificate().clone(),
            clients,
        },
    }
}

struct Issued {
    server: (CertificateDer<'static>, PrivateKeyDer<'static>),
    own: CertificateDer<'static>,
    certificates: Certificates,
}

fn config() -> Config {
    let text = "id = \"bastion-1\"\n\
        [sts]\nregion = \"eu-west-1\"\n\
        [attestation]\nrole = \"arn:aws:iam::111122223333:role/postern-attest\"\n\
        [evidence]\nrecipients = [\"RECIPIENT\"]\n";
    Config::parse(
        &text.replace("RECIPIENT", RECIPIENT),
        std::path::Path::new("/nowhere/agent.toml"),
    )
    .unwrap()
}

fn roots(root: &CertificateDer<'static>) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    Arc::new(roots)
}

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::with(Knobs::default()).await
    }

    pub(crate) async fn with(knobs: Knobs) -> Self {
        let Issued {
            server,
            own,
            certificates,
        } = issue();
        let barred: Arc<Mutex<Option<String>>> = Arc::default();
        let hook: DenyHook = {
            let barred = barred.clone();
            Arc::new(move |principal, _| {
                let barred = barred.lock().unwrap();
                let hit = barred.as_ref() == Some(&principal.key());
                hit.then(|| "this user is denied".to_owned())
            })
        };
        let trust = Arc::new(PeerTrust::load(&config(), &own, Some(hook)).unwrap());
        let verify = {
            let trust = trust.clone();
            Arc::new(move |certificate: &CertificateDer<'static>| {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                trust
                    .verify_certificate(certificate, now)
                    .map_err(|fault| NotVerified {
                        hint: fault.hint().to_owned(),
                        message: fault.to_string(),
                    })
            })
        };
        let policy: Arc<Mutex<Arc<Decider>>> = Arc::new(Mutex::new(Arc::new(allow)));
        let evidence = evidence();
        let changes = watch::Sender::new(0);
        let dialled = Arc::new(Mutex::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
        let approvals: Arc<Mutex<Vec<[u8; 32]>>> = Arc::default();
        let permitted: Arc<Mutex<Vec<Vec<SshExtension>>>> = Arc::default();
        let decide = {
            let policy = policy.clone();
            Arc::new(move |request: &Request| {
                let decide = policy.lock().unwrap().clone();
                decide(request)
            })
        };
        let mut rules = rules(verify, decide, &changes);
        rules.admit = {
            let trust = Arc::clone(&trust);
            Arc::new(
                move |who, _| match trust.denies(who.principal(), who.serial()) {
                    Some(message) => Err(Denial {
                        policies: vec![],
                        message,
                        hint: None,
                    }),
                    None => Ok(()),
                },
            )
        };
        let hold = watch::Sender::new(false);
        let doors = Doors {
            dial: {
                let dialled = dialled.clone();
                let held = hold.subscribe();
                Arc::new(move |_, _, _| {
                    let address = *dialled.lock().unwrap();
                    let mut held = held.clone();
                    async move {
                        held.wait_for(|held| !held).await.unwrap();
                        let stream = TcpStream::connect(address).await;
                        stream
                            .map(|stream| Dialled { stream, address })
                            .map_err(|error| NotReached {
                                code: DenyCode::TargetUnreachable,
                                message: error.to_string(),
                                hint: None,
                            })
                    }
                    .boxed()
                })
            },
            ssh: {
                let permitted = permitted.clone();
                Arc::new(move |tcp, login| {
                    permitted.lock().unwrap().push(login.extensions);
                    async move {
                        Ok(SshTarget {
                            host_key: HostKeySeen {
                                fingerprint: "SHA256:x".to_owned(),
                                check: HostKeyCheck::Pinned,
                            },
                            serve: Box::new(move |mut near, _| {
                                async move {
                                    let mut tcp = tcp;
                                    // Stands in for an SSH server: what the target says, then status 7.
                                    let copied = tokio::io::copy(&mut tcp, &mut near).await;
                                    SshEnd {
                                        exit_status: Some(7),
                                        up: 0,
                                        down: copied.unwrap_or(0),
                                        reason: CloseReason::Done,
                                        message: None,
                                    }
                                }
                                .boxed()
                            }),
                        })
                    }
                    .boxed()
                })
            },
            approval: {
                let approvals = approvals.clone();
                Arc::new(move |_, open, _| {
                    let mut approvals = approvals.lock().unwrap();
                    let index = approvals.iter().position(|approved| approved == open)?;
                    approvals.remove(index);
                    Some(Fresh {
                        given_at: 1000,
                        aws_request_ids: vec!["fresh".to_owned()],
                    })
                })
            },
            troubles: vec![],
            ssh_host_ca: Some("ssh-ed25519 AAAA".to_owned()),
        };
        let core = Core::new(
            evidence.clone(),
            rules,
            doors,
            Limits::new(knobs.ceilings),
            knobs.lifetimes,
            knobs.patience,
        );

        let tls = Arc::new(TlsSettings::new(&[server.0], &server.1, trust).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server {
            core: core.clone(),
            tls,
            enroll: Arc::new(|_, _| {
                // Whatever comes is cut off at once.
                async { EnrollEnd::Broken(std::io::ErrorKind::UnexpectedEof.into()) }.boxed()
            }),
            http: Api::new(core.clone()),
            drain: knobs.drain,
        };
        let serving = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self {
            address,
            core,
            evidence,
            policy,
            target: dialled,
            approvals,
            permitted,
            barred,
            hold,
            changes,
            shutdown,
            serving,
            certificates,
        }
    }

    /// Replaces the policy and says so.
    pub(crate) fn decide(&self, decide: impl Fn(&Request) -> Decision + Send + Sync + 'static) {
        *self.policy.lock().unwrap() = Arc::new(decide);
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) async fn connect(&self, name: &str) -> Client {
        Client::new(self.tls(name, b"postern/1").await.unwrap())
    }

    pub(crate) async fn tls(
        &self,
        name: &str,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let (chain, key) = &self.certificates.clients[name];
        let mut config = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots(&self.certificates.root))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("bastion-1").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }

    /// A listener that the dialler reaches from now on.
    pub(crate) async fn listen(&self) -> TcpListener {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        *self.target.lock().unwrap() = listener.local_addr().unwrap();
        listener
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        events(&self.evidence)
    }

    /// Waits until an event is there that `wanted` likes.
    pub(crate) async fn event<T>(&self, wanted: impl Fn(&Fact) -> Option<T>) -> T {
        eventually(|| self.events().iter().find_map(|event| wanted(&event.fact))).await
    }

    pub(crate) async fn closed(&self) -> (CloseReason, Option<String>, u64, u64) {
        self.event(|fact| match fact {
            Fact::SessionClosed {
                reason,
                message,
                up,
                down,
                ..
            } => Some((*reason, message.clone(), *up, *down)),
            _ => None,
        })
        .await
    }

    pub(crate) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn stopped(self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.serving)
            .await
            .expect("the agent drains")
            .unwrap();
    }
}

/// Looks until something is there, for as long as a slow machine may need.
pub(crate) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, search)
        .await
        .expect("it happens in time")
}

pub(crate) fn open(port: u16) -> Open {
    Open {
        target: "web-1".parse().unwrap(),
        kind: OpenKind::Tunnel { host: None, port },
        join: None,
        approved: None,
        known_size: None,
        client: "test".to_owned(),
    }
}

pub(crate) fn framed(body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::zeroed(HEADER);
    buffer.extend_from_slice(body);
    frame::data(buffer).unwrap()
}

/// The client's side of a pipe, frame by frame.
pub(crate) struct Client {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) decoder: Decoder,
    pub(crate) received: BytesMut,
}

impl Client {
    fn new(stream: TlsStream<TcpStream>) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            received: BytesMut::new(),
        }
    }

    pub(crate) fn exporter(&self) -> [u8; 32] {
        let connection = self.stream.get_ref().1;
        connection
            .export_keying_material([0; 32], JOIN_EXPORTER, None)
            .unwrap()
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn control(&mut self, kind: FrameKind, body: &[u8]) {
        self.send(&frame::control(kind, body).unwrap()).await;
    }

    pub(crate) async fn open(&mut self, open: &Open) {
        let body = serde_json::to_vec(open).unwrap();
        self.control(FrameKind::Open, &body).await;
    }

    /// Asks to continue the pipe of `claim`, of which `received` bytes are here.
    pub(crate) async fn resume(&mut self, claim: &mut Claim, received: u64) -> Resume {
        let resume = claim.resume(&self.exporter(), received);
        self.ask(&resume).await;
        resume
    }

    pub(crate) async fn ask(&mut self, resume: &Resume) {
        let body = serde_json::to_vec(resume).unwrap();
        self.control(FrameKind::Resume, &body).await;
    }

    /// The agent's yes: how many bytes it has got.
    pub(crate) async fn resumed(&mut self, claim: &mut Claim) -> u64 {
        let received = match self.next().await {
            Some(Piece::Frame(FrameKind::Resumed, body)) => {
                serde_json::from_slice::<Resumed>(&body).unwrap().received
            }
            other => panic!("not resumed: {other:?}"),
        };
        claim.accepted(&self.exporter());
        received
    }

    /// Cuts the connection, as a network does.
    pub(crate) fn cut(self) {
        let (tcp, _) = self.stream.into_inner();
        rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    }

    /// The next piece; `None` at the end of the connection, however it came.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.decoder.next(&mut self.received).unwrap() {
                return Some(piece);
            }
            let read = self.stream.read_buf(&mut self.received);
            match tokio::time::timeout(SOON, read).await.expect("an answer") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame of `kind`, whatever comes before.
    pub(crate) async fn frame(&mut self, kind: FrameKind) -> Bytes {
        loop {
            match self.next().await {
                Some(Piece::Frame(found, body)) if found == kind => return body,
                Some(_) => {}
                None => panic!("the connection ended before {kind:?}"),
            }
        }
    }

    pub(crate) async fn granted(&mut self) -> Granted {
        match self.next().await {
            Some(Piece::Frame(FrameKind::Granted, body)) => serde_json::from_slice(&body).unwrap(),
            other => panic!("not granted: {other:?}"),
        }
    }

    pub(crate) async fn denied(&mut self) -> Denied {
        match self.next().await {
            Some(Piece::Frame(FrameKind::Denied, body)) => serde_json::from_slice(&body).unwrap(),
            other => panic!("not denied: {other:?}"),
        }
    }

    pub(crate) async fn closed(&mut self) -> Close {
        serde_json::from_slice(&self.frame(FrameKind::Close).await).unwrap()
    }

    pub(crate) async fn data(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < length {
            match self.next().await {
                Some(Piece::Data(bytes)) => data.extend_from_slice(&bytes),
                Some(Piece::Frame(FrameKind::Ack | FrameKind::Pong, _)) => {}
                other => panic!("{} bytes of data, then {other:?}", data.len()),
            }
        }
        data
    }

    pub(crate) async fn close(&mut self, reason: CloseReason) {
        let close = Close {
            reason,
            message: None,
            exit_status: None,
            sent: 0,
            received: 0,
            evidence: None,
        };
        let body = serde_json::to_vec(&close).unwrap();
        self.control(FrameKind::Close, &body).await;
    }
}
