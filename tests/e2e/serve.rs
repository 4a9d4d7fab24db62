//! `lab --serve`: one line of JSON, with which ordinary clients work.

use std::process::Stdio;

use lab::programs::Programs;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::aws::python;
use crate::harness::{PATIENCE, Told, run};

/// A running `lab --serve`.
struct Served {
    child: Child,
    said: Value,
}

impl Served {
    async fn start() -> Self {
        let lab = Programs::find().unwrap().lab;
        let mut child = Command::new(lab)
            .arg("--serve")
            // As a person starts it: cargo would have it build first.
            .env_remove("CARGO")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("a line in time").unwrap().expect("a line");
        let said = serde_json::from_str(&line).expect(&line);
        Self { child, said }
    }

    /// A command with the environment that was told, and nothing else of ours.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", "/nonexistent");
        for (name, value) in self.said["env"].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
        command
    }

    async fn aws(&self, profile: &str, arguments: &[&str]) -> Value {
        let mut command = self.command(python());
        command
            .args(["-m", "awscli", "--output", "json"])
            .args(arguments)
            .env("AWS_PROFILE", profile);
        let told = run(&mut command, b"").await.status(0);
        serde_json::from_slice(&told.stdout).unwrap()
    }

    async fn postern(&self, profile: &str, arguments: &[&str]) -> Told {
        let mut command = self.command("postern");
        command.args(arguments).env("AWS_PROFILE", profile);
        run(&mut command, b"").await
    }

    /// SIGTERM, as a script ends it.
    async fn stop(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("it ends").unwrap();
        assert!(status.success(), "`lab --serve` ended with {status}");
    }
}

#[tokio::test]
async fn its_line_holds_what_clients_need() {
    let served = Served::start().await;
    let said = &served.said;
    for user in ["alice", "bob", "carol"] {
        for key in [
            "profile",
            "mfa_serial",
            "totp_secret",
            "access_key_id",
            "secret_access_key",
        ] {
            assert!(said["users"][user][key].is_string(), "{user} {key}");
        }
    }
    for key in ["address", "ca", "audit_store", "auditor_identity", "config"] {
        assert!(said["agent"][key].is_string(), "{key}");
    }
    assert!(said["agent"]["pid"].is_u64());
    assert!(said["ssm"]["gateway"].is_string() && said["targets"]["app-1"]["managed"] == true);
    for target in ["web-1", "app-1", "db-1", "win-1", "bastion-1"] {
        let facts = &said["targets"][target];
        assert!(facts["id"].as_str().unwrap().starts_with("i-"), "{target}");
        assert!(facts["address"].is_string() && facts["ssh_port"].is_u64());
    }
    // Faults are made from outside.
    let script = "import json, sys, urllib.request as u\n\
        url = sys.argv[1] + '/knobs'\n\
        kind = {'content-type': 'application/json'}\n\
        u.urlopen(u.Request(url, b'{\"agent_version\": \"3.0.100.0\"}', kind, method='PATCH'))\n\
        print(json.load(u.urlopen(url))['agent_version'])";
    let mut levers = served.command(python());
    levers.args(["-c", script, said["control"].as_str().unwrap()]);
    let told = run(&mut levers, b"").await.status(0);
    assert_eq!(told.out(), "3.0.100.0\n");
    for (name, _) in said["env"].as_object().unwrap() {
        let known = ["AWS_", "POSTERN_", "SSL_CERT_FILE"];
        assert!(
            name == "PATH" || known.iter().any(|prefix| name.starts_with(prefix)),
            "{name}"
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn the_aws_command_boto3_and_ssh_work_with_its_environment() {
    let served = Served::start().await;
    for user in ["alice", "bob"] {
        let who = served.aws(user, &["sts", "get-caller-identity"]).await;
        let arn = format!("arn:aws:iam::111122223333:user/{user}");
        assert_eq!(who["Arn"], arn.as_str());
    }
    let filter = ["--filters", "Name=tag:Name,Values=web-1"];
    let found = [&["ec2", "describe-instances"][..], &filter].concat();
    let found = served.aws("alice", &found).await;
    let instance = &found["Reservations"][0]["Instances"][0];
    assert_eq!(
        instance["InstanceId"],
        served.said["targets"]["web-1"]["id"]
    );
    let address = &served.said["targets"]["web-1"]["address"];
    assert_eq!(&instance["PrivateIpAddress"], address);

    let script = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    let mut boto = served.command(python());
    let told = run(boto.args(["-c", script]), b"").await.status(0);
    assert!(
        told.out().trim_end().ends_with("user/alice"),
        "{}",
        told.out()
    );

    served.postern("alice", &["login"]).await.status(0);
    let config = served.postern("alice", &["ssh-config"]).await.status(0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.out()).unwrap();
    let mut ssh = served.command("ssh");
    ssh.arg("-F").arg(file.path());
    let told = run(ssh.args(["web-1.postern", "echo in; exit 7"]), b"").await;
    assert_eq!(told.status(7).out(), "in\n");

    // Somebody else is somebody else: not logged in, and allowed less.
    served.postern("bob", &["ls"]).await.status(4);
    served.postern("bob", &["login"]).await.status(0);
    served
        .postern("bob", &["connect", "db-1", "--", "true"])
        .await
        .status(255)
        .says(&["db-1"]);
    served.stop().await;
}

#[tokio::test]
async fn a_command_inside_is_logged_in_without_a_terminal() {
    let mut command = Command::new(Programs::find().unwrap().lab);
    command
        .args(["postern", "connect", "app-1", "--"])
        .args(["sh", "-c", "echo out; echo err >&2; exit 5"])
        .env_remove("CARGO");
    let told = run(&mut command, b"").await.status(5);
    // One stream: what AWS's document for commands carries.
    assert_eq!(told.out(), "out\nerr\n");
}
