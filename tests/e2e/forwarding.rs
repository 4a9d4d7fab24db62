//! `-A`, `-L`, `-R` and `-D`, with our own client and with stock `ssh`: where policy lets them.

use std::net::SocketAddr;
use std::process::Stdio;

use lab::stack::{Lab, Options, login_user};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{PATIENCE, STAYS, eventually, lab_with, postern, run, running};

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

/// Something behind the target, or on this side: answers every connection.
struct Web {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Web {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                // Who asks nothing gets no answer.
                if stream
                    .read(&mut request)
                    .await
                    .is_ok_and(|length| length > 0)
                {
                    let _ = stream.write_all(ANSWER.as_bytes()).await;
                }
            }
        });
        Self {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// What a connection answers to a request; empty when it only ends.
async fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A port that nobody listened at a moment ago.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// The two clients, which must do the same.
#[derive(Clone, Copy, Debug)]
enum Client {
    Own,
    Stock,
}

const CLIENTS: [Client; 2] = [Client::Own, Client::Stock];

struct Bench {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Bench {
    /// With a policy of its own, besides the lab's.
    async fn start(policy: &str) -> Self {
        let lab = lab_with(Options {
            no_database: true,
            policy: Some(policy.to_owned()),
            ..Options::default()
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let told = postern(&lab, &["ssh-config"]).await.status(0);
        std::fs::write(folder.path().join("config"), told.out()).unwrap();
        Self { lab, folder }
    }

    /// `web-1` with these flags, running this command.
    fn command(&self, client: Client, flags: &[&str], command: &str) -> Command {
        match client {
            Client::Own => {
                let mut own = self.lab.postern("alice");
                own.arg("connect")
                    .args(flags)
                    .args(["web-1", "--", command]);
                own
            }
            Client::Stock => {
                let mut ssh = self.lab.command("ssh");
                ssh.arg("-F").arg(self.folder.path().join("config"));
                ssh.args(["-o", "ExitOnForwardFailure=yes"]).args(flags);
                ssh.args([&format!("{}@web-1.postern", login_user()), command]);
                ssh
            }
        }
    }

    /// Runs it until its input ends; returns once it runs.
    async fn running(&self, client: Client, flags: &[&str]) -> Child {
        running(&mut self.command(client, flags, STAYS)).await
    }
}

/// Ends its input and demands a good end.
async fn finish(mut child: Child) {
    drop(child.stdin.take());
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = ended.expect("it ends").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {errors}", output.status);
}

/// Lets alice reach what the target itself resolves.
const ANY_HOST: &str = "@id(\"any-host\")\npermit (principal, action == Action::\"tunnel\", resource)\n\
                        when { context has host && context.host != \"\" };\n";
const NOTHING: &str = "@id(\"no-forwards\")\nforbid (principal, action in [Action::\"tunnel\", \
                       Action::\"reverse\", Action::\"forward_agent\"], resource);\n";

#[tokio::test]
async fn a_local_port_leads_to_what_the_target_reaches() {
    let bench = Bench::start(ANY_HOST).await;
    let web = Web::start().await;
    for client in CLIENTS {
        let port = free_port().await;
        let spec = format!("{port}:127.0.0.1:{}", web.address.port());
        let child = bench.running(client, &["-L", &spec]).await;
        for _ in 0..3 {
            assert_eq!(ask(port).await.unwrap(), ANSWER, "{client:?}");
        }
        finish(child).await;
    }
    bench.lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_socks_proxy_leads_to_what_the_target_reaches() {
    let bench = Bench::start(ANY_HOST).await;
    let web = Web::start().await;
    for client in CLIENTS {
        let port = free_port().await;
        let child = bench.running(client, &["-D", &port.to_string()]).await;
        // The name is the target's to resolve.
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--socks5-hostname", &format!("127.0.0.1:{port}")])
            .arg(format!("http://localhost:{}/", web.address.port()));
        let told = run(&mut curl, b"").await.status(0);
        assert_eq!(told.out(), "hello", "{client:?}");
        finish(child).await;
    }
    bench.lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_of_the_target_leads_here() {
    let bench = Bench::start(ANY_HOST).await;
    let web = Web::start().await;
    for client in CLIENTS {
        let port = free_port().await;
        let spec = format!("{port}:127.0.0.1:{}", web.address.port());
        let child = bench.running(client, &["-R", &spec]).await;
        // The lab's targets share this machine's loopback.
        let answer = eventually("the target listens", async || ask(port).await.ok()).await;
        assert_eq!(answer, ANSWER, "{client:?}");
        finish(child).await;
        eventually("the target listens no more", async || {
            ask(port).await.is_err().then_some(())
        })
        .await;
    }
    bench.lab.stop().await.unwrap();
}

#[tokio::test]
async fn forwards_that_policy_forbids_carry_nothing() {
    let bench = Bench::start(NOTHING).await;
    let web = Web::start().await;
    for client in CLIENTS {
        let port = free_port().await;
        let spec = format!("{port}:127.0.0.1:{}", web.address.port());
        let local = bench.running(client, &["-L", &spec]).await;
        assert_eq!(ask(port).await.unwrap(), "", "{client:?}");
        // The session itself is not hurt.
        finish(local).await;
        // A listener that cannot be had is an error: the person asked for it.
        let mut reverse = bench.command(client, &["-R", &spec], "echo in");
        let told = run(&mut reverse, b"").await.status(255);
        assert_eq!(told.out(), "", "{client:?}");
    }
    bench.lab.stop().await.unwrap();
}

/// An SSH agent with one key.
struct KeyAgent {
    socket: String,
    fingerprint: String,
    _child: Child,
}

impl KeyAgent {
    async fn start(bench: &Bench) -> Self {
        let path = |name: &str| bench.folder.path().join(name).display().to_string();
        let (key, socket) = (path("key"), path("agent"));
        let mut keygen = Command::new("ssh-keygen");
        run(
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &key]),
            b"",
        )
        .await
        .status(0);
        let child = Command::new("ssh-agent")
            .args(["-D", "-a", &socket])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the agent listens", async || {
            std::fs::exists(&socket).unwrap().then_some(())
        })
        .await;
        let mut add = Command::new("ssh-add");
        run(add.args(["-q", &key]).env("SSH_AUTH_SOCK", &socket), b"")
            .await
            .status(0);
        let mut print = Command::new("ssh-keygen");
        let told = run(print.args(["-l", "-f", &key]), b"").await.status(0);
        let fingerprint = told.out().split(' ').nth(1).unwrap().to_owned();
        Self {
            socket,
            fingerprint,
            _child: child,
        }
    }
}

#[tokio::test]
async fn an_agent_is_lent_when_it_is_asked_for_and_not_otherwise() {
    let bench = Bench::start("").await;
    let keys = KeyAgent::start(&bench).await;
    for client in CLIENTS {
        for (flags, lent) in [(&["-A"][..], true), (&[], false)] {
            let mut list = bench.command(client, flags, "ssh-add -l");
            let told = run(list.env("SSH_AUTH_SOCK", &keys.socket), b"").await;
            let shown = told.out().contains(&keys.fingerprint);
            assert_eq!(shown, lent, "{client:?}: {}", told.stderr);
        }
    }
    bench.lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_is_not_lent_where_policy_forbids_it() {
    let bench = Bench::start(NOTHING).await;
    let keys = KeyAgent::start(&bench).await;
    for client in CLIENTS {
        let mut list = bench.command(client, &["-A"], "ssh-add -l; echo done");
        let told = run(list.env("SSH_AUTH_SOCK", &keys.socket), b"").await;
        assert!(!told.out().contains(&keys.fingerprint), "{client:?}");
    }
    bench.lab.stop().await.unwrap();
}
