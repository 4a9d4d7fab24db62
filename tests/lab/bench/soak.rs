//! A soak: sessions come and go for as long as was asked for, at a pace that a machine hardly
//! notices; what the agent holds meanwhile is watched.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::bulk::Bulk;
use super::cost;
use super::crowd::Crowd;
use super::crowd::orders::{Kind, Order};
use super::report::{Part, Series};
use super::spread::slope;
use crate::console;
use crate::stack::Lab;

/// Who is there, and what they hold at every moment.
const PEOPLE: usize = 20;
const TUNNELS: usize = 100;
const SHELLS: usize = 30;
/// What comes and goes in a round.
const COMING_TUNNELS: usize = 6;
const COMING_SHELLS: usize = 3;
/// A round, and for how much of it somebody types, in seconds.
const ROUND: Duration = Duration::from_secs(10);
const TYPING: u64 = 3;
/// The part of the time that does not count for slopes: caches fill, the allocator settles.
const WARM: f64 = 0.2;
/// A slope over less says nothing.
const LEAST: Duration = Duration::from_secs(600);

/// Soaks for so long.
pub async fn run(lab: &Lab, lasting: Duration, part: &mut Part) -> Result<()> {
    let agent = lab.agent.pid().context("the agent is not running")?;
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let doors = [lab.agent.address];
    let mut crowd = Crowd::gather(lab, "soak", PEOPLE, service.address.port(), &doors).await?;
    crowd.log_in().await?.flawless()?;
    for (kind, count) in [(Kind::Tunnel, TUNNELS), (Kind::Shell, SHELLS)] {
        crowd.open(kind, count, 4).await?.flawless()?;
    }
    let started = Instant::now();
    let cpu = cost::cpu(agent)?;
    let mut watched = Watched::default();
    let (mut served, mut failed, mut echoes) = (TUNNELS + SHELLS, 0, Vec::new());
    while started.elapsed() < lasting {
        let round = Instant::now();
        for (kind, count) in [(Kind::Tunnel, COMING_TUNNELS), (Kind::Shell, COMING_SHELLS)] {
            let opened = crowd.open(kind, count, 2).await?;
            let typed = Order::Type {
                kind,
                count: count * 2,
                every_ms: 500,
                seconds: TYPING / 2 + 1,
            };
            let typed = crowd.order(&typed, Duration::from_secs(180)).await?;
            let close = Order::Close { kind, count };
            let closed = crowd.order(&close, Duration::from_secs(180)).await?;
            for (what, answer) in [("open", &opened), ("type", &typed), ("close", &closed)] {
                if !answer.failures.is_empty() {
                    console::note(&format!("soak, {what}: {:?}", answer.failures));
                }
                failed += answer.failed();
            }
            served += count;
            echoes.extend(typed.of("echo"));
        }
        watched.look(agent, started.elapsed())?;
        tokio::time::sleep(ROUND.saturating_sub(round.elapsed())).await;
    }
    let used = cost::cpu(agent)?.saturating_sub(cpu);
    let took = started.elapsed();
    crowd.leave().await?;

    part.set("people", PEOPLE);
    part.set("sessions open", TUNNELS + SHELLS);
    part.set("seconds", took.as_secs());
    part.add("sessions served", "postern", 0, "", vec![served as f64]);
    part.add("failures", "postern", 0, "", vec![failed as f64]);
    part.add("keystroke echo", "postern", 0, "ms", echoes);
    let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
    part.add("agent CPU", "postern", 0, "% of a core", vec![share]);
    watched.tell(took, part);
    Ok(())
}

/// Samples of what the agent holds.
#[derive(Default)]
struct Watched {
    memory: Vec<(f64, f64)>,
    descriptors: Vec<(f64, f64)>,
    threads: Vec<(f64, f64)>,
}

impl Watched {
    fn look(&mut self, agent: u32, at: Duration) -> Result<()> {
        let at = at.as_secs_f64().round();
        self.memory
            .push((at, cost::private_memory(agent)? as f64 / 1024.0));
        self.descriptors
            .push((at, cost::descriptors(agent)? as f64));
        self.threads.push((at, cost::threads(agent)? as f64));
        Ok(())
    }

    fn tell(self, took: Duration, part: &mut Part) {
        for (what, unit, points) in [
            ("agent memory", "MiB", self.memory),
            ("agent descriptors", "", self.descriptors),
            ("agent threads", "", self.threads),
        ] {
            let values = points.iter().map(|point| point.1).collect();
            part.add(what, "postern", 0, unit, values);
            let warm = took.as_secs_f64() * WARM;
            let settled: Vec<(f64, f64)> = points.iter().filter(|p| p.0 >= warm).copied().collect();
            if let Some(slope) = slope(&settled).filter(|_| took >= LEAST) {
                let unit = format!("{unit}/h");
                let name = format!("{what}, slope");
                part.add(&name, "postern", 0, unit.trim(), vec![slope * 3600.0]);
            }
            let thousandth = |value: f64| (value * 1000.0).round() / 1000.0;
            part.series.push(Series {
                what: what.to_owned(),
                unit: unit.to_owned(),
                points: points.iter().map(|p| (p.0, thousandth(p.1))).collect(),
            });
        }
    }
}
