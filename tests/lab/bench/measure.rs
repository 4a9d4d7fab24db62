//! What is measured on one path, whatever the path is made of.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::process::Command;

use super::report::Part;
use super::{bulk, cost};

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Runs per row.
    pub runs: usize,
    /// Bytes per bulk transfer.
    pub bytes: u64,
}

/// A path to the service.
#[derive(Debug)]
pub struct Measured<'a> {
    /// Its name in the table.
    pub name: &'a str,
    /// Where it begins.
    pub local: SocketAddr,
    /// The processes that carry it; our own is added.
    pub pids: Vec<u32>,
    /// One-way delay on it.
    pub delay: Duration,
}

/// Bulk each way with its CPU cost, echo, and new connections.
pub async fn path(measured: &Measured<'_>, plan: Plan, part: &mut Part) -> Result<()> {
    let delay_ms = measured.delay.as_millis() as u64;
    let (name, local) = (measured.name, measured.local);
    let (mut down, mut up, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    // Delayed paths move less in the same time: keep a run short.
    let bytes = if measured.delay.is_zero() {
        plan.bytes
    } else {
        plan.bytes / 4
    };
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    for _ in 0..plan.runs {
        let before = used(&measured.pids)?;
        down.push(rate(bulk::download(local, bytes).await?));
        up.push(rate(bulk::upload(local, bytes).await?));
        let spent = used(&measured.pids)?.saturating_sub(before);
        cpu.push(spent.as_secs_f64() / (2.0 * bytes as f64 / f64::from(1 << 30)));
    }
    part.add("tunnel down", name, delay_ms, "MB/s", down);
    part.add("tunnel up", name, delay_ms, "MB/s", up);
    part.add("tunnel CPU, all ends", name, delay_ms, "s/GiB", cpu);

    let count = if measured.delay.is_zero() { 500 } else { 20 };
    let echoes = bulk::echoes(local, count).await?;
    part.add("1-byte echo", name, delay_ms, "ms", milliseconds(&echoes));
    let mut connections = Vec::new();
    for _ in 0..plan.runs * 4 {
        connections.push(bulk::first_byte(local).await?);
    }
    part.add(
        "new connection",
        name,
        delay_ms,
        "ms",
        milliseconds(&connections),
    );
    Ok(())
}

/// How long a command takes that must succeed.
pub async fn command(command: &mut Command) -> Result<Duration> {
    let started = Instant::now();
    let status = command.status().await?;
    ensure!(
        status.success(),
        "{:?} ended with {status}",
        command.as_std().get_program()
    );
    Ok(started.elapsed())
}

fn used(pids: &[u32]) -> Result<Duration> {
    // Programs of paths before this one are our reaped children.
    let own = cost::cpu_alone(std::process::id())?;
    pids.iter()
        .map(|pid| cost::cpu(*pid))
        // What an sshd that has ended used counts for its parent, which is among them.
        .filter(|used| !used.as_ref().is_err_and(cost::has_ended))
        .try_fold(own, |sum, one| Ok(sum + one?))
}

/// For rows in milliseconds.
pub fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}
