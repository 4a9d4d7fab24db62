//! A login storm: everybody has just given a code to AWS, and now everybody's client comes to the
//! agent at the same moment with nothing kept: a fresh TLS connection, an enrolment (the agent asks
//! the lab's STS twice), a certificate, another TLS connection, a grant, a connection to the target
//! and its first byte. Each comes from an address of its own, as offices and homes have it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::bulk::Bulk;
use super::cost;
use super::crowd::Crowd;
use super::crowd::orders::Order;
use super::delay::DelayRelay;
use super::machine;
use super::report::Part;
use crate::console;
use crate::stack::Lab;

/// For all of it.
const DEADLINE: Duration = Duration::from_secs(300);

/// One storm of so many.
pub async fn run(lab: &Lab, clients: usize, part: &mut Part) -> Result<()> {
    machine::raise_descriptors()?;
    part.set("clients", clients);
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let mut relays = Vec::with_capacity(clients);
    for number in 0..clients {
        relays.push(DelayRelay::from_address(lab.agent.address, source(number)).await?);
    }
    let doors: Vec<SocketAddr> = relays.iter().map(|relay| relay.address).collect();
    let port = service.address.port();
    let mut crowd = Crowd::gather(lab, "storm", clients, port, &doors).await?;
    let logins = crowd.log_in().await?.flawless()?;
    part.add(
        "login at AWS, 16 at once",
        "postern",
        0,
        "ms",
        logins.of("login"),
    );
    let agent = lab.agent.pid().context("the agent is not running")?;
    let (cpu, started) = (cost::cpu(agent)?, Instant::now());
    let stormed = crowd.order(&Order::Storm, DEADLINE).await?;
    let used = cost::cpu(agent)?.saturating_sub(cpu);
    for (what, times) in [
        ("enrolled", stormed.of("enrolled")),
        ("first byte", stormed.of("first byte")),
    ] {
        part.add(what, "postern", 0, "ms", times);
    }
    let took = started.elapsed().as_secs_f64() * 1e3;
    part.add("all served", "postern", 0, "ms", vec![took]);
    let each = used.as_secs_f64() * 1e3 / clients as f64;
    part.add("agent CPU for each", "postern", 0, "ms", vec![each]);
    part.add(
        "turned away",
        "postern",
        0,
        "",
        vec![stormed.failed() as f64],
    );
    for (why, count) in &stormed.failures {
        console::note(&format!("turned away, {count}: {why}"));
    }
    crowd.leave().await
}

/// An address of 127/8 for each, away from those of labs.
fn source(number: usize) -> Ipv4Addr {
    // No two have one, and none ends with 0 or 255.
    let part = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 1, part(number / 250), part(1 + number % 250))
}
