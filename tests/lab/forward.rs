//! A running `postern forward`, as a program uses it: its JSON says where it listens.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with this value.
pub struct Forward {
    /// Where it listens.
    pub local: SocketAddr,
    child: Child,
    // Kept open: a listener that cannot say more must not end for it.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Forward {
    /// Starts `command`, which is `postern` with its environment, for one port of a target.
    pub async fn start(mut command: Command, target: &str, port: &str) -> Result<Self> {
        let mut child = command
            .args(["--json", "forward", target, port])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start postern")?;
        let mut lines = BufReader::new(child.stdout.take().context("postern's stdout")?).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .context("`postern forward` does not say where it listens")??
            .context("`postern forward` ended before it listened")?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let local = said.get("listening").and_then(serde_json::Value::as_str);
        let local = local
            .with_context(|| format!("no `listening` in {line}"))?
            .parse()?;
        Ok(Self {
            local,
            child,
            _lines: lines,
        })
    }

    /// The process.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("`postern forward` ended")
    }

    /// Ctrl-C, which ends it well.
    pub async fn interrupt(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid()?)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("no process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        ensure!(
            ended.success(),
            "`postern forward` ended with {ended} after Ctrl-C"
        );
        Ok(())
    }
}
