//! A lab, and `aws ssm start-session` in it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use lab::account::HOSTS;
use lab::stack::{Lab, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::aws::python;
use crate::harness::{PATIENCE, Told, run};

/// A running lab with the plugin in its `PATH`.
pub(crate) struct Peer {
    pub(crate) lab: Lab,
    folder: tempfile::TempDir,
    /// alice's MFA session, as variables.
    keys: BTreeMap<&'static str, String>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        crate::watchdog::watch();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = Options {
            no_database: true,
            ..Options::default()
        };
        let lab = Lab::start(options).await.unwrap();
        // What takes a second with the genuine agent is tested once; elsewhere it is only slow.
        lab.aws
            .change_knobs(|knobs| knobs.prompt_delay = std::time::Duration::ZERO);
        let folder = tempfile::tempdir().unwrap();
        let plugin = folder.path().join("session-manager-plugin");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/ssm/plugin");
        let script = format!(
            "#!/bin/sh\nexec {} -B {source} \"$@\"\n",
            python().display()
        );
        std::fs::write(&plugin, script).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut peer = Self {
            lab,
            folder,
            keys: BTreeMap::new(),
        };
        peer.keys = peer.login("alice").await;
        peer
    }

    /// The variables of an MFA session.
    pub(crate) async fn login(&self, user: &str) -> BTreeMap<&'static str, String> {
        let serial = self.lab.aws.mfa_serial(user);
        let code = self.lab.aws.unused_code(user).unwrap();
        let mut command = self.aws(&[
            "sts",
            "get-session-token",
            "--serial-number",
            &serial,
            "--token-code",
            &code,
        ]);
        command.env("AWS_PROFILE", user);
        for name in self.keys.keys() {
            command.env_remove(name);
        }
        let told = run(&mut command, b"").await.status(0);
        let said: Value = serde_json::from_slice(&told.stdout).unwrap();
        [
            ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
            ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
            ("AWS_SESSION_TOKEN", "SessionToken"),
        ]
        .into_iter()
        .map(|(name, key)| (name, said["Credentials"][key].as_str().unwrap().to_owned()))
        .collect()
    }

    /// `aws ARGUMENTS` as alice with MFA, with nothing of ours in its environment but the lab's.
    pub(crate) fn aws(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(python());
        command
            .args(["-m", "awscli", "--output", "json"])
            .args(arguments)
            .env_clear()
            .envs(&self.lab.environment)
            .env("HOME", self.folder.path())
            .envs(&self.keys)
            .kill_on_drop(true);
        let path = &self.lab.environment["PATH"];
        command.env("PATH", format!("{}:{path}", self.folder.path().display()));
        if !self.keys.is_empty() {
            command.env_remove("AWS_PROFILE");
        }
        command
    }

    /// `aws ssm start-session` on a host.
    pub(crate) fn session(
        &self,
        host: &str,
        document: Option<&str>,
        parameters: &Value,
    ) -> Command {
        let id = HOSTS.iter().find(|known| known.name == host).unwrap().id;
        let mut command = self.aws(&["ssm", "start-session", "--target", id]);
        if let Some(document) = document {
            command.args(["--document-name", document]);
            command.args(["--parameters", &parameters.to_string()]);
        }
        command
    }

    /// A command through one of the command documents, without input.
    pub(crate) async fn command(&self, document: &str, line: &str) -> Told {
        let parameters = json!({"command": [line]});
        run(&mut self.session("app-1", Some(document), &parameters), b"").await
    }

    /// A session that goes on: `expect` and `send`.
    pub(crate) fn talk(&self, command: &mut Command) -> Talk {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Talk {
            input: child.stdin.take().unwrap(),
            output: child.stdout.take().unwrap(),
            child,
            heard: Vec::new(),
        }
    }

    /// A forward to a port of app-1, and where it listens.
    pub(crate) async fn forward(&self, port: u16) -> (Talk, u16) {
        let parameters = json!({"portNumber": [port.to_string()], "localPortNumber": ["0"]});
        let document = Some("AWS-StartPortForwardingSession");
        let mut talk = self.talk(&mut self.session("app-1", document, &parameters));
        let local = talk.local_port().await;
        (talk, local)
    }

    /// A TCP server on app-1 that sends back what it gets; its port.
    pub(crate) async fn echo(&self) -> u16 {
        let listener = TcpListener::bind((self.lab.network.app(), 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        // It ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        port
    }

    /// Demands that no end of any data channel broke the protocol.
    #[track_caller]
    pub(crate) fn assert_no_complaints(&self) {
        assert_eq!(self.lab.aws.complaints(), Vec::<String>::new());
    }
}

/// A running session.
pub(crate) struct Talk {
    pub(crate) child: Child,
    input: ChildStdin,
    output: ChildStdout,
    heard: Vec<u8>,
}

impl Talk {
    /// Waits until stdout has shown this; answers what it was with everything before it.
    pub(crate) async fn expect(&mut self, text: &str) -> String {
        let wanted = async {
            loop {
                let all = String::from_utf8_lossy(&self.heard).into_owned();
                if let Some(place) = all.find(text) {
                    let (seen, rest) = all.split_at(place + text.len());
                    self.heard = rest.as_bytes().to_vec();
                    return Ok(seen.to_owned());
                }
                let mut buffer = [0; 4096];
                match self.output.read(&mut buffer).await {
                    Ok(length @ 1..) => self.heard.extend_from_slice(&buffer[..length]),
                    _ => return Err(all),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wanted).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(all)) => {
                let mut errors = String::new();
                if let Some(stderr) = &mut self.child.stderr {
                    let _ = stderr.read_to_string(&mut errors).await;
                }
                panic!("no `{text}` in: {all}\nstderr: {errors}")
            }
            Err(_) => panic!(
                "never `{text}` after {}",
                String::from_utf8_lossy(&self.heard)
            ),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).await.unwrap();
    }

    /// The port that it says.
    pub(crate) async fn local_port(&mut self) -> u16 {
        self.expect("Port ").await;
        let port = self.expect(" opened").await;
        self.expect("Waiting for connections...").await;
        port.split(' ').next().unwrap().parse().unwrap()
    }

    /// The id of its session.
    pub(crate) async fn session_id(&mut self) -> String {
        self.expect("SessionId: ").await;
        self.expect("\n").await.trim().to_owned()
    }

    /// Waits for its end: everything else that it said.
    pub(crate) async fn end(mut self) -> Told {
        let mut stdout = std::mem::take(&mut self.heard);
        let mut stderr = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        let all = async {
            let (out, err) = tokio::join!(
                self.output.read_to_end(&mut stdout),
                errors.read_to_string(&mut stderr)
            );
            out.unwrap();
            err.unwrap();
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(PATIENCE, all).await.expect("it ends");
        Told {
            status: status.code(),
            stdout,
            stderr,
        }
    }
}

/// Sends this and demands it back.
pub(crate) async fn echoes(port: u16, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    let exchange = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut from, mut to) = stream.into_split();
        let mut back = vec![0; bytes.len()];
        tokio::try_join!(to.write_all(bytes), from.read_exact(&mut back))?;
        std::io::Result::Ok(back)
    };
    let back = tokio::time::timeout(PATIENCE, exchange).await;
    let back = back.expect("an echo in time").unwrap();
    assert!(back == bytes, "{} bytes came back changed", bytes.len());
}
