//! Files and streams to and from a host: `connect -- cat` with our own SSH client, and stock `scp`
//! through `postern proxy`, beside `ssh` and `scp` through OpenSSH's bastion.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;

use super::measure::{self, Plan};
use super::report::Part;
use super::rival::OpenSsh;
use crate::stack::{Lab, SSH_PORT, login_user};

/// Both ways, at no delay.
pub async fn run(lab: &Lab, plan: Plan, part: &mut Part) -> Result<()> {
    // Half of what a tunnel moves: these are slower.
    let bytes = plan.bytes / 2;
    part.set("MiB", bytes >> 20);
    let folder = lab.folder().join("copy");
    std::fs::create_dir_all(&folder)?;
    let (file, copy) = (folder.join("file"), folder.join("copied"));
    // As random as a compressed file: nothing on the way compresses, and nothing should.
    let mut content = vec![0; usize::try_from(bytes)?];
    aws_lc_rs::rand::fill(&mut content).map_err(|_| anyhow::anyhow!("no randomness"))?;
    std::fs::write(&file, content)?;
    let openssh = OpenSsh::of(lab).await?;
    let down = format!("cat {}", file.display());
    let own = |line: &str| {
        let mut command = lab.postern("alice");
        command.args(["connect", "web-1", "--", line]);
        command
    };
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    // Pairs alternate, so that a slow moment of the machine is everybody's.
    let mut rates: [Vec<f64>; 8] = Default::default();
    for run in 0..=plan.runs {
        let mut took = [None; 8];
        let from = || std::fs::File::open(&file).map(Stdio::from);
        took[0] = Some(timed(own(&down), Stdio::null()).await?);
        took[1] = Some(timed(own("cat > /dev/null"), from()?).await?);
        if let Some(openssh) = &openssh {
            took[2] = Some(timed(openssh.on_target(&down), Stdio::null()).await?);
            took[3] = Some(timed(openssh.on_target("cat > /dev/null"), from()?).await?);
            let far = |path: &std::path::Path| format!("web-1:{}", path.display());
            let (from, to) = (file.display().to_string(), copy.display().to_string());
            took[4] = Some(timed(scp(lab, &far(&file), &to), Stdio::null()).await?);
            took[5] = Some(timed(scp(lab, &from, &far(&copy)), Stdio::null()).await?);
            took[6] = Some(timed(openssh.scp(false, &file, &copy), Stdio::null()).await?);
            took[7] = Some(timed(openssh.scp(true, &file, &copy), Stdio::null()).await?);
        }
        // The first one enrols, and warms the file.
        if run > 0 {
            for (rates, took) in rates.iter_mut().zip(took) {
                rates.extend(took.map(rate));
            }
        }
    }
    let [
        cat_down,
        cat_up,
        ssh_down,
        ssh_up,
        scp_down,
        scp_up,
        jump_down,
        jump_up,
    ] = rates;
    for (what, path, rates) in [
        ("connect -- cat, down", "postern", cat_down),
        ("connect -- cat, down", "ssh -J", ssh_down),
        ("connect -- cat, up", "postern", cat_up),
        ("connect -- cat, up", "ssh -J", ssh_up),
        ("scp, down", "postern", scp_down),
        ("scp, down", "scp -J", jump_down),
        ("scp, up", "postern", scp_up),
        ("scp, up", "scp -J", jump_up),
    ] {
        part.add(what, path, 0, "MB/s", rates);
    }
    Ok(())
}

async fn timed(mut command: Command, input: Stdio) -> Result<Duration> {
    command.stdin(input).stdout(Stdio::null());
    measure::command(&mut command).await
}

/// Stock `scp` over `postern proxy`.
fn scp(lab: &Lab, from: &str, to: &str) -> Command {
    let mut command = lab.command("scp");
    command
        .env("AWS_PROFILE", "alice")
        .args(["-q", "-F", "/dev/null", "-o", "BatchMode=yes"])
        .args(["-o", "ProxyCommand=postern proxy %r@%h %p"])
        // The agent's host key is certified by a CA that only `postern ssh-config` names.
        .args(["-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "LogLevel=ERROR"])
        .args(["-o", &format!("User={}", login_user())])
        .args(["-P", &SSH_PORT.to_string(), from, to]);
    command
}
