//! `lab bench`: section 11's table, for the route through the agent measured beside OpenSSH, bare TCP
//! hops and direct TCP in the same run; then the SSM route. Figures are printed and never asserted.

pub mod bulk;
pub mod cost;
pub mod delay;
pub mod hops;
pub mod measure;
pub mod report;
pub mod rival;
pub mod ssm;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use self::bulk::Bulk;
use self::delay::DelayRelay;
use self::hops::Hops;
use self::measure::{Measured, Plan};
use self::report::Report;
use self::rival::OpenSsh;
use crate::console;
use crate::forward::Forward;
use crate::stack::Lab;

/// `lab bench` options.
#[derive(Debug, Clone, Parser)]
#[command(name = "lab bench")]
pub struct Arguments {
    /// Also write the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Runs per row; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// MiB per bulk transfer.
    #[arg(long, default_value_t = 512)]
    mebibytes: u64,
    /// One-way delays in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 25, 80])]
    delays: Vec<u64>,
    /// Only the SSM route.
    #[arg(long)]
    ssm: bool,
    /// Idle sessions to weigh the agent with.
    #[arg(long, default_value_t = 200)]
    idle: usize,
}

/// Measures and prints.
pub async fn run(lab: &Lab, arguments: &Arguments) -> Result<()> {
    login(lab).await?;
    let plan = Plan {
        runs: arguments.runs,
        bytes: arguments.mebibytes << 20,
    };
    let mut report = Report {
        runs: plan.runs,
        rows: Vec::new(),
    };
    if !arguments.ssm {
        bastion(lab, arguments, plan, &mut report).await?;
    }
    console::note("measuring the SSM route");
    ssm::run(lab, plan, &mut report).await?;
    report.compare();
    report.print();
    if let Some(path) = &arguments.json {
        let text = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The route through the agent, beside its rivals.
async fn bastion(lab: &Lab, arguments: &Arguments, plan: Plan, report: &mut Report) -> Result<()> {
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let openssh = OpenSsh::start(&lab.folder().join("openssh"), &lab.network).await?;
    if openssh.is_none() {
        console::note("OpenSSH's server is not installed: nothing to compare with.");
    }
    for delay_ms in arguments.delays.iter().copied() {
        let delay = Duration::from_millis(delay_ms);
        console::note(&format!("measuring with {delay_ms} ms of one-way delay"));
        tunnels(lab, &service, openssh.as_ref(), plan, delay, report).await?;
        commands(lab, openssh.as_ref(), plan, delay, report).await?;
    }
    idle(lab, &service, arguments.idle, report).await?;
    help(lab, plan, report).await
}

/// Bulk, echo and new connections on every path.
async fn tunnels(
    lab: &Lab,
    service: &Bulk,
    openssh: Option<&OpenSsh>,
    plan: Plan,
    delay: Duration,
    report: &mut Report,
) -> Result<()> {
    let own = PosternForward::start(lab, service.address.port(), delay).await?;
    let agent = lab.agent.pid().context("the agent is not running")?;
    let pids = vec![agent, own.forward.pid()?];
    measure::path(
        &Measured {
            name: "postern",
            local: own.forward.local,
            pids,
            delay,
        },
        plan,
        report,
    )
    .await?;
    if let Some(openssh) = openssh {
        for (name, cipher) in [
            ("ssh -L", None),
            ("ssh -L aes128-gcm", Some("aes128-gcm@openssh.com")),
        ] {
            let forward = openssh.forward(service.address, cipher, delay).await?;
            let pids = forward.pids()?;
            measure::path(
                &Measured {
                    name,
                    local: forward.local,
                    pids,
                    delay,
                },
                plan,
                report,
            )
            .await?;
        }
    }
    let relay = DelayRelay::start(service.address, delay).await?;
    let (name, local, pids) = ("direct TCP", relay.address, Vec::new());
    measure::path(
        &Measured {
            name,
            local,
            pids,
            delay,
        },
        plan,
        report,
    )
    .await?;
    let hops = Hops::start(relay.address).await?;
    let pids = hops.pid().into_iter().collect();
    let measured = Measured {
        name: "three bare hops",
        local: hops.address,
        pids,
        delay,
    };
    measure::path(&measured, plan, report).await
}

/// `connect TARGET -- true` beside `ssh -J`.
async fn commands(
    lab: &Lab,
    openssh: Option<&OpenSsh>,
    plan: Plan,
    delay: Duration,
    report: &mut Report,
) -> Result<()> {
    let delay_ms = delay.as_millis() as u64;
    let relay = DelayRelay::start(lab.agent.address, delay).await?;
    let (mut own, mut rival) = (Vec::new(), Vec::new());
    // The first one enrols; pairs after it alternate.
    for run in 0..=plan.runs {
        let mut command = lab.postern("alice");
        command
            .args(["connect", "web-1", "--", "true"])
            .stdin(Stdio::null());
        command.env("POSTERN_AGENT", relay.address.to_string());
        let took = measure::command(&mut command).await?;
        if run > 0 {
            own.push(took.as_secs_f64() * 1e3);
            if let Some(openssh) = openssh {
                rival.push(openssh.jump(delay).await?.as_secs_f64() * 1e3);
            }
        }
    }
    report.add("true on the target", "postern", delay_ms, "ms", own);
    report.add("true on the target", "ssh -J", delay_ms, "ms", rival);
    Ok(())
}

/// What an idle tunnel and an idle shell cost the agent.
async fn idle(lab: &Lab, service: &Bulk, count: usize, report: &mut Report) -> Result<()> {
    let agent = lab.agent.pid().context("the agent is not running")?;
    let forward = PosternForward::start(lab, service.address.port(), Duration::ZERO).await?;
    // One transfer each way first: what bulk leaves behind counts too.
    bulk::download(forward.forward.local, 64 << 20).await?;
    let before = cost::private_memory(agent)?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(bulk::idle(forward.forward.local).await?);
    }
    let each = |before: u64, after: u64, count: usize| {
        vec![after.saturating_sub(before) as f64 / count as f64]
    };
    let after = cost::private_memory(agent)?;
    let row = "agent memory, idle tunnel";
    report.add(row, "postern", 0, "KiB", each(before, after, count));
    drop(streams);

    // A client program each, so fewer of them.
    let count = (count / 4).max(1);
    let before = cost::private_memory(agent)?;
    let mut shells = Vec::with_capacity(count);
    for _ in 0..count {
        shells.push(idle_shell(lab).await?);
    }
    let after = cost::private_memory(agent)?;
    let row = "agent memory, idle shell";
    report.add(row, "postern", 0, "KiB", each(before, after, count));
    Ok(())
}

/// A shell that showed 16 MiB and waits.
async fn idle_shell(lab: &Lab) -> Result<Child> {
    let mut command = lab.postern("alice");
    command
        .args(["connect", "web-1", "--"])
        .arg("head -c 16777216 /dev/zero; echo; echo idle; cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut shell = command.spawn()?;
    let mut output = shell.stdout.take().context("the shell's output")?;
    let mut last = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !last.ends_with(b"idle\n") {
        let length = output.read(&mut buffer).await?;
        ensure!(length > 0, "the shell ended");
        last.extend_from_slice(buffer.get(..length).unwrap_or_default());
        last.drain(..last.len().saturating_sub(5));
    }
    Ok(shell)
}

async fn help(lab: &Lab, plan: Plan, report: &mut Report) -> Result<()> {
    let mut times = Vec::with_capacity(plan.runs);
    for _ in 0..plan.runs.max(20) {
        let mut command = lab.postern("alice");
        command
            .arg("--help")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        times.push(measure::command(&mut command).await?.as_secs_f64() * 1e3);
    }
    report.add("postern --help", "postern", 0, "ms", times);
    Ok(())
}

async fn login(lab: &Lab) -> Result<()> {
    let mut command = lab.postern("alice");
    command
        .arg("login")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = command.status().await?;
    ensure!(status.success(), "postern login ended with {status}");
    Ok(())
}

/// A running `postern forward` to the service, through a delayed path.
struct PosternForward {
    forward: Forward,
    _relay: DelayRelay,
}

impl PosternForward {
    async fn start(lab: &Lab, port: u16, delay: Duration) -> Result<Self> {
        let relay = DelayRelay::start(lab.agent.address, delay).await?;
        let mut command = lab.postern("alice");
        command.env("POSTERN_AGENT", relay.address.to_string());
        let forward = Forward::start(command, "db-1", &format!("0:{port}")).await?;
        Ok(Self {
            forward,
            _relay: relay,
        })
    }
}
