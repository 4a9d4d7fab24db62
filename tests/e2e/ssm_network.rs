//! The way to AWS: through a proxy where the environment names one, and to nobody whom the CA bundle does not
//! vouch for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use lab::account::REGION;
use lab::stack::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Told, lab, run};

const PASSWORD: &str = "canary%20password";
/// `me:canary password`
const CREDENTIALS: &str = "proxy-authorization: basic bwu6y2fuyxj5ihbhc3n3b3jk";
/// Nobody listens there: only the proxy knows where that is.
const NOWHERE: u16 = 1;

/// An HTTP proxy that knows CONNECT alone, demands credentials and remembers who was asked for.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// What is asked of [`NOWHERE`] goes to `aws`.
    async fn start(aws: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                tunnels.spawn(tunnel(stream, aws, Arc::clone(&told)));
            }
        });
        Self {
            address,
            asked,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn url(&self) -> String {
        format!("http://me:{PASSWORD}@{}", self.address)
    }

    /// How often somebody wanted to go there.
    fn count(&self, to: SocketAddr) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|asked| **asked == to.to_string())
            .count()
    }
}

async fn tunnel(mut near: TcpStream, aws: SocketAddr, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        let Ok(byte) = near.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let to = head
        .strip_prefix("connect ")
        .and_then(|rest| rest.split(' ').next());
    let (Some(to), true) = (to, head.contains(CREDENTIALS)) else {
        let answer =
            "HTTP/1.1 407 Who are you\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        let _ = near.write_all(answer.as_bytes()).await;
        return;
    };
    asked.lock().unwrap().push(to.to_owned());
    let place: SocketAddr = to.parse().unwrap();
    let place = if place.port() == NOWHERE { aws } else { place };
    let Ok(mut far) = TcpStream::connect(place).await else {
        let _ = near.write_all(b"HTTP/1.1 502 No\r\n\r\n").await;
        return;
    };
    let _ = near
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await;
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

/// `postern` as alice, whose SSM is where only the proxy finds it.
fn far_away(lab: &Lab) -> Command {
    let mut command = lab.postern("alice");
    let nowhere = SocketAddr::new(lab.network.aws(), NOWHERE);
    command.env("AWS_ENDPOINT_URL_SSM", format!("https://{nowhere}"));
    command
}

async fn connect(command: &mut Command) -> Told {
    let arguments = [
        "-vv",
        "connect",
        "--via",
        "ssm",
        "app-1",
        "--",
        "echo through; exit 5",
    ];
    let told = run(command.args(arguments), b"").await;
    for secret in ["canary", "Y2FuYXJ5"] {
        assert!(!told.stderr.contains(secret), "{}", told.stderr);
    }
    told
}

#[tokio::test]
async fn calls_and_streams_go_through_the_proxy_but_not_to_hosts_of_no_proxy() {
    let lab = lab().await;
    let api = SocketAddr::new(lab.network.aws(), NOWHERE);
    let stream = lab.aws.gateway_address();
    let proxy = Proxy::start(lab.aws.address()).await;

    // Without it there is no way.
    let told = connect(&mut far_away(&lab)).await.status(255);
    told.says(&["error (unreachable)", "hint: check the network"]);

    for name in ["HTTPS_PROXY", "https_proxy"] {
        let before = (proxy.count(api), proxy.count(stream));
        let told = connect(far_away(&lab).env(name, proxy.url()))
            .await
            .status(5);
        assert_eq!(told.out(), "through\n");
        assert!(proxy.count(api) > before.0, "{name}");
        assert_eq!(proxy.count(stream), before.1 + 1, "{name}");
    }
    // STS too: another login.
    let before = proxy.count(api);
    let mut login = lab.postern("bob");
    login
        .arg("login")
        .env("AWS_ENDPOINT_URL_STS", format!("https://{api}"))
        .env("HTTPS_PROXY", proxy.url());
    run(&mut login, b"").await.status(0);
    assert!(proxy.count(api) > before);

    // The same address at another port is another place.
    let streams = proxy.count(stream);
    for (name, direct) in [
        ("NO_PROXY", stream.to_string()),
        ("no_proxy", format!("example.com, {stream}")),
    ] {
        let before = proxy.count(api);
        let mut command = far_away(&lab);
        command.env("HTTPS_PROXY", proxy.url()).env(name, direct);
        connect(&mut command).await.status(5);
        assert!(proxy.count(api) > before);
    }
    assert_eq!(proxy.count(stream), streams);
    let total = proxy.asked.lock().unwrap().len();
    let mut everything = lab.postern("alice");
    everything
        .env("HTTPS_PROXY", proxy.url())
        .env("NO_PROXY", "*");
    connect(&mut everything).await.status(5);
    assert_eq!(proxy.asked.lock().unwrap().len(), total);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_cut_comes_back_through_the_proxy() {
    let lab = lab().await;
    let stream = lab.aws.gateway_address();
    let proxy = Proxy::start(lab.aws.address()).await;
    lab.aws.change_knobs(|knobs| {
        knobs.data_channel_life = Some(std::time::Duration::from_millis(700));
    });
    let mut command = far_away(&lab);
    command.env("HTTPS_PROXY", proxy.url()).args([
        "connect",
        "--via",
        "ssm",
        "app-1",
        "--",
        "seq 1 100000; exit 9",
    ]);
    let told = run(&mut command, b"").await.status(9);
    let expected: String = (1..=100_000).map(|line| format!("{line}\n")).collect();
    assert!(told.out() == expected, "{} bytes", told.stdout.len());
    assert!(proxy.count(stream) > 1, "it came back");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_does_not_help_is_told_with_the_next_step() {
    let lab = lab().await;
    let proxy = Proxy::start(lab.aws.address()).await;
    let stranger = format!("http://me:canary@{}", proxy.address);
    let told = connect(far_away(&lab).env("HTTPS_PROXY", stranger)).await;
    told.status(255).says(&[
        "error (unreachable): AWS SSM at",
        &format!("through the proxy `{}`: ", proxy.address),
        "hint: check HTTPS_PROXY",
    ]);
    // The stream has words of its own.
    let mut command = lab.postern("alice");
    command
        .env("HTTPS_PROXY", format!("http://me:canary@{}", proxy.address))
        .env("NO_PROXY", lab.aws.address().to_string());
    connect(&mut command).await.status(255).says(&[
        "error (unreachable): the session's stream at",
        "wants other credentials (407)",
        "hint: put them into HTTPS_PROXY",
    ]);
    let nobody = format!("http://me:{PASSWORD}@127.0.0.1:{NOWHERE}");
    let told = connect(far_away(&lab).env("HTTPS_PROXY", nobody)).await;
    told.status(255).says(&[
        "through the proxy `127.0.0.1:1`: ",
        "hint: check HTTPS_PROXY",
    ]);
    let mut wrong = lab.postern("alice");
    wrong.env("HTTPS_PROXY", "socks5://me:canary@127.0.0.1:1080");
    connect(&mut wrong)
        .await
        .status(255)
        .says(&["error (usage): HTTPS_PROXY: it is no URL of an HTTP proxy"]);
    assert_eq!(lab.aws.sessions(), Vec::<String>::new());
    lab.stop().await.unwrap();
}

/// `postern` as alice, with no word of any CA but in AWS_CA_BUNDLE.
fn trusting(lab: &Lab, bundle: &str) -> Command {
    let config = lab.folder().join("no-bundle");
    let endpoint = lab.aws.endpoint();
    let text = format!("[profile alice]\nregion = {REGION}\nendpoint_url = {endpoint}\n");
    std::fs::write(&config, text).unwrap();
    let mut command = lab.postern("alice");
    command
        .env("AWS_CONFIG_FILE", config)
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .env("AWS_CA_BUNDLE", bundle);
    command
}

#[tokio::test]
async fn calls_and_streams_trust_the_ca_bundle_and_nothing_else() {
    let lab = lab().await;
    let told = connect(&mut trusting(&lab, &lab.environment["AWS_CA_BUNDLE"])).await;
    assert_eq!(told.status(5).out(), "through\n");
    // The agent's own CA is a good one, and vouches for nobody at AWS.
    let other = lab.environment["POSTERN_AGENT_CA"].clone();
    let told = connect(&mut trusting(&lab, &other)).await.status(255);
    told.says(&[
        "error (unreachable): AWS SSM at",
        "invalid peer certificate: ",
        "hint: set `ca_bundle` in the profile or AWS_CA_BUNDLE",
    ]);
    let mut ls = trusting(&lab, &other);
    run(ls.args(["ls", "--via", "ssm"]), b"").await.status(3);
    assert_eq!(lab.aws.sessions(), Vec::<String>::new());
    lab.stop().await.unwrap();
}
