//! A small AWS and a small agent in this process, which check what they are sent with code of
//! their own, and a context that points at them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{AgentProfile, Environment, KeyringChoice, Settings};
use crate::context::Context;
use crate::output::Printer;

use super::sts::now;

pub(super) mod agent;
pub(super) mod aws;

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/postern/attest";
pub(crate) const SERIAL: &str = "arn:aws:iam::111122223333:mfa/alice";
pub(crate) const KEY_ID: &str = "AKIAALICEALICEALICE0";
/// Nothing that starts like this may ever be found on disk or in a message.
pub(crate) const CANARY: &str = "canary-";

/// A CA of a test's own.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A TLS server for `name`; its certificate ends `seconds` from now.
    pub(crate) fn server(&self, name: &str, alpn: &[u8], seconds: i64) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let end = time::OffsetDateTime::from_unix_timestamp(now() + seconds).unwrap();
        params.not_before = end - time::Duration::days(2);
        params.not_after = end;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Accepts TLS connections on a port of its own until dropped, one after the other.
pub(crate) struct Server {
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start<F>(
        acceptor: TlsAcceptor,
        serve: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    serve(stream).await;
                }
            }
        });
        Self { port, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Locks what a fake knows.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap()
}

/// AWS, an agent and somebody who uses both.
pub(crate) struct World {
    pub(super) aws: aws::Aws,
    pub(super) agent: agent::Agent,
    pub(crate) context: Context,
    pub(crate) folder: tempfile::TempDir,
    /// Of every server here.
    pub(crate) authority: Authority,
    config: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let aws = aws::Aws::start(&authority).await;
        let agent = agent::Agent::start(&authority, "bastion-1", 86_400, &aws).await;
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        std::fs::write(
            folder.path().join("credentials"),
            format!(
                "[alice]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {}\n",
                aws::LONG_TERM_SECRET
            ),
        )
        .unwrap();
        let path = |name: &str| folder.path().join(name).into_os_string();
        let environment: Environment = [
            ("HOME", folder.path().as_os_str().to_owned()),
            ("AWS_CONFIG_FILE", path("config")),
            ("AWS_SHARED_CREDENTIALS_FILE", path("credentials")),
            ("AWS_CA_BUNDLE", path("ca.pem")),
        ]
        .into_iter()
        .collect();
        let profile = AgentProfile {
            id: "bastion-1".parse().unwrap(),
            address: format!("127.0.0.1:{}", agent.port()),
            ca: authority.pem.clone().into_bytes(),
            attestation_role: ROLE.to_owned(),
            log_key: "unused".to_owned(),
            sts_host: None,
        };
        let settings = Settings {
            agents: vec![profile],
            profile: "alice".to_owned(),
            profile_named: false,
            login_user: None,
            via: crate::cli::Via::Auto,
            aliases: BTreeMap::new(),
            keyring: KeyringChoice::Kernel,
            state: folder.path().join("state"),
            audit_store: None,
            auditor_identity: None,
            ssm_sessions: 4,
            evidence: folder.path().join("state/evidence"),
            auditors: Vec::new(),
            mfa_code: None,
        };
        let mut context = Context::new(Printer::plain_json(), settings, environment);
        // Tests may run on somebody's terminal.
        context.may_ask = false;
        let world = Self {
            config: format!(
                "[profile alice]\nregion = eu-west-1\nmfa_serial = {SERIAL}\n\
                 endpoint_url = https://127.0.0.1:{}\n",
                aws.port()
            ),
            aws,
            agent,
            authority,
            context,
            folder,
        };
        world.configure("");
        world
    }

    /// Adds lines to the AWS configuration.
    pub(crate) fn configure(&self, more: &str) {
        let text = format!("{}{more}", self.config);
        std::fs::write(self.folder.path().join("config"), text).unwrap();
    }

    /// The context as another process has it: nothing remembered.
    pub(crate) fn elsewhere(&self) -> Context {
        Context {
            memory: super::Memory::default(),
            ..self.context.clone()
        }
    }

    pub(crate) fn profile(&self) -> &AgentProfile {
        &self.context.agents[0]
    }

    /// Logs in with a code that AWS takes.
    pub(crate) async fn log_in(&self) -> super::Kept {
        let code = self.aws.next_code();
        super::login(&self.context, Some(&code), None)
            .await
            .unwrap()
    }

    /// Every file below the state folder, and its mode.
    pub(crate) fn files(&self) -> BTreeMap<std::path::PathBuf, (u32, Vec<u8>)> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut files = BTreeMap::new();
        let mut folders = vec![self.context.state.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                if path.is_dir() {
                    assert_eq!(mode, 0o700, "{}", path.display());
                    folders.push(path);
                } else {
                    files.insert(path.clone(), (mode, std::fs::read(&path).unwrap()));
                }
            }
        }
        files
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The kernel keeps keys longer than a test lives.
        let store = super::store::Store::new(&self.context);
        store.forget_for_test();
        crate::evidence::forget_for_test(&self.context);
    }
}

/// Codes that the device will show, and those that were burnt.
#[derive(Default)]
pub(crate) struct Device {
    shown: HashSet<String>,
    count: u32,
}

impl Device {
    fn next(&mut self) -> SecretString {
        self.count += 1;
        let code = format!("{:06}", 700_000 + self.count);
        self.shown.insert(code.clone());
        SecretString::from(code)
    }

    /// Once.
    fn takes(&mut self, code: &str) -> bool {
        self.shown.remove(code)
    }
}
