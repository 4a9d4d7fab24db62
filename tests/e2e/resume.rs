//! Sessions that survive the network: shells, tunnels and stock `rsync`, cut again and again.

use std::time::Duration;

use lab::cutter::Cutter;
use lab::forward::Forward;
use lab::stack::{DATABASE_PORT, Lab, login_user};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::harness::{PATIENCE, lab, noise, postern, run};

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
    let script = "i=0; while [ $i -lt 800 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 5";
    let mut command = stormy.postern();
    command.args(["connect", "web-1", "--", script]);
    let (told, ()) = tokio::join!(
        run(&mut command, b""),
        stormy.network.storm(1, 5, 8 * 1024, LONGEST)
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
    let bytes = noise(LENGTH);
    let copy = async |from: TcpStream, to: TcpStream| {
        let ((mut one_in, mut one_out), (mut two_in, mut two_out)) =
            (from.into_split(), to.into_split());
        let (up, down) = (
            bytes.clone(),
            bytes.iter().rev().copied().collect::<Vec<_>>(),
        );
        let (sent_up, sent_down) = (up.clone(), down.clone());
        let write_up = tokio::spawn(async move {
            one_out.write_all(&sent_up).await.unwrap();
            one_out.shutdown().await.unwrap();
        });
        let write_down = tokio::spawn(async move {
            two_out.write_all(&sent_down).await.unwrap();
            two_out.shutdown().await.unwrap();
        });
        let read_up = tokio::spawn(async move {
            let mut got = Vec::new();
            two_in.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut got = Vec::new();
        one_in.read_to_end(&mut got).await.unwrap();
        assert!(got == down, "{} of {} bytes down", got.len(), down.len());
        let got = read_up.await.unwrap();
        assert!(got == up, "{} of {} bytes up", got.len(), up.len());
        write_up.await.unwrap();
        write_down.await.unwrap();
    };
    let both = async {
        tokio::join!(
            copy(client, target),
            stormy.network.storm(2, 6, 12 << 20, LONGEST)
        )
    };
    tokio::time::timeout(PATIENCE, both)
        .await
        .expect("the copies end");
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
        stormy.network.storm(3, 5, 8 << 20, LONGEST)
    );
    told.status(0);
    assert!(std::fs::read(to.join("large")).unwrap() == bytes);
    for number in 0..200 {
        let copied = std::fs::read_to_string(to.join(format!("{number}.txt"))).unwrap();
        assert_eq!(copied, format!("file {number}\n"));
    }
    stormy.end().await;
}
