//! What a session that waits costs: the agent and the client, beside sshd and `ssh`.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

use super::bulk::{self, Bulk};
use super::cost;
use super::report::Part;
use super::rival::OpenSsh;
use super::route::PosternForward;
use crate::stack::Lab;

/// A session that has waited for so long is idle.
const SETTLED: Duration = Duration::from_secs(3);
/// A session shows so much and waits.
const SHOWN: &str = "head -c 16777216 /dev/zero; echo; echo idle; cat";

/// Tunnels and shells that wait after bulk; a quarter as many of those that are a program each.
pub async fn run(lab: &Lab, count: usize, part: &mut Part) -> Result<()> {
    let programs = (count / 4).max(1);
    part.set("tunnels", count);
    part.set("shells", programs);
    tunnels(lab, count, part).await?;
    shells(lab, programs, part).await?;
    if let Some(openssh) = OpenSsh::of(lab).await? {
        sshd(&openssh, programs, part).await?;
    }
    Ok(())
}

fn each(before: u64, after: u64, count: usize) -> Vec<f64> {
    vec![after.saturating_sub(before) as f64 / count as f64]
}

async fn tunnels(lab: &Lab, count: usize, part: &mut Part) -> Result<()> {
    let service = Bulk::start(SocketAddr::new(lab.network.db(), 0)).await?;
    let agent = lab.agent.pid().context("the agent is not running")?;
    let forward = PosternForward::start(lab, service.address.port(), Duration::ZERO).await?;
    let client = forward.forward.pid()?;
    // One transfer first: what bulk leaves behind counts too.
    bulk::download(forward.forward.local, 64 << 20).await?;
    tokio::time::sleep(SETTLED).await;
    let before = (cost::private_memory(agent)?, cost::private_memory(client)?);
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(bulk::idle(forward.forward.local).await?);
    }
    tokio::time::sleep(SETTLED).await;
    let after = (cost::private_memory(agent)?, cost::private_memory(client)?);
    let row = "agent memory, idle tunnel";
    part.add(row, "postern", 0, "KiB", each(before.0, after.0, count));
    let row = "client memory, idle tunnel";
    part.add(row, "postern", 0, "KiB", each(before.1, after.1, count));
    Ok(())
}

async fn shells(lab: &Lab, count: usize, part: &mut Part) -> Result<()> {
    let agent = lab.agent.pid().context("the agent is not running")?;
    tokio::time::sleep(SETTLED).await;
    let before = cost::private_memory(agent)?;
    let mut shells = Vec::with_capacity(count);
    for _ in 0..count {
        let mut command = lab.postern("alice");
        command.args(["connect", "web-1", "--", SHOWN]);
        shells.push(Waiting::start(command).await?);
    }
    tokio::time::sleep(SETTLED).await;
    let after = cost::private_memory(agent)?;
    let row = "agent memory, idle shell";
    part.add(row, "postern", 0, "KiB", each(before, after, count));
    part.add(
        "client memory, a shell",
        "postern",
        0,
        "KiB",
        sizes(&shells)?,
    );
    Ok(())
}

/// A connection to the bastion's sshd with a command that waits.
async fn sshd(openssh: &OpenSsh, count: usize, part: &mut Part) -> Result<()> {
    let weigh = || -> Result<u64> {
        cost::descendants_named(std::process::id(), "sshd")?
            .into_iter()
            .map(cost::private_memory)
            .sum()
    };
    tokio::time::sleep(SETTLED).await;
    let before = weigh()?;
    let mut shells = Vec::with_capacity(count);
    for _ in 0..count {
        shells.push(Waiting::start(openssh.on_bastion(SHOWN)).await?);
    }
    tokio::time::sleep(SETTLED).await;
    let row = "agent memory, idle shell";
    part.add(row, "sshd", 0, "KiB", each(before, weigh()?, count));
    part.add("client memory, a shell", "ssh", 0, "KiB", sizes(&shells)?);
    Ok(())
}

fn sizes(shells: &[Waiting]) -> Result<Vec<f64>> {
    let size = |shell: &Waiting| -> Result<f64> {
        let pid = shell.child.id().context("the shell ended")?;
        Ok(cost::private_memory(pid)? as f64)
    };
    shells.iter().map(size).collect()
}

/// A shell that showed 16 MiB and waits.
struct Waiting {
    child: Child,
    _output: ChildStdout,
}

impl Waiting {
    async fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut output = child.stdout.take().context("the shell's output")?;
        let mut last = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while !last.ends_with(b"idle\n") {
            let length = output.read(&mut buffer).await?;
            ensure!(length > 0, "the shell ended");
            last.extend_from_slice(buffer.get(..length).unwrap_or_default());
            last.drain(..last.len().saturating_sub(5));
        }
        Ok(Self {
            child,
            _output: output,
        })
    }
}
