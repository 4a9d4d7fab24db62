//! Sessions that survive the network: shells, tunnels and stock `rsync`, cut again and again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lab::cutter::Cutter;
use lab::forward::Forward;
use lab::stack::{DATABASE_PORT, Lab, login_user};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::harness::{PATIENCE, eventually, lab, noise, postern, run};

/// The longest outage.
const LONGEST: Duration = Duration::from_secs(3);

/// A lab whose clients reach the agent over a bad network.
struct Stormy {
    lab: Lab,
    network: Cutter,
}

impl Stormy {
    async fn new() -> Self {
        let lab = lab().await;
        let network = Cutter::start(lab.agent.address).await.unwrap();
        Self { lab, network }
    }

    fn over(&self, mut command: Command) -> Command {
        command.env("POSTERN_AGENT", self.network.address.to_string());
        command
    }

    fn postern(&self) -> Command {
        self.over(self.lab.postern("alice"))
    }

    /// Cuts, once what the command makes on the target is there: its session is granted.
    async fn storm_once(&self, made: &Path, seed: u64, count: usize, every: u64) {
        eventually("the command runs", async || made.exists().then_some(())).await;
        self.network.storm(seed, count, every, LONGEST).await;
    }

    /// The log holds, tells of the resumes, and the recordings are as the log says.
    async fn end(self) {
        let store = self.lab.agent.audit_store.display().to_string();
        let told = postern(&self.lab, &["audit", "ls", "--events", "--store", &store])
            .await
            .status(0);
        assert!(told.out().contains("resumed"), "{}", told.out());
        postern(&self.lab, &["audit", "verify", "--store", &store])
            .await
            .status(0);
        self.lab.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_shell_goes_on_through_cuts_and_its_recording_is_whole() {
    let stormy = Stormy::new().await;
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let script = format!(
        "touch {}; i=0; while [ $i -lt 800 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 5",
        started.display()
    );
    let mut command = stormy.postern();
    command.args(["connect", "web-1", "--", &script]);
    let (told, ()) = tokio::join!(
        run(&mut command, b""),
        stormy.storm_once(&started, 1, 5, 8 * 1024)
    );
    let told = told.status(5);
    let expected: String = (0..800).map(|i| format!("line {i}\n")).collect();
    assert!(told.out() == expected, "{}", told.out());

    let store = stormy.lab.agent.audit_store.display().to_string();
    let listed = postern(&stormy.lab, &["--json", "audit", "ls", "--store", &store])
        .await
        .status(0);
    let id = listed
        .out()
        .split('"')
        .find(|text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_alphanumeric()))
        .unwrap()
        .to_owned();
    let play = ["audit", "play", "--speed", "0", &id, "--store", &store];
    let played = postern(&stormy.lab, &play).await.status(0).out();
    assert!(
        played.contains("[the network "),
        "the gaps are noted: {played}"
    );
    let lines: Vec<&str> = played
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    assert_eq!(lines.len(), 800, "{played}");
    stormy.end().await;
}

async fn send(mut to: OwnedWriteHalf, bytes: Arc<Vec<u8>>) {
    to.write_all(&bytes).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn receive(mut from: OwnedReadHalf) -> Vec<u8> {
    let mut got = Vec::new();
    from.read_to_end(&mut got).await.unwrap();
    got
}

#[tokio::test]
async fn a_tunnel_copies_both_ways_through_cuts_without_losing_or_doubling_a_byte() {
    const LENGTH: usize = 64 << 20;
    let stormy = Stormy::new().await;
    // Plays the database: the bastion alone reaches it.
    let address = (stormy.lab.network.db(), DATABASE_PORT);
    let database = TcpListener::bind(address).await.unwrap();
    let forward = Forward::start(stormy.postern(), "db-1", &format!("0:{DATABASE_PORT}"))
        .await
        .unwrap();
    let client = TcpStream::connect(forward.local).await.unwrap();
    let (target, _) = database.accept().await.unwrap();
    let (up, down) = (Arc::new(noise(LENGTH)), Arc::new(noise(LENGTH + 1)));
    let ((client_in, client_out), (target_in, target_out)) =
        (client.into_split(), target.into_split());
    let both = async {
        tokio::join!(
            send(client_out, Arc::clone(&up)),
            send(target_out, Arc::clone(&down)),
            receive(target_in),
            receive(client_in),
            stormy.network.storm(2, 6, 12 << 20, LONGEST)
        )
    };
    let ((), (), got_up, got_down, ()) = tokio::time::timeout(PATIENCE, both)
        .await
        .expect("the copies end");
    assert!(got_up == *up, "{} bytes up", got_up.len());
    assert!(got_down == *down, "{} bytes down", got_down.len());
    forward.interrupt().await.unwrap();
    stormy.end().await;
}

#[tokio::test]
async fn stock_rsync_through_proxy_goes_on_through_cuts() {
    let stormy = Stormy::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = postern(&stormy.lab, &["ssh-config"]).await.status(0).out();
    std::fs::write(path("config"), config).unwrap();
    let (from, to) = (path("from"), path("to"));
    std::fs::create_dir(&from).unwrap();
    for number in 0..200 {
        std::fs::write(
            from.join(format!("{number}.txt")),
            format!("file {number}\n"),
        )
        .unwrap();
    }
    let bytes = noise(48 << 20);
    std::fs::write(from.join("large"), &bytes).unwrap();
    let mut command = stormy.over(stormy.lab.command("rsync"));
    command
        .args(["-a", "--bwlimit=16m", "-e"])
        .arg(format!("ssh -F {}", path("config").display()))
        .arg(format!("{}/", from.display()))
        .arg(format!("{}@web-1.postern:{}", login_user(), to.display()));
    let (told, ()) = tokio::join!(
        run(&mut command, b""),
        stormy.storm_once(&to, 3, 5, 8 << 20)
    );
    told.status(0);
    assert!(std::fs::read(to.join("large")).unwrap() == bytes);
    for number in 0..200 {
        let copied = std::fs::read_to_string(to.join(format!("{number}.txt"))).unwrap();
        assert_eq!(copied, format!("file {number}\n"));
    }
    stormy.end().await;
}
