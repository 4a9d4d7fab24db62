//! A person at a terminal, who types and reads.

use std::os::fd::AsFd as _;
use std::time::Duration;

use lab::stack::Lab;
use rustix::termios::{InputModes, LocalModes, OutputModes, tcgetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use crate::harness::PATIENCE;

/// Sits at a terminal of 100 columns and 40 rows that one program has.
pub(crate) struct Person {
    pub(crate) pty: pty_process::Pty,
    pub(crate) child: Child,
    seen: String,
}

/// What a program may leave behind on a terminal.
pub(crate) type Modes = (InputModes, OutputModes, LocalModes);

impl Person {
    /// With `postern ARGUMENTS`, as alice.
    pub(crate) fn at(lab: &Lab, arguments: &[&str]) -> Self {
        Self::with(lab, |terminal| terminal.args(arguments))
    }

    /// With `postern` as alice, changed by `change`.
    pub(crate) fn with(
        lab: &Lab,
        change: impl FnOnce(pty_process::Command) -> pty_process::Command,
    ) -> Self {
        let postern = pty_process::Command::new(&lab.programs.client).envs(&lab.environment);
        Self::of(change(postern))
    }

    /// With any program.
    pub(crate) fn of(command: pty_process::Command) -> Self {
        let (pty, slave) = pty_process::open().unwrap();
        pty.resize(pty_process::Size::new(40, 100)).unwrap();
        let child = command.kill_on_drop(true).spawn(slave).unwrap();
        Self {
            pty,
            child,
            seen: String::new(),
        }
    }

    pub(crate) async fn types(&mut self, text: &str) {
        let typing = self.pty.write_all(text.as_bytes());
        let typed = tokio::time::timeout(PATIENCE, typing).await;
        typed.expect("somebody reads").unwrap();
    }

    /// Waits for `text`, and forgets what came up to it.
    pub(crate) async fn sees(&mut self, text: &str) {
        self.sees_within(PATIENCE, text).await;
    }

    /// The same; returns what came before it.
    pub(crate) async fn sees_within(&mut self, patience: Duration, text: &str) -> String {
        let mut buffer = [0; 4096];
        let seeing = async {
            while !self.seen.contains(text) {
                let length = self.pty.read(&mut buffer).await.expect(&self.seen);
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        };
        let seen = tokio::time::timeout(patience, seeing).await;
        let at = self.seen.find(text);
        let (Ok(()), Some(at)) = (seen, at) else {
            panic!("no `{text}` in: {}", self.seen);
        };
        let before = self.seen[..at].to_owned();
        self.seen.drain(..at + text.len());
        before
    }

    /// The terminal's modes as they are now.
    pub(crate) fn modes(&self) -> Modes {
        let modes = tcgetattr(self.pty.as_fd()).unwrap();
        (modes.input_modes, modes.output_modes, modes.local_modes)
    }

    /// Waits for the program's end: its exit code.
    pub(crate) async fn leaves(self) -> Option<i32> {
        self.leaves_within(PATIENCE).await.0
    }

    /// The same; with the rest of what it said, and the modes that it left.
    pub(crate) async fn leaves_within(
        mut self,
        patience: Duration,
    ) -> (Option<i32>, String, Modes) {
        let mut buffer = [0; 4096];
        let leaving = async {
            // A terminal whose last user is gone reads as an error.
            while let Ok(length @ 1..) = self.pty.read(&mut buffer).await {
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            self.child.wait().await.unwrap()
        };
        let left = tokio::time::timeout(patience, leaving).await;
        let status = left.unwrap_or_else(|_| panic!("no end: {}", self.seen));
        let modes = self.modes();
        (status.code(), self.seen, modes)
    }
}

/// `sh`'s, of the user that the lab's shells run as: ours.
pub(crate) fn prompt() -> &'static str {
    match rustix::process::geteuid().is_root() {
        true => "# ",
        false => "$ ",
    }
}
