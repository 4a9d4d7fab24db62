//! Stock clients through `postern proxy`: ssh, scp, sftp, rsync, git.

use std::path::{Path, PathBuf};

use lab::stack::{Lab, login_user};
use tokio::process::Command;

use crate::harness::{Told, lab, noise, postern, run};

/// A folder with the configuration that `postern ssh-config` prints.
struct Stock {
    folder: tempfile::TempDir,
    lab: Lab,
}

impl Stock {
    async fn new() -> Self {
        let lab = lab().await;
        let folder = tempfile::tempdir().unwrap();
        let told = postern(&lab, &["ssh-config"]).await.status(0);
        std::fs::write(folder.path().join("config"), told.out()).unwrap();
        Self { folder, lab }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        self.lab.command(program)
    }

    fn config(&self) -> String {
        self.path("config").display().to_string()
    }

    async fn ssh(&self, arguments: &[&str], input: &[u8]) -> Told {
        let mut command = self.command("ssh");
        command.args([
            "-F",
            &self.config(),
            &format!("{}@web-1.postern", login_user()),
        ]);
        run(command.args(arguments), input).await
    }
}

fn same_files(one: &Path, other: &Path, count: usize) {
    let mut seen = 0;
    for entry in std::fs::read_dir(one).unwrap() {
        let path = entry.unwrap().path();
        let copy = other.join(path.file_name().unwrap());
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&copy).unwrap(),
            "{path:?}"
        );
        seen += 1;
    }
    assert_eq!(seen, count);
}

#[tokio::test]
async fn stock_ssh_returns_the_exit_status_and_keeps_stderr_apart() {
    let stock = Stock::new().await;
    let told = stock
        .ssh(&["echo out; echo err >&2; exit 7"], b"")
        .await
        .status(7);
    assert_eq!(told.out(), "out\n");
    assert_eq!(told.stderr, "err\n");
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn stock_ssh_with_another_user_than_granted_is_refused() {
    let stock = Stock::new().await;
    let mut command = stock.command("ssh");
    // The proxy asks for the granted user; ssh then names another one.
    let proxy = format!("postern proxy {}@web-1.postern 22", login_user());
    command
        .args([
            "-F",
            &stock.config(),
            "-o",
            &format!("ProxyCommand={proxy}"),
        ])
        .args(["-l", "nobody", "web-1.postern", "true"]);
    let told = run(&mut command, b"").await;
    let told = told.status(255);
    assert_eq!(told.out(), "");
    told.says(&["the SSH user must be", "as granted"]);
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn scp_and_sftp_copy_both_ways() {
    let stock = Stock::new().await;
    let bytes = noise(16 << 20);
    std::fs::write(stock.path("one"), &bytes).unwrap();
    let remote = |name: &str| {
        format!(
            "{}@web-1.postern:{}",
            login_user(),
            stock.path(name).display()
        )
    };
    let local = |name: &str| stock.path(name).display().to_string();
    for (from, to) in [
        (local("one"), remote("two")),
        (remote("two"), local("three")),
    ] {
        let mut command = stock.command("scp");
        run(command.args(["-q", "-F", &stock.config(), &from, &to]), b"")
            .await
            .status(0);
    }
    assert!(std::fs::read(stock.path("three")).unwrap() == bytes);
    let batch = format!(
        "put {} {}\nget {} {}\n",
        local("one"),
        local("four"),
        local("four"),
        local("five")
    );
    let mut command = stock.command("sftp");
    let target = format!("{}@web-1.postern", login_user());
    run(
        command.args(["-q", "-F", &stock.config(), "-b", "-", &target]),
        batch.as_bytes(),
    )
    .await
    .status(0);
    assert!(std::fs::read(stock.path("five")).unwrap() == bytes);
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn rsync_copies_a_thousand_files() {
    let stock = Stock::new().await;
    let (from, to) = (stock.path("from"), stock.path("to"));
    std::fs::create_dir(&from).unwrap();
    for number in 0..1000 {
        std::fs::write(
            from.join(format!("{number}.txt")),
            format!("file {number}\n"),
        )
        .unwrap();
    }
    let mut command = stock.command("rsync");
    command
        .args(["-a", "-e", &format!("ssh -F {}", stock.config())])
        .arg(format!("{}/", from.display()))
        .arg(format!("{}@web-1.postern:{}", login_user(), to.display()));
    run(&mut command, b"").await.status(0);
    same_files(&from, &to, 1000);
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn git_clones() {
    let stock = Stock::new().await;
    let origin = stock.path("origin");
    std::fs::create_dir(&origin).unwrap();
    let script =
        "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one";
    let mut command = stock.command("sh");
    run(command.args(["-c", script]).current_dir(&origin), b"")
        .await
        .status(0);
    let mut command = stock.command("git");
    command
        .env("GIT_SSH_COMMAND", format!("ssh -F {}", stock.config()))
        .args(["clone", "-q"])
        .arg(format!(
            "{}@web-1.postern:{}",
            login_user(),
            origin.display()
        ))
        .arg(stock.path("clone"));
    run(&mut command, b"").await.status(0);
    assert!(stock.path("clone").join(".git").is_dir());
    stock.lab.stop().await.unwrap();
}
