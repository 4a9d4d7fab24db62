//! One tunnel moves all it can while many people type: what the typing feels like with and
//! without it, and what the typing costs the tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio_util::task::AbortOnDropHandle;

use super::bulk::{self, Bulk};
use super::crowd::Crowd;
use super::crowd::orders::{Kind, Order};
use super::report::Part;
use super::route::PosternForward;
use crate::stack::Lab;

/// Sessions of one person.
const EACH: usize = 10;
/// Somebody who types fast: five keys a second.
const KEY_MS: u64 = 200;
const SECONDS: u64 = 15;
/// One transfer after the other, of that many bytes.
const PIECE: u64 = 256 << 20;

/// Types without and with a bulk tunnel.
pub async fn run(lab: &Lab, shells: usize, part: &mut Part) -> Result<()> {
    part.set("shells", shells);
    part.set("keys a second each", 1000 / KEY_MS);
    part.set("seconds", SECONDS);
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let people = shells.div_ceil(EACH).max(1);
    let doors = [lab.agent.address];
    let mut crowd = Crowd::gather(lab, "fairness", people, service.address.port(), &doors).await?;
    crowd.log_in().await?.flawless()?;
    crowd.open(Kind::Shell, shells, 4).await?.flawless()?;
    let forward = PosternForward::start(lab, service.address.port(), Duration::ZERO).await?;
    let local = forward.forward.local;

    let alone = rates(local, Duration::from_secs(SECONDS / 2)).await?;
    part.add("bulk tunnel, alone", "postern", 0, "MB/s", alone);
    let echoes = type_on(&mut crowd, shells).await?;
    part.add("keystroke echo, no bulk", "postern", 0, "ms", echoes);
    let moving = AbortOnDropHandle::new(tokio::spawn(rates(local, Duration::from_secs(SECONDS))));
    let echoes = type_on(&mut crowd, shells).await?;
    part.add("keystroke echo, beside bulk", "postern", 0, "ms", echoes);
    part.add(
        "bulk tunnel, beside typing",
        "postern",
        0,
        "MB/s",
        moving.await??,
    );
    crowd.leave().await
}

async fn type_on(crowd: &mut Crowd, shells: usize) -> Result<Vec<f64>> {
    let typing = Order::Type {
        kind: Kind::Shell,
        count: shells,
        every_ms: KEY_MS,
        seconds: SECONDS,
    };
    let patience = Duration::from_secs(SECONDS + 120);
    Ok(crowd.order(&typing, patience).await?.flawless()?.of("echo"))
}

/// Megabytes a second of one transfer after the other, until the time is over.
async fn rates(local: SocketAddr, lasting: Duration) -> Result<Vec<f64>> {
    let started = std::time::Instant::now();
    let mut rates = Vec::new();
    while started.elapsed() < lasting {
        let took = bulk::download(local, PIECE).await?;
        rates.push(PIECE as f64 / 1e6 / took.as_secs_f64());
    }
    Ok(rates)
}
