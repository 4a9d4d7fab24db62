//! Stories inside a lab: commands as a person types them, and what they print.

use std::path::Path;
use std::process::{Output, Stdio};
use std::str::FromStr;
use std::time::Duration;

use lab::stack::{Lab, Options};
use lab::targets::Flavor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::watchdog;

/// No single command of a story takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a command printed, and how it ended.
pub(crate) struct Told {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Told {
    /// stdout as text.
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Demands this exit status.
    #[track_caller]
    pub(crate) fn status(self, expected: i32) -> Self {
        assert_eq!(
            self.status,
            Some(expected),
            "stdout: {}\nstderr: {}",
            self.out(),
            self.stderr
        );
        self
    }

    /// Demands that stderr holds all of these.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no `{part}` in: {}",
                self.stderr
            );
        }
        self
    }
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A lab without a database, with alice logged in.
pub(crate) async fn lab() -> Lab {
    lab_with(Options {
        no_database: true,
        ..Options::default()
    })
    .await
}

/// A lab of one's own, with alice logged in.
pub(crate) async fn lab_with(options: Options) -> Lab {
    watchdog::watch();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let lab = Lab::start(options).await.unwrap();
    // What is tested is what people use: a stand-in would prove nothing.
    let missing = "is not installed; hint: run tests/setup";
    assert_eq!(lab.web, Flavor::Genuine, "sshd {missing}");
    if let Some(database) = &lab.database {
        assert_eq!(database.flavor, Flavor::Genuine, "PostgreSQL {missing}");
    }
    postern(&lab, &["login"]).await.status(0);
    lab
}

/// `postern ARGUMENTS` as alice, without a terminal or input.
pub(crate) async fn postern(lab: &Lab, arguments: &[&str]) -> Told {
    postern_as(lab, "alice", arguments).await
}

/// The same as somebody else.
pub(crate) async fn postern_as(lab: &Lab, user: &str, arguments: &[&str]) -> Told {
    run(lab.postern(user).args(arguments), b"").await
}

/// Runs a command with this input to its end.
pub(crate) async fn run(command: &mut Command, input: &[u8]) -> Told {
    run_within(PATIENCE, command, input).await
}

/// The same, for one that may take so long.
pub(crate) async fn run_within(patience: Duration, command: &mut Command, input: &[u8]) -> Told {
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // A command that ends early reads no further: that is its right.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    tokio::time::timeout(patience, both)
        .await
        .expect("the command ends")
        .unwrap()
        .into()
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A session of alice's on `web-1` that runs until its input ends.
pub(crate) async fn session(lab: &Lab) -> Child {
    running(lab.postern("alice").args(["connect", "web-1", "--", STAYS])).await
}

/// What a command runs on its target to say that it is there, and to stay until its input ends.
pub(crate) const STAYS: &str = "echo in; exec cat";

/// Starts a command that runs [`STAYS`] on a target; returns once it runs. [`ending`] sees its end.
pub(crate) async fn running(command: &mut Command) -> Child {
    let mut child = spawn(command);
    let mut first = [0; 3];
    let read = child.stdout.as_mut().unwrap().read_exact(&mut first);
    let read = tokio::time::timeout(PATIENCE, read).await;
    if !matches!(read, Ok(Ok(_))) || first != *b"in\n" {
        child.start_kill().unwrap();
        let told = Told::from(child.wait_with_output().await.unwrap());
        panic!("{command:?} does not run: {}", told.stderr);
    }
    child
}

/// What a running command tells when it ends by itself: its input stays open.
pub(crate) async fn ending(mut child: Child) -> Told {
    let stdin = child.stdin.take();
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    drop(stdin);
    ended.expect("the command ends").unwrap().into()
}

/// `GET PATH` of the agent's health address: status and text.
pub(crate) async fn get(lab: &Lab, path: &str) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(lab.agent.health).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("an answer in time")
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Everything in the agent's log, as an operator with the store reads it.
pub(crate) async fn events(lab: &Lab) -> String {
    let store = lab.agent.audit_store.display().to_string();
    let arguments = [
        "audit", "ls", "--events", "--limit", "1000", "--store", &store,
    ];
    postern(lab, &arguments).await.status(0).out()
}

/// Waits until `check` answers, for at most half a minute.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a variable of the environment says, for trials that the suite is too short for.
pub(crate) fn setting<T: FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Err(_) => otherwise,
        Ok(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => panic!("{name}={text} is no number of the right kind"),
        },
    }
}

/// Shows what a trial found; `--nocapture` lets it through.
#[expect(
    clippy::print_stdout,
    reason = "figures are for whoever runs the trial"
)]
pub(crate) fn figures(found: std::fmt::Arguments<'_>) {
    println!("{found}");
}

/// Bytes that do not repeat where a buffer does.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// Copies a folder with all below it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).unwrap();
        }
    }
}
