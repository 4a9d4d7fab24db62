//! SSH over SSM: stock clients through `proxy`, and our own with `connect --ssh`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lab::network::PrivateListener;
use lab::stack::{Lab, login_user};
use lab::targets::sshd::{self, Keys, Setup, Sshd};
use tokio::process::Command;

use super::{all_ended, over_ssm};
use crate::harness::{PATIENCE, Told, lab, noise, run};
use crate::person::Person;

/// A lab with an sshd on app-1, and a person with a key that it takes.
struct Stock {
    lab: Lab,
    sshd: Sshd,
    home: tempfile::TempDir,
}

impl Stock {
    async fn new() -> Self {
        let lab = lab().await;
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".ssh");
        std::fs::create_dir(&folder).unwrap();
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        run(keygen.arg(folder.join("id_ed25519")), b"")
            .await
            .status(0);
        let line = std::fs::read_to_string(folder.join("id_ed25519.pub")).unwrap();
        let address = SocketAddr::new(lab.network.app(), 0);
        let setup = Setup {
            program: sshd::installed().expect("sshd is not installed; hint: run tests/setup"),
            folder: &lab.folder().join("app-1").join("sshd"),
            user_ca: None,
            keys: Keys::Fixed(line.trim().to_owned()),
        };
        let listener = PrivateListener::bind_open(address).await.unwrap();
        let sshd = sshd::start(listener, setup).await.unwrap();
        let stock = Self { lab, sshd, home };
        let config = format!(
            "Host app-1\n  User {}\n  Port {}\n  IdentityFile {}\n  UserKnownHostsFile {}\n  \
             StrictHostKeyChecking accept-new\n  ProxyCommand postern proxy --via ssm %r@%h %p\n",
            login_user(),
            stock.sshd.address.port(),
            folder.join("id_ed25519").display(),
            stock.path("stock_hosts").display(),
        );
        std::fs::write(stock.path("config"), config).unwrap();
        stock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn stock(&self, program: &str) -> Command {
        let mut command = self.lab.command(program);
        command.arg("-F").arg(self.path("config"));
        command
    }

    /// What sshd shows, in the person's known_hosts under the id of app-1.
    fn trust(&self, key_of: &Path) {
        let key = std::fs::read_to_string(key_of).unwrap();
        let id = lab::account::HOSTS
            .iter()
            .find(|host| host.name == "app-1")
            .unwrap()
            .id;
        let line = format!("[{id}]:{} {key}", self.sshd.address.port());
        std::fs::write(self.path(".ssh/known_hosts"), line).unwrap();
    }

    async fn connect(&self, flags: &[&str], command: &str, input: &[u8]) -> Told {
        let mut own = over_ssm(&self.lab);
        own.env("HOME", self.home.path())
            .env_remove("SSH_AUTH_SOCK");
        let port = self.sshd.address.port().to_string();
        own.args(["connect", "--ssh", "--port", &port]).args(flags);
        run(own.args(["app-1", "--", command]), input).await
    }

    /// The same with a person who is asked.
    fn person(&self, command: &str) -> Person {
        let port = self.sshd.address.port().to_string();
        let arguments = [
            "connect", "--via", "ssm", "--ssh", "--port", &port, "app-1", "--", command,
        ];
        Person::with(&self.lab, |postern| {
            postern
                .args(arguments)
                .env("HOME", self.home.path())
                .env_remove("SSH_AUTH_SOCK")
        })
    }

    fn host_key(&self) -> PathBuf {
        let folder = self.lab.folder().join("app-1").join("sshd");
        let public = self.path("host_key.pub");
        let made = std::process::Command::new("ssh-keygen")
            .arg("-yf")
            .arg(folder.join("ssh_host_ed25519_key"))
            .output()
            .unwrap();
        std::fs::write(&public, made.stdout).unwrap();
        public
    }
}

