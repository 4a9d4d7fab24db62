//! An agent in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use postern_proto::audit::event::{Event, Fact};
use postern_proto::gateway::message::{CloseReason, Granted};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::certificates::{Certificates, Issued, issue};
use super::doors::Stand;
use super::{Client, Decider, RECIPIENT, SOON, allow, events, eventually, evidence, open, rules};
use crate::assemble::Core;
use crate::ca::ssh::SshExtension;
use crate::config::Config;
use crate::evidence::Evidence;
use crate::http::Api;
use crate::identity::{DenyHook, EnrollEnd, PeerTrust};
use crate::limits::{Ceilings, Limits};
use crate::pipe::Patience;
use crate::policy::{Decision, Denial, Request};
use crate::rules::NotVerified;
use crate::server::Server;
use crate::session::Lifetimes;
use crate::tls::TlsSettings;

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
        let stand = Stand {
            target: dialled.clone(),
            hold: hold.subscribe(),
            permitted: permitted.clone(),
            approvals: approvals.clone(),
        };
        let core = Core::new(
            evidence.clone(),
            rules,
            stand.doors(),
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

    /// A tunnel of alice's that runs: its client, its target, and what was granted.
    pub(crate) async fn tunnel(&self) -> (Client, TcpStream, Granted) {
        let listener = self.listen().await;
        let mut client = self.connect("alice").await;
        client.open(&open(5432)).await;
        let (target, _) = listener.accept().await.unwrap();
        let granted = client.granted().await;
        (client, target, granted)
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
