//! Tunnels, commands and their start through the agent, each beside what OpenSSH makes of the same
//! and beside TCP without either.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::bulk::Bulk;
use super::delay::DelayRelay;
use super::hops::Hops;
use super::measure::{self, Measured, Plan};
use super::report::Part;
use super::rival::OpenSsh;
use crate::console;
use crate::forward::Forward;
use crate::stack::Lab;

/// Tunnels at every delay.
pub async fn tunnels(lab: &Lab, plan: Plan, delays: &[u64], part: &mut Part) -> Result<()> {
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let openssh = OpenSsh::of(lab).await?;
    for delay_ms in delays {
        console::note(&format!("tunnels with {delay_ms} ms of one-way delay"));
        let delay = Duration::from_millis(*delay_ms);
        paths(lab, &service, openssh.as_ref(), plan, delay, part).await?;
    }
    Ok(())
}

/// Commands at every delay, and `--help`.
pub async fn commands(lab: &Lab, plan: Plan, delays: &[u64], part: &mut Part) -> Result<()> {
    let openssh = OpenSsh::of(lab).await?;
    for delay_ms in delays {
        console::note(&format!("commands with {delay_ms} ms of one-way delay"));
        let delay = Duration::from_millis(*delay_ms);
        starts(lab, openssh.as_ref(), plan, delay, part).await?;
    }
    help(lab, plan, part).await
}

/// Bulk, echo and new connections on every path.
async fn paths(
    lab: &Lab,
    service: &Bulk,
    openssh: Option<&OpenSsh>,
    plan: Plan,
    delay: Duration,
    part: &mut Part,
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
        part,
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
                part,
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
        part,
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
    measure::path(&measured, plan, part).await
}

/// `connect TARGET -- true` beside `ssh -J`.
async fn starts(
    lab: &Lab,
    openssh: Option<&OpenSsh>,
    plan: Plan,
    delay: Duration,
    part: &mut Part,
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
    part.add("true on the target", "postern", delay_ms, "ms", own);
    part.add("true on the target", "ssh -J", delay_ms, "ms", rival);
    Ok(())
}

async fn help(lab: &Lab, plan: Plan, part: &mut Part) -> Result<()> {
    let mut times = Vec::with_capacity(plan.runs);
    for _ in 0..plan.runs.max(20) {
        let mut command = lab.postern("alice");
        command
            .arg("--help")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        times.push(measure::command(&mut command).await?.as_secs_f64() * 1e3);
    }
    part.add("postern --help", "postern", 0, "ms", times);
    Ok(())
}

/// A running `postern forward` to the service, through a delayed path.
pub struct PosternForward {
    /// The program.
    pub forward: Forward,
    _relay: DelayRelay,
}

impl PosternForward {
    /// Starts it for `port` of `db-1`.
    pub async fn start(lab: &Lab, port: u16, delay: Duration) -> Result<Self> {
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
