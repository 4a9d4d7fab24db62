//! What is said to a crowd, and what it answers: one JSON object on a line each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The first line: who they are and where they go.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Everybody.
    pub people: Vec<Person>,
    /// The seed of everybody's MFA device.
    pub totp_secret: String,
    /// The target of tunnels,
    pub tunnel: String,
    /// and the port there.
    pub port: u16,
    /// The target of shells,
    pub shell: String,
    /// and the login user there.
    pub user: String,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Person {
    /// The variables of their client.
    pub environment: BTreeMap<String, String>,
}

/// What a session carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A tunnel: one grant, one pipe, a connection to an echoing port.
    Tunnel,
    /// A shell on a terminal of the echoing SSH host, through our own SSH client.
    Shell,
}

/// What to do. Sessions that are opened stay open.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Everybody logs in to AWS. Answers `login`.
    LogIn,
    /// Everybody at once enrols and opens a tunnel. Answers `enrolled` and `first byte`, both
    /// from the common start.
    Storm,
    /// More sessions, spread over the people. Answers `first byte`.
    Open {
        /// Of this kind,
        kind: Kind,
        /// so many,
        count: usize,
        /// so many at one time.
        at_once: usize,
    },
    /// Types on the oldest `count` sessions of a kind, each at its own moments. Answers `echo`.
    Type {
        /// Of this kind,
        kind: Kind,
        /// so many,
        count: usize,
        /// a byte each so often, in milliseconds,
        every_ms: u64,
        /// for so long, in seconds.
        seconds: u64,
    },
    /// Ends the oldest `count` sessions of a kind. Answers `close`.
    Close {
        /// Of this kind,
        kind: Kind,
        /// so many.
        count: usize,
    },
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Durations in milliseconds by what they are of.
    pub times: BTreeMap<String, Vec<f64>>,
    /// What failed, and how often.
    pub failures: BTreeMap<String, usize>,
    /// Sessions that are open now.
    pub open: usize,
}

impl Answer {
    /// The durations of one thing.
    pub fn of(&self, what: &str) -> Vec<f64> {
        self.times.get(what).cloned().unwrap_or_default()
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Refuses an answer with failures.
    pub fn flawless(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.failures.is_empty(),
            "it did not all go well: {:?}",
            self.failures
        );
        Ok(self)
    }
}