#[tokio::test]
async fn stock_ssh_scp_and_rsync_work_on_top() {
    let stock = Stock::new().await;
    let script = "cat; echo err >&2; exit 5";
    let told = run(stock.stock("ssh").args(["app-1", script]), b"\n").await;
    let told = told.status(5).says(&["err"]);
    assert_eq!(told.out(), "\n", "nothing but the stream");
    let bytes = noise(3 << 20);
    std::fs::write(stock.path("file"), &bytes).unwrap();
    for back in ["one", "two"] {
        let there = stock.path(&format!("there-{back}"));
        let far = format!("app-1:{}", there.display());
        let (up, down) = if back == "one" {
            let mut up = stock.stock("scp");
            up.arg("-q").arg(stock.path("file")).arg(&far);
            let mut down = stock.stock("scp");
            down.arg("-q").arg(&far).arg(stock.path(back));
            (up, down)
        } else {
            let shell = format!("ssh -F {}", stock.path("config").display());
            let mut up = stock.lab.command("rsync");
            up.args(["-e", &shell]).arg(stock.path("file")).arg(&far);
            let mut down = stock.lab.command("rsync");
            down.args(["-e", &shell]).arg(&far).arg(stock.path(back));
            (up, down)
        };
        for mut copy in [up, down] {
            run(&mut copy, b"").await.status(0);
        }
        assert!(std::fs::read(stock.path(back)).unwrap() == bytes, "{back}");
    }
    all_ended(&stock.lab.aws).await;
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn our_own_client_runs_a_command_on_a_host_whose_key_is_known() {
    let stock = Stock::new().await;
    stock.trust(&stock.host_key());
    let told = stock
        .connect(&[], "cat; echo err >&2; exit 5", b"in\n")
        .await
        .status(5)
        .says(&["err"]);
    assert_eq!(told.out(), "in\n");
    all_ended(&stock.lab.aws).await;
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_key_that_is_unknown_or_changed_is_refused_without_a_terminal() {
    let stock = Stock::new().await;
    stock
        .connect(&[], "true", b"")
        .await
        .status(255)
        .says(&["is not known", "hint:"]);
    // The person's own key stands for another host's.
    stock.trust(&stock.path(".ssh/id_ed25519.pub"));
    stock
        .connect(&[], "true", b"")
        .await
        .status(255)
        .says(&["is not the known one", "hint:"]);
    all_ended(&stock.lab.aws).await;
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_person_is_asked_about_an_unknown_host_key_once_and_about_a_changed_one_never() {
    let stock = Stock::new().await;
    let mut keygen = Command::new("ssh-keygen");
    let shown = run(keygen.arg("-lf").arg(stock.host_key()), b"").await;
    let fingerprint = shown.status(0).out().split(' ').nth(1).unwrap().to_owned();
    let known = stock.path(".ssh/known_hosts");
    // Neither a no nor an empty line is a yes, and nothing runs or is remembered.
    for answer in ["no\r", "\r", "y\r"] {
        let mut person = stock.person("echo 'per'formed");
        let question = person.sees_within(PATIENCE, "(yes/no)? ").await;
        assert!(question.contains(&fingerprint), "{question}");
        person.types(answer).await;
        let (code, said, _) = person.leaves_within(PATIENCE).await;
        assert_eq!(code, Some(255), "{said}");
        assert!(said.contains("was not accepted"), "{said}");
        assert!(!said.contains("performed") && !known.exists(), "{said}");
    }
    let mut person = stock.person("echo 'per'formed; exit 4");
    person.sees("(yes/no)? ").await;
    person.types("yes\r").await;
    person.sees("performed").await;
    assert_eq!(person.leaves().await, Some(4));
    // From now on it is known: nobody is asked.
    let (code, said, _) = stock
        .person("echo 'per'formed; exit 5")
        .leaves_within(PATIENCE)
        .await;
    assert_eq!(code, Some(5), "{said}");
    assert!(
        said.contains("performed") && !said.contains("yes/no"),
        "{said}"
    );
    // Another key than the known one is no question at all.
    stock.trust(&stock.path(".ssh/id_ed25519.pub"));
    let (code, said, _) = stock
        .person("echo 'per'formed")
        .leaves_within(PATIENCE)
        .await;
    assert_eq!(code, Some(255), "{said}");
    assert!(said.contains("is not the known one"), "{said}");
    assert!(
        !said.contains("performed") && !said.contains("yes/no"),
        "{said}"
    );
    all_ended(&stock.lab.aws).await;
    stock.lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_that_does_not_open_the_host_is_named() {
    let stock = Stock::new().await;
    stock.trust(&stock.host_key());
    let own = stock.path(".ssh/id_ed25519");
    for name in ["id_ed25519", "id_ed25519.pub"] {
        std::fs::remove_file(stock.path(".ssh").join(name)).unwrap();
    }
    stock
        .connect(&[], "true", b"")
        .await
        .status(255)
        .says(&["there is no key to show", "hint:"]);
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
    run(keygen.arg(&own), b"").await.status(0);
    stock.connect(&[], "true", b"").await.status(255).says(&[
        "none of these keys opens it",
        "id_ed25519 (SHA256:",
        "hint:",
    ]);
    stock.lab.stop().await.unwrap();
}
