//! Keys, grants, a genuine sshd, and an agent in front of it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_proto::names::{Assurance, SessionId};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Certificate, PrivateKey};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::{Credential, HostIdentity, HostKeys, SshEnd, Upstream, serve};
use crate::ca::ssh::{SshExtension, SshUserCa, UserRequest};
use crate::evidence::Evidence;
use crate::identity::testing::Says;
use crate::inventory::Target;
use crate::policy::{Action, Grant, Request};
use crate::session::Session;
use crate::testing::evidence;

/// Nothing in these tests takes longer, on a busy machine either.
pub(in crate::ssh) const DEADLINE: Duration = Duration::from_secs(60);

const SSHD: &str = "/usr/sbin/sshd";

/// A key that is always the same for one seed.
pub(in crate::ssh) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

pub(in crate::ssh) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub(in crate::ssh) fn host_certificate(
    subject: &PrivateKey,
    authority: &PrivateKey,
    principals: &[&str],
    until: u64,
) -> Certificate {
    let mut builder = Builder::new(
        vec![1; 16],
        subject.public_key().key_data().clone(),
        0,
        until,
    )
    .unwrap();
    builder.cert_type(CertType::Host).unwrap();
    builder.key_id("test").unwrap();
    for principal in principals {
        builder.valid_principal(*principal).unwrap();
    }
    builder.sign(authority).unwrap()
}

/// Seeds of the keys that take part.
const AGENT_HOST: u8 = 200;
const HOST_CA: u8 = 201;
const USER_CA: u8 = 202;
const LOGIN: u8 = 203;
const SSHD_HOST: u8 = 204;

/// The agent's host key, with a certificate for `web-1.postern`.
pub(in crate::ssh) fn host_identity() -> HostIdentity {
    let key_pair = key(AGENT_HOST);
    let certificate = host_certificate(&key_pair, &key(HOST_CA), &["web-1.postern"], now() + 3600);
    HostIdentity::new(key_pair, Some(certificate)).unwrap()
}

pub(in crate::ssh) fn target(name: &str, port: u16) -> Target {
    Target {
        address: "127.0.0.1".to_owned(),
        ssh_port: port,
        ..(*crate::testing::target(name)).clone()
    }
}

/// A session that was granted to log in as `user`, with an audit store of its own.
pub(in crate::ssh) fn session(user: &str, target: &Target) -> Arc<Session> {
    session_in(evidence(), user, target)
}

fn session_in(evidence: Evidence, user: &str, target: &Target) -> Arc<Session> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let who = Says::default().verified();
    let request = Request {
        who,
        action: Action::Connect,
        target: Some(Arc::new(target.clone())),
        source: Ipv4Addr::LOCALHOST.into(),
        user: Some(user.parse().unwrap()),
        port: None,
        host: None,
        assurance: Assurance::AwsMfa,
        mfa_not_before: 0,
        now: OffsetDateTime::now_utc(),
    };
    let grant = Grant {
        request,
        policies: vec!["test".to_owned()],
    };
    let id = SessionId::from_parts(1, NEXT.fetch_add(1, Ordering::Relaxed).into());
    crate::testing::session(evidence, id, grant)
}

/// Who runs this test, and so may log in at a test's sshd.
pub(in crate::ssh) fn login_user() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder that only its owner can read, as sshd and ssh want it.
pub(in crate::ssh) struct Folder(tempfile::TempDir);

