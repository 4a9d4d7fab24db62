//! Stories inside a lab: commands as a person types them, and what they print.

use std::process::{Output, Stdio};
use std::time::Duration;

use lab::stack::{Lab, Options};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

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
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let lab = Lab::start(options).await.unwrap();
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
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // A command that ends early reads no further: that is its right.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    tokio::time::timeout(PATIENCE, both)
        .await
        .expect("the command ends")
        .unwrap()
        .into()
}

/// Waits until `check` answers, for at most ten seconds.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
