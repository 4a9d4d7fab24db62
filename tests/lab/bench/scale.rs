//! Thousands of sessions in one agent. A session here is one grant of its own with one pipe over
//! its own TLS connection, opened by the client's own library (in one process for all of them):
//! an idle or active *tunnel* leads to an echoing port; a *shell* is SSH on a terminal, which the
//! agent ends and opens again to an SSH host of the lab that echoes and runs no process. Every
//! session echoed at least one byte before it counts as idle.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::bulk::Bulk;
use super::cost;
use super::crowd::Crowd;
use super::crowd::orders::{Kind, Order};
use super::machine;
use super::report::Part;
use crate::console;
use crate::stack::Lab;

/// Sessions of one person: below the agent's own limit of 128.
const EACH: usize = 100;
/// Opened at one time, all from one address: below the agent's limit of strangers from there.
const AT_ONCE: usize = 32;
/// Watched while nobody does anything.
const QUIET: Duration = Duration::from_secs(15);
/// The active ones send a byte a second for that long.
const ACTIVE_SECONDS: u64 = 20;

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Idle tunnels.
    pub tunnels: usize,
    /// Idle shells.
    pub shells: usize,
    /// Active tunnels.
    pub active: usize,
}

impl Sizes {
    /// No more in all than `most`: idle tunnels are left out first.
    fn within(self, most: usize) -> Self {
        let people = (self.tunnels + self.shells + self.active).div_ceil(EACH) + 1;
        let others = self.shells + self.active + people;
        let tunnels = self.tunnels.min(most.saturating_sub(others));
        if tunnels < self.tunnels {
            console::note(&format!(
                "only {tunnels} idle tunnels: this machine allows too few open files\n\
                 hint: raise `ulimit -Hn` as root to measure all {}",
                self.tunnels
            ));
        }
        Self { tunnels, ..self }
    }
}

/// Opens them all, weighs both sides, and types.
pub async fn run(lab: &Lab, sizes: Sizes, part: &mut Part) -> Result<()> {
    let limit = machine::raise_descriptors()?;
    part.set("open files allowed", limit);
    let sizes = sizes.within(machine::sessions_within(limit));
    let sessions = sizes.tunnels + sizes.shells + sizes.active;
    let agent = lab.agent.pid().context("the agent is not running")?;
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let doors = [lab.agent.address];
    let people = sessions.div_ceil(EACH).max(1);
    let mut crowd = Crowd::gather(lab, "scale", people, service.address.port(), &doors).await?;
    crowd.log_in().await?.flawless()?;
    // One each: what a person costs, and what the first session warms up, is not a session's.
    crowd.open(Kind::Tunnel, people, 4).await?.flawless()?;
    crowd.open(Kind::Shell, 1, 1).await?.flawless()?;
    let both = Both {
        agent,
        crowd: crowd.pid()?,
    };
    part.set("idle tunnels", sizes.tunnels);
    part.set("idle shells", sizes.shells);
    part.set("active tunnels", sizes.active);
    part.set("people", people);

    for (kind, name, count) in [
        (Kind::Tunnel, "tunnel", sizes.tunnels),
        (Kind::Shell, "shell", sizes.shells),
    ] {
        if count == 0 {
            continue;
        }
        console::note(&format!("{count} idle {name}s"));
        let before = both.memory()?;
        let started = Instant::now();
        let opened = crowd.open(kind, count, AT_ONCE).await?;
        let rate = count as f64 / started.elapsed().as_secs_f64();
        let opened = opened.flawless()?;
        let row = format!("to the first byte, {name}");
        part.add(&row, "postern", 0, "ms", opened.of("first byte"));
        let row = format!("opened, {name}s");
        part.add(&row, "postern", 0, "/s", vec![rate]);
        // Acknowledgements and caches settle first.
        tokio::time::sleep(QUIET / 3).await;
        let after = both.memory()?;
        for (side, before, after) in [("agent", before.0, after.0), ("client", before.1, after.1)] {
            let each = after.saturating_sub(before) as f64 / count as f64;
            let row = format!("{side} memory, idle {name}");
            part.add(&row, "postern", 0, "KiB", vec![each]);
        }
    }
    idle(&both, part).await?;
    active(&mut crowd, &both, sizes.active, part).await?;
    let total = both.memory()?.0 as f64 / 1024.0;
    part.add("agent memory, all of it", "postern", 0, "MiB", vec![total]);
    let descriptors = cost::descriptors(agent)? as f64;
    part.add("agent descriptors", "postern", 0, "", vec![descriptors]);
    part.add(
        "agent threads",
        "postern",
        0,
        "",
        vec![cost::threads(agent)? as f64],
    );
    crowd.leave().await?;
    // What is left when everybody is gone.
    tokio::time::sleep(QUIET / 3).await;
    let left = cost::private_memory(agent)? as f64 / 1024.0;
    part.add("agent memory, all ended", "postern", 0, "MiB", vec![left]);
    Ok(())
}

/// What all the idle sessions cost while nothing happens: heartbeats.
async fn idle(both: &Both, part: &mut Part) -> Result<()> {
    let before = both.cpu()?;
    tokio::time::sleep(QUIET).await;
    both.tell_cpu("all idle", before, QUIET, part)
}

/// Some of them type while the others stay.
async fn active(crowd: &mut Crowd, both: &Both, count: usize, part: &mut Part) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    console::note(&format!("{count} active tunnels besides"));
    crowd.open(Kind::Tunnel, count, AT_ONCE).await?.flawless()?;
    let typing = Order::Type {
        kind: Kind::Tunnel,
        count,
        every_ms: 1000,
        seconds: ACTIVE_SECONDS,
    };
    let (before, started) = (both.cpu()?, Instant::now());
    let patience = Duration::from_secs(ACTIVE_SECONDS + 120);
    let typed = crowd.order(&typing, patience).await?.flawless()?;
    both.tell_cpu("some active", before, started.elapsed(), part)?;
    part.add("echo among all", "postern", 0, "ms", typed.of("echo"));
    Ok(())
}

/// The agent, and all its clients.
struct Both {
    agent: u32,
    crowd: u32,
}

impl Both {
    /// In KiB.
    fn memory(&self) -> Result<(u64, u64)> {
        Ok((
            cost::private_memory(self.agent)?,
            cost::private_memory(self.crowd)?,
        ))
    }

    fn cpu(&self) -> Result<(Duration, Duration)> {
        Ok((cost::cpu(self.agent)?, cost::cpu(self.crowd)?))
    }

    fn tell_cpu(
        &self,
        when: &str,
        before: (Duration, Duration),
        during: Duration,
        part: &mut Part,
    ) -> Result<()> {
        let after = self.cpu()?;
        for (side, before, after) in [("agent", before.0, after.0), ("clients", before.1, after.1)]
        {
            let share = 100.0 * after.saturating_sub(before).as_secs_f64() / during.as_secs_f64();
            let row = format!("{side} CPU, {when}");
            part.add(&row, "postern", 0, "% of a core", vec![share]);
        }
        Ok(())
    }
}
