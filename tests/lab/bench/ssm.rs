//! The SSM route: the lab's SSM Agent keeps the genuine one's pace (1 KiB, then 1 ms), so what is
//! measured downwards is that pace over one session and over several.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use tokio::task::JoinSet;

use super::bulk::{self, Bulk};
use super::measure::Plan;
use super::report::Part;
use crate::forward::Forward;
use crate::stack::Lab;

/// Streams at once in the rows that have several.
const STREAMS: u64 = 8;

/// Bulk each way over one stream and over eight, and new connections.
pub async fn run(lab: &Lab, plan: Plan, part: &mut Part) -> Result<()> {
    let service = Bulk::start(SocketAddr::new(lab.network.app(), 0)).await?;
    let mut command = lab.postern("alice");
    command.env("POSTERN_VIA", "ssm");
    let port = format!("0:{}", service.address.port());
    let forward = Forward::start(command, "app-1", &port).await?;
    let local = forward.local;
    // Sessions are opened on demand: not while the clock runs.
    streams(local, STREAMS, 64 * 1024, Way::Up).await?;
    let (up, down) = (plan.bytes / 8, plan.bytes / 128);
    for (count, names) in [
        (
            1,
            [
                "SSM port forward up, 1 stream",
                "SSM port forward down, 1 stream",
            ],
        ),
        (
            STREAMS,
            [
                "SSM port forward up, 8 streams",
                "SSM port forward down, 8 streams",
            ],
        ),
    ] {
        for (name, way, bytes) in [(names[0], Way::Up, up), (names[1], Way::Down, down)] {
            let mut rates = Vec::new();
            for _ in 0..plan.runs {
                rates.push(streams(local, count, bytes / count, way).await?);
            }
            part.add(name, "postern", 0, "MB/s", rates);
        }
    }
    let mut connections = Vec::new();
    for _ in 0..plan.runs * 4 {
        connections.push(bulk::first_byte(local).await?.as_secs_f64() * 1e3);
    }
    part.add("SSM new connection", "postern", 0, "ms", connections);
    forward.interrupt().await
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// Megabytes a second over so many streams at once, each with so many bytes.
async fn streams(local: SocketAddr, count: u64, bytes: u64, way: Way) -> Result<f64> {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..count {
        running.spawn(async move {
            match way {
                Way::Up => bulk::upload(local, bytes).await,
                Way::Down => bulk::download(local, bytes).await,
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok((count * bytes) as f64 / 1e6 / started.elapsed().as_secs_f64())
}