impl Folder {
    pub(in crate::ssh) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(in crate::ssh) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(in crate::ssh) fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

fn private(key: &PrivateKey) -> String {
    key.to_openssh(russh::keys::ssh_key::LineEnding::LF)
        .unwrap()
        .to_string()
}

fn public(key: &PrivateKey) -> String {
    key.public_key().to_openssh().unwrap()
}

/// A genuine sshd behind a listener of ours: one process per connection (`sshd -i`), since sshd
/// itself cannot listen on port 0.
pub(in crate::ssh) struct Sshd {
    pub(in crate::ssh) address: SocketAddr,
    task: JoinHandle<()>,
    /// Its configuration lives as long as it does.
    _folder: Folder,
}

impl Sshd {
    pub(in crate::ssh) async fn start(more: &str) -> Self {
        assert!(
            Path::new(SSHD).exists(),
            "{SSHD} is missing: run tests/setup, which installs what these tests need"
        );
        if login_user() == "root" {
            // What Debian's service file makes at boot; containers have no boot.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let folder = Folder::new();
        let host_key = folder.write("host_key", &private(&key(SSHD_HOST)));
        let authority = folder.write("user_ca.pub", &public(&key(USER_CA)));
        let authorized = folder.write("authorized_keys", &public(&key(LOGIN)));
        let config = format!(
            "HostKey {}\nTrustedUserCAKeys {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             AcceptEnv LANG LC_* POSTERN_*\nSubsystem sftp internal-sftp\nPidFile none\n\
             LogLevel ERROR\nPermitUserEnvironment no\nUseDNS no\n{more}\n",
            host_key.display(),
            authority.display(),
            authorized.display(),
        );
        let config = folder.write("sshd_config", &config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut children = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let tcp = tcp.into_std().unwrap();
                tcp.set_nonblocking(false).unwrap();
                let input: std::os::fd::OwnedFd = tcp.try_clone().unwrap().into();
                let output: std::os::fd::OwnedFd = tcp.into();
                let mut child = Command::new(SSHD)
                    .arg("-i")
                    .arg("-e")
                    .arg("-f")
                    .arg(&config)
                    .stdin(Stdio::from(input))
                    .stdout(Stdio::from(output))
                    .stderr(Stdio::inherit())
                    .kill_on_drop(true)
                    .spawn()
                    .unwrap();
                children.spawn(async move { child.wait().await });
            }
        });
        Self {
            address,
            task,
            _folder: folder,
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the agent logs in with at a test's sshd.
pub(in crate::ssh) fn credential(user: &str) -> Credential {
    credential_for(user, &EVERYTHING)
}

/// The same, permitting less.
fn credential_for(user: &str, extensions: &[SshExtension]) -> Credential {
    let login = key(LOGIN);
    let alice = Says::default().verified();
    let request = UserRequest {
        principal: alice.principal(),
        session: SessionId::from_parts(1, 2),
        user: &user.parse().unwrap(),
        source: None,
        extensions,
        now: now().try_into().unwrap(),
    };
    let authority = SshUserCa::new(key(USER_CA)).unwrap();
    let certificate = authority.certify(login.public_key(), &request).unwrap();
    Credential::certified(login, certificate)
}

const EVERYTHING: [SshExtension; 3] = [
    SshExtension::Pty,
    SshExtension::PortForwarding,
    SshExtension::AgentForwarding,
];

/// An agent that serves every connection to it from one sshd.
pub(in crate::ssh) struct Agent {
    pub(in crate::ssh) address: SocketAddr,
    _sshd: Sshd,
    pub(in crate::ssh) user: String,
    pub(in crate::ssh) folder: Folder,
    sessions: mpsc::UnboundedReceiver<Arc<Session>>,
    ends: mpsc::UnboundedReceiver<SshEnd>,
    task: JoinHandle<()>,
}

impl Agent {
    pub(in crate::ssh) async fn start() -> Self {
        Self::with_sshd(Sshd::start("").await).await
    }

    pub(in crate::ssh) async fn with_sshd(sshd: Sshd) -> Self {
        Self::with(sshd, &EVERYTHING).await
    }

    /// One whose certificates for the sshd permit nothing but `extensions`. Policy allows all.
    pub(in crate::ssh) async fn permitting(extensions: &[SshExtension]) -> Self {
        Self::with(Sshd::start("").await, extensions).await
    }

    async fn with(sshd: Sshd, extensions: &[SshExtension]) -> Self {
        let extensions = extensions.to_vec();
        // One for all sessions, as an agent has it.
        let evidence = evidence();
        let user = login_user();
        let folder = Folder::new();
        folder.write("id", &private(&key(9)));
        folder.write(
            "known_hosts",
            &format!("@cert-authority *.postern {}\n", public(&key(HOST_CA))),
        );
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, ends) = mpsc::unbounded_channel();
        let (started, sessions) = mpsc::unbounded_channel();
        let host_keys = HostKeys::load(folder.path().join("host_keys.json"), &[]).unwrap();
        let (upstream_address, login) = (sshd.address, user.clone());
        let task = tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (ended, started) = (ended.clone(), started.clone());
                let (host_keys, login) = (host_keys.clone(), login.clone());
                let (evidence, credential) =
                    (evidence.clone(), credential_for(&login, &extensions));
                running.spawn(async move {
                    let target = target("web-1", upstream_address.port());
                    let session = session_in(evidence, &login, &target);
                    let address = upstream_address;
                    let upstream =
                        connect_with(address, &target, &login, credential, &host_keys).await;
                    started.send(session.clone()).unwrap();
                    let end = serve(stream, upstream, session, host_identity(), false).await;
                    ended.send(end).ok();
                });
            }
        });
        Self {
            address,
            _sshd: sshd,
            user,
            folder,
            sessions,
            ends,
            task,
        }
    }

    /// The session of the next connection.
    pub(in crate::ssh) async fn session(&mut self) -> Arc<Session> {
        within(self.sessions.recv()).await.unwrap()
    }

    /// How the next session to end ended.
    pub(in crate::ssh) async fn end(&mut self) -> SshEnd {
        within(self.ends.recv()).await.unwrap()
    }

    /// Options that make a stock client take this agent for `web-1.postern`.
    pub(in crate::ssh) fn options(&self) -> Vec<String> {
        let known = self.folder.path().join("known_hosts");
        [
            format!("UserKnownHostsFile={}", known.display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "HostKeyAlias=web-1.postern".to_owned(),
            "HostName=127.0.0.1".to_owned(),
            format!("Port={}", self.address.port()),
            format!("User={}", self.user),
            "LogLevel=ERROR".to_owned(),
            "BatchMode=yes".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .chain(["-F".to_owned(), "none".to_owned()])
        .collect()
    }

    /// A stock client; its name for the host is `web-1`.
    pub(in crate::ssh) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(self.options())
            .kill_on_drop(true)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null());
        command
    }

    /// `ssh web-1 COMMAND`.
    pub(in crate::ssh) async fn ssh(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("ssh");
        command.arg("web-1").args(arguments);
        run(command).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(in crate::ssh) async fn connect(
    address: SocketAddr,
    target: &Target,
    user: &str,
    host_keys: &HostKeys,
) -> Upstream {
    connect_with(address, target, user, credential(user), host_keys).await
}

async fn connect_with(
    address: SocketAddr,
    target: &Target,
    user: &str,
    credential: Credential,
    host_keys: &HostKeys,
) -> Upstream {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (upstream, _) =
        Upstream::connect(tcp, target, &user.parse().unwrap(), credential, host_keys)
            .await
            .unwrap();
    upstream
}

/// Runs a program to its end.
pub(in crate::ssh) async fn run(mut command: Command) -> Output {
    let name = format!("{:?}", command.as_std().get_program());
    within(command.output())
        .await
        .unwrap_or_else(|error| panic!("{name} does not run ({error}): run tests/setup"))
}

/// Waits, but not for ever.
pub(in crate::ssh) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("it took longer than a minute")
}

/// What a program printed; its errors when it failed.
pub(in crate::ssh) fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Looks again until it is so, but not for ever.
pub(in crate::ssh) async fn eventually(mut so: impl FnMut() -> bool) {
    within(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Bytes that do not repeat.
pub(in crate::ssh) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}
