//! A genuine OpenSSH sshd: one `sshd -i` for each connection that the private listener lets in.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;
use tokio::task::{JoinHandle, JoinSet};

use super::pushed::PushedKeys;
use crate::network::PrivateListener;

/// A running sshd.
pub struct Sshd {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The installed sshd, if any.
pub fn installed() -> Option<PathBuf> {
    super::program(&["sshd"], &["/usr/sbin", "/usr/local/sbin"])
}

/// Files and options of one sshd.
pub struct Setup<'a> {
    /// The program.
    pub program: PathBuf,
    /// A folder for its files.
    pub folder: &'a Path,
    /// OpenSSH public key of the agent's SSH user CA, where it is trusted.
    pub user_ca: Option<&'a str>,
    /// Keys that get in.
    pub keys: Keys,
}

/// Where authorized keys come from.
pub enum Keys {
    /// EC2 Instance Connect, for this user.
    Pushed(PushedKeys, String),
    /// This one.
    Fixed(String),
}

impl Keys {
    fn write(&self, file: &Path) -> std::io::Result<()> {
        match self {
            Self::Pushed(pushed, user) => pushed.write(user, file),
            Self::Fixed(line) => std::fs::write(file, format!("{line}\n")),
        }
    }
}

/// Starts it on a private listener.
pub async fn start(listener: PrivateListener, setup: Setup<'_>) -> Result<Sshd> {
    let config = write_config(&setup).await?;
    let log = setup.folder.join("sshd.log");
    let address = listener.address()?;
    let keys_file = setup.folder.join("authorized_keys");
    let (program, keys) = (setup.program, setup.keys);
    if let Keys::Pushed(pushed, user) = &keys {
        pushed.follow(user, &keys_file);
    }
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                stream = listener.accept() => {
                    let served = stream
                        .and_then(|stream| keys.write(&keys_file).map(|()| stream))
                        .map_err(anyhow::Error::from)
                        .and_then(|stream| serve(&program, &config, &log, stream));
                    match served {
                        Ok(mut child) => {
                            connections.spawn(async move { child.wait().await });
                        }
                        Err(error) => tracing::warn!("sshd: {error:#}"),
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Ok(Sshd { address, task })
}

fn serve(
    program: &Path,
    config: &Path,
    log: &Path,
    stream: tokio::net::TcpStream,
) -> Result<tokio::process::Child> {
    let stream = stream.into_std()?;
    // sshd reads and writes its socket as any blocking program does.
    stream.set_nonblocking(false)?;
    let input = OwnedFd::from(stream);
    let output = input.try_clone()?;
    Command::new(program)
        .arg("-i")
        .arg("-f")
        .arg(config)
        .arg("-E")
        .arg(log)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

async fn write_config(setup: &Setup<'_>) -> Result<PathBuf> {
    let folder = setup.folder;
    tokio::fs::create_dir_all(folder).await?;
    let host_key = folder.join("ssh_host_ed25519_key");
    let key = russh::keys::PrivateKey::random(
        &mut russh::keys::key::safe_rng(),
        russh::keys::Algorithm::Ed25519,
    )?;
    write_private(
        &host_key,
        key.to_openssh(russh::keys::ssh_key::LineEnding::LF)?
            .as_bytes(),
    )?;
    let user_ca = folder.join("user_ca.pub");
    let trusted = setup.user_ca.unwrap_or_default();
    tokio::fs::write(&user_ca, format!("{}\n", trusted.trim())).await?;
    if rustix::process::getuid().is_root() {
        // Privilege separation needs this folder; its package makes it at boot.
        tokio::fs::create_dir_all("/run/sshd")
            .await
            .context("cannot make /run/sshd")?;
    }
    let sftp = sftp_server().context("sshd is installed but its sftp-server is not")?;
    let config = folder.join("sshd_config");
    let text = format!(
        "HostKey {}\nTrustedUserCAKeys {}\nAuthorizedKeysFile {}/authorized_keys\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
         PidFile none\nLogLevel VERBOSE\nAcceptEnv LANG LC_* POSTERN_*\nMaxSessions 100\n\
         AllowAgentForwarding yes\nAllowTcpForwarding yes\nUseDNS no\nPrintMotd no\n\
         PrintLastLog no\nSubsystem sftp {}\n",
        host_key.display(),
        user_ca.display(),
        folder.display(),
        sftp.display(),
    );
    tokio::fs::write(&config, text).await?;
    let tested = Command::new(&setup.program)
        .arg("-t")
        .arg("-f")
        .arg(&config)
        .output()
        .await
        .with_context(|| format!("cannot start {}", setup.program.display()))?;
    ensure!(
        tested.status.success(),
        "sshd refuses its configuration: {}",
        String::from_utf8_lossy(&tested.stderr).trim()
    );
    Ok(config)
}

fn sftp_server() -> Option<PathBuf> {
    super::program(
        &["sftp-server"],
        &[
            "/usr/lib/openssh",
            "/usr/libexec/openssh",
            "/usr/lib/ssh",
            "/usr/libexec",
        ],
    )
}

/// Writes a file that only its owner reads.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}
