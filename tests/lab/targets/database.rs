//! `db-1`: a genuine PostgreSQL that lets in its clients' hosts alone, or an echo where none is
//! installed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, JoinSet};

use super::Flavor;
use crate::network::PrivateListener;

const START: Duration = Duration::from_secs(60);

/// A running database.
pub struct Database {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is.
    pub flavor: Flavor,
    running: Running,
}

enum Running {
    Postgres(Child),
    Echo(JoinHandle<()>),
}

impl Database {
    /// PostgreSQL where it is installed, the echo elsewhere. It lets in the bastion and `neighbour`.
    pub async fn start(
        folder: &Path,
        address: SocketAddr,
        bastion: IpAddr,
        neighbour: IpAddr,
    ) -> Result<Self> {
        let (flavor, running) = match installed() {
            Some(binaries) => {
                let child = postgres(&binaries, folder, address, [bastion, neighbour]).await?;
                (Flavor::Genuine, Running::Postgres(child))
            }
            None => {
                let listener = PrivateListener::bind(address, bastion)
                    .await?
                    .letting_in(&[neighbour]);
                (Flavor::Own, Running::Echo(tokio::spawn(echo(listener))))
            }
        };
        Ok(Self {
            address,
            flavor,
            running,
        })
    }

    /// Ends it and waits.
    pub async fn stop(self) {
        match self.running {
            Running::Postgres(mut child) => {
                // SIGINT is PostgreSQL's fast shutdown: it removes its shared memory.
                if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        let _gone =
                            rustix::process::kill_process(pid, rustix::process::Signal::INT);
                    }
                    let _late = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
                }
            }
            Running::Echo(task) => task.abort(),
        }
    }
}

/// The folder of PostgreSQL's binaries, the newest version first.
fn installed() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .collect();
    versions.sort();
    versions.pop().or_else(|| {
        let initdb = super::program(&["initdb"], &[])?;
        Some(initdb.parent()?.to_owned())
    })
}

async fn postgres(
    binaries: &Path,
    folder: &Path,
    address: SocketAddr,
    clients: [IpAddr; 2],
) -> Result<Child> {
    tokio::fs::create_dir_all(folder).await?;
    let data = folder.join("data");
    let account = Account::for_servers(folder)?;
    let made = account
        .command(&binaries.join("initdb"))
        .args([
            "--auth=reject",
            "--username=postgres",
            "--no-sync",
            "--no-instructions",
            "-D",
        ])
        .arg(&data)
        .output()
        .await
        .context("cannot start initdb")?;
    ensure!(
        made.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&made.stderr).trim()
    );
    let rules = clients.map(|client| format!("host all all {client}/32 trust\n"));
    let rules = rules.concat();
    tokio::fs::write(data.join("pg_hba.conf"), rules).await?;

    let log = std::fs::File::create(folder.join("postgres.log"))?;
    let mut child = account
        .command(&binaries.join("postgres"))
        .arg("-D")
        .arg(&data)
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "-k",
            "",
            "-F",
        ])
        .args(["-c", "shared_buffers=16MB", "-c", "max_connections=50"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .context("cannot start postgres")?;
    let ready = async {
        loop {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(folder.join("postgres.log")).unwrap_or_default();
                bail!("postgres ended with {status}: {}", log.trim());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(START, ready)
        .await
        .context("postgres did not start in a minute")??;
    Ok(child)
}

/// Whom servers that refuse to be root run as.
struct Account {
    ids: Option<(u32, u32)>,
}

impl Account {
    /// The `postgres` account when we are root, else ourselves. `folder` becomes theirs.
    fn for_servers(folder: &Path) -> Result<Self> {
        if !rustix::process::getuid().is_root() {
            return Ok(Self { ids: None });
        }
        let accounts = std::fs::read_to_string("/etc/passwd")?;
        let ids = accounts
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&"postgres"))
            .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
            .context("PostgreSQL is installed, but there is no account `postgres` to run it as")?;
        std::os::unix::fs::chown(folder, Some(ids.0), Some(ids.1))?;
        Ok(Self { ids: Some(ids) })
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C");
        if let Some((user, group)) = self.ids {
            command.uid(user).gid(group);
        }
        command
    }
}

/// Answers with what it is sent, until the end of file.
async fn echo(listener: PrivateListener) {
    let mut connections = JoinSet::new();
    while let Ok(stream) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let (mut reader, mut writer) = stream.into_split();
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await
        });
    }
}
