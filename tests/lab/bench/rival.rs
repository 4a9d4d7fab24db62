//! OpenSSH doing the same job: a bastion's sshd and a target's, with the stock client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::cost;
use super::delay::DelayRelay;
use crate::console;
use crate::network::{Network, PrivateListener};
use crate::stack::{Lab, login_user};
use crate::targets::sshd::{self, Keys, Setup, Sshd, write_private};

const START: Duration = Duration::from_secs(20);
/// Nothing of the machine's own configuration, nothing asked, nothing said.
const OPTIONS: [&str; 12] = [
    "-F",
    "/dev/null",
    "-o",
    "IdentitiesOnly=yes",
    "-o",
    "BatchMode=yes",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
];

/// A bastion and a target, both OpenSSH.
pub struct OpenSsh {
    bastion: Sshd,
    target: Sshd,
    key: PathBuf,
}

impl OpenSsh {
    /// Starts both in a lab; `None`, and a word about it, without an installed sshd.
    pub async fn of(lab: &Lab) -> Result<Option<Self>> {
        let started = Self::start(&lab.folder().join("openssh"), &lab.network).await?;
        if started.is_none() {
            console::note("OpenSSH's server is not installed: nothing to compare with.");
        }
        Ok(started)
    }

    /// Starts both; `None` without an installed sshd.
    async fn start(folder: &Path, network: &Network) -> Result<Option<Self>> {
        let Some(program) = sshd::installed() else {
            return Ok(None);
        };
        std::fs::create_dir_all(folder)?;
        let key = folder.join("id_ed25519");
        let private = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)?;
        write_private(&key, private.to_openssh(LineEnding::LF)?.as_bytes())?;
        let line = private.public_key().to_openssh()?;
        let server = async |name: &str| {
            let listener =
                PrivateListener::bind_open(SocketAddr::new(network.bastion(), 0)).await?;
            let setup = Setup {
                program: program.clone(),
                folder: &folder.join(name),
                user_ca: None,
                keys: Keys::Fixed(line.clone()),
            };
            sshd::start(listener, setup).await
        };
        Ok(Some(Self {
            bastion: server("bastion").await?,
            target: server("target").await?,
            key,
        }))
    }

    /// `ssh -N -L`: a forward through the bastion to `to`, with the path to the bastion delayed.
    pub async fn forward(
        &self,
        to: SocketAddr,
        cipher: Option<&str>,
        delay: Duration,
    ) -> Result<Forward> {
        let relay = DelayRelay::start(self.bastion.address, delay).await?;
        // ssh cannot tell which port it took: choose a free one, which nobody listens on any more.
        let free = TcpListener::bind(("127.0.0.1", 0)).await?;
        let local = free.local_addr()?;
        drop(free);
        let mut command = self.ssh(relay.address);
        command.arg("-N").args(["-L", &format!("{local}:{to}")]);
        if let Some(cipher) = cipher {
            command.args(["-c", cipher]);
        }
        let child = command
            .arg(relay.address.ip().to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start ssh")?;
        let listening = async {
            while TcpStream::connect(local).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(START, listening)
            .await
            .context("ssh -L does not listen")?;
        Ok(Forward {
            local,
            child,
            _relay: relay,
        })
    }

    /// How long `ssh -J bastion target true` takes.
    pub async fn jump(&self, delay: Duration) -> Result<Duration> {
        let relay = DelayRelay::start(self.bastion.address, delay).await?;
        let mut command = self.ssh(self.target.address);
        command
            .args(["-o", &self.proxy(relay.address)])
            .arg(self.target.address.ip().to_string())
            .arg("true")
            .stdin(Stdio::null());
        let started = Instant::now();
        let status = command.status().await?;
        ensure!(status.success(), "ssh -J ended with {status}");
        Ok(started.elapsed())
    }

    /// `ssh -J bastion target LINE`.
    pub fn on_target(&self, line: &str) -> Command {
        let mut command = self.ssh(self.target.address);
        command
            .args(["-o", &self.proxy(self.bastion.address)])
            .arg(self.target.address.ip().to_string())
            .arg(line);
        command
    }

    /// `ssh bastion LINE`.
    pub fn on_bastion(&self, line: &str) -> Command {
        let mut command = self.ssh(self.bastion.address);
        command.arg(self.bastion.address.ip().to_string()).arg(line);
        command
    }

    /// `scp -J bastion`, from the target to here or, `up`, from here to the target.
    pub fn scp(&self, up: bool, from: &Path, to: &Path) -> Command {
        let mut command = Command::new("scp");
        let user = format!("User={}", login_user());
        command
            .args(["-q", "-P", &self.target.address.port().to_string()])
            .args(OPTIONS)
            .args(["-o", &user, "-o", &self.proxy(self.bastion.address), "-i"])
            .arg(&self.key);
        let far = |path: &Path| format!("{}:{}", self.target.address.ip(), path.display());
        match up {
            true => command.arg(from).arg(far(to)),
            false => command.arg(far(from)).arg(to),
        };
        command
    }

    /// What `-J` stands for, with the options that `-J` would not pass on.
    fn proxy(&self, bastion: SocketAddr) -> String {
        format!(
            "ProxyCommand=ssh {options} -i {key} -p {port} -W %h:%p {user}@{host}",
            options = OPTIONS.join(" "),
            key = self.key.display(),
            port = bastion.port(),
            host = bastion.ip(),
            user = login_user(),
        )
    }

    fn ssh(&self, to: SocketAddr) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(OPTIONS)
            .args(["-l", &login_user(), "-i"])
            .arg(&self.key)
            .args(["-p", &to.port().to_string()]);
        command
    }
}

/// A running `ssh -L`.
pub struct Forward {
    /// Where it listens.
    pub local: SocketAddr,
    child: Child,
    _relay: DelayRelay,
}

impl Forward {
    /// The client and the sshd processes that serve it.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let client = self.child.id().context("ssh ended")?;
        let mut pids = cost::descendants_named(std::process::id(), "sshd")?;
        pids.push(client);
        Ok(pids)
    }
}
