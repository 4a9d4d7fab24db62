//! Sessions that survive the network: shells, tunnels and stock `rsync`, cut again and again while
//! their client moves from one address to another.
//!
//! The suite tries a few short outages. Releases are tried with many long ones, a story at a time,
//! which takes ten minutes each:
//!
//! ```text
//! POSTERN_CUTS=50 POSTERN_CUT_SECONDS=20 POSTERN_COPY=2147483648 \
//!     cargo test --release --workspace --test e2e -- resume --nocapture --test-threads 1
//! ```

use std::time::Duration;

use lab::cutter::{Cutter, Storm, Toll};
use lab::stack::Lab;
use tokio::process::Command;

use crate::harness::{PATIENCE, figures, lab, postern, setting};

mod rsync;
mod shell;
mod tunnel;

/// What is tried.
struct Trial {
    /// `POSTERN_SEED` tries the same outages again.
    seed: u64,
    /// `POSTERN_CUTS`.
    cuts: usize,
    /// Seconds of the longest: `POSTERN_CUT_SECONDS`.
    longest: f64,
    /// Bytes that a copy carries: `POSTERN_COPY`.
    copy: usize,
}

impl Trial {
    /// As the environment says, else with copies of this size.
    fn new(copy: usize) -> Self {
        let trial = Self {
            seed: setting("POSTERN_SEED", rand::random()),
            cuts: setting("POSTERN_CUTS", 3),
            longest: setting("POSTERN_CUT_SECONDS", 1.0),
            copy: setting("POSTERN_COPY", copy),
        };
        figures(format_args!(
            "POSTERN_SEED={} POSTERN_CUTS={} POSTERN_CUT_SECONDS={} POSTERN_COPY={}",
            trial.seed, trial.cuts, trial.longest, trial.copy
        ));
        trial
    }

    /// The outages, `every` so many bytes.
    fn storm(&self, every: usize) -> Storm {
        Storm {
            seed: self.seed,
            count: self.cuts,
            longest: Duration::from_secs_f64(self.longest),
            every: every as u64,
        }
    }

    /// Bytes between two outages, so that all of them meet a copy of `total`.
    fn spread(&self, total: usize) -> Storm {
        self.storm(total / (self.cuts + 2))
    }

    /// No story takes longer.
    fn patience(&self) -> Duration {
        PATIENCE + Duration::from_secs_f64(self.longest + 20.0) * self.cuts as u32
    }
}

/// A lab whose clients reach the agent over a bad network.
struct Stormy {
    lab: Lab,
    network: Cutter,
}

impl Stormy {
    async fn new() -> Self {
        let lab = lab().await;
        let network = Cutter::start(lab.agent.address).await.unwrap();
        Self { lab, network }
    }

    fn over(&self, mut command: Command) -> Command {
        command.env("POSTERN_AGENT", self.network.address.to_string());
        command
    }

    fn postern(&self) -> Command {
        self.over(self.lab.postern("alice"))
    }

    /// `postern audit ARGUMENTS` of an auditor who has the agent's store.
    async fn audit(&self, arguments: &[&str]) -> String {
        let store = self.lab.agent.audit_store.display().to_string();
        let arguments = [&["audit"], arguments, &["--store", &store]].concat();
        postern(&self.lab, &arguments).await.status(0).out()
    }

    /// The log holds, tells of the resumes and where they came from, and the recordings are as the
    /// log says.
    async fn end(self, toll: Toll) {
        let told = self.audit(&["ls", "--events", "--limit", "10000"]).await;
        let resumed = told
            .lines()
            .filter(|line| line.contains("resumed on a new connection"));
        let resumes = resumed.count();
        figures(format_args!("{toll:?}, {resumes} resumes"));
        // A silence may be over before anybody takes it for an end; the others are ends.
        assert!(resumes * 2 >= toll.cut + toll.lost, "{toll:?} {told}");
        self.audit(&["verify"]).await;
        self.lab.stop().await.unwrap();
    }
}
