//! The real `postern-agent`, set up with its own `init` and configured as an operator would.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::{Child, Command};

use crate::account::{ACCOUNT, ATTESTATION_ROLE, BASTION_USER, REGION};
use crate::aws::Aws;
use crate::network::Network;
use crate::programs::Programs;
use crate::stack::{ECHO, Options, SSH_PORT, login_user};
use crate::targets::sshd::write_private;

const ID: &str = "bastion-1";
const AGENT_PORT: u16 = 8443;
const HEALTH_PORT: u16 = 9180;
const START: Duration = Duration::from_secs(60);
/// Longer than the agent's own drain deadline.
const STOP: Duration = Duration::from_secs(60);

/// What the agent is set up from.
pub struct AgentSetup<'a> {
    /// A folder for its files.
    pub folder: &'a Path,
    /// The real programs.
    pub programs: &'a Programs,
    /// Where hosts live.
    pub network: &'a Network,
    /// The emulated AWS.
    pub aws: &'a Aws,
    /// PEM file of its CA.
    pub aws_ca: &'a Path,
    /// The auditors' age recipients.
    pub recipients: &'a [String],
    /// What differs from the ordinary lab.
    pub options: &'a Options,
}

/// An agent that is configured but not started.
pub struct Prepared {
    /// OpenSSH public key of its SSH user CA: targets trust it.
    pub ssh_user_ca: String,
    agent: Agent,
}

/// A running agent.
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where `/readyz` and `/metrics` are.
    pub health: SocketAddr,
    /// PEM file of its server CA.
    pub ca: PathBuf,
    /// Verifier key of its audit log.
    pub log_key: String,
    /// Folder of the audit log and the recordings.
    pub audit_store: PathBuf,
    /// `agent.toml`.
    pub config: PathBuf,
    folder: PathBuf,
    program: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

/// What `postern-agent init --json` answers.
#[derive(serde::Deserialize)]
struct Initialized {
    ca: PathBuf,
    log_key: String,
    ssh_user_ca: String,
}

impl AgentSetup<'_> {
    /// Makes keys, configuration, policy and inventory.
    pub async fn prepare(self) -> Result<Prepared> {
        let folder = self.folder.to_owned();
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("agent.toml");
        let address = SocketAddr::new(self.network.bastion(), AGENT_PORT);
        let health = SocketAddr::new(self.network.bastion(), HEALTH_PORT);
        let made = self.init(&config, address).await?;
        let audit_store = self
            .options
            .audit_store
            .clone()
            .unwrap_or_else(|| folder.join("evidence"));
        std::fs::write(&config, self.settings(address, health, &audit_store)?)?;
        std::fs::write(folder.join("policy").join("lab.cedar"), self.policy()?)?;
        let agent = Agent {
            id: ID.to_owned(),
            address,
            health,
            ca: made.ca,
            log_key: made.log_key,
            audit_store,
            environment: self.environment()?,
            program: self.programs.agent.clone(),
            config,
            folder,
            child: None,
        };
        Ok(Prepared {
            ssh_user_ca: made.ssh_user_ca,
            agent,
        })
    }

    async fn init(&self, config: &Path, address: SocketAddr) -> Result<Initialized> {
        let mut command = Command::new(&self.programs.agent);
        command
            .args([
                "init",
                "--json",
                "--id",
                ID,
                "--role",
                ATTESTATION_ROLE,
                "--region",
                REGION,
            ])
            .args(["--address", &address.to_string(), "--config"])
            .arg(config)
            .stdin(Stdio::null());
        for recipient in self.recipients {
            command.args(["--recipient", recipient]);
        }
        let output = command
            .output()
            .await
            .context("cannot start postern-agent")?;
        ensure!(
            output.status.success(),
            "postern-agent init: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).context("the answer of `postern-agent init --json`")
    }

    fn settings(
        &self,
        address: SocketAddr,
        health: SocketAddr,
        audit_store: &Path,
    ) -> Result<String> {
        let endpoint = self.aws.endpoint();
        let aws_ca = self.aws_ca.display();
        let bastion: IpAddr = self.network.bastion();
        let text = toml::toml! {
            id = ID
            [certificate]
            [session]
            [limits]
        };
        let mut settings = text;
        let mut set = |path: &str, value: toml::Value| insert(&mut settings, path, value);
        // A lab that ends should not keep its user waiting.
        set("limits.drain", "1s".into())?;
        set("listen", address.to_string().into())?;
        set("health_listen", health.to_string().into())?;
        set("state", "state".into())?;
        set("sts.region", REGION.into())?;
        set("sts.endpoint_url", endpoint.clone().into())?;
        set("sts.ca_bundle", aws_ca.to_string().into())?;
        set("sts.accounts", vec![toml::Value::from(ACCOUNT)].into())?;
        set("attestation.role", ATTESTATION_ROLE.into())?;
        set("attestation.iam_endpoint_url", endpoint.clone().into())?;
        set(
            "inventory.ec2.regions",
            vec![toml::Value::from(REGION)].into(),
        )?;
        set("inventory.ec2.endpoint_url", endpoint.into())?;
        set("inventory.ec2.ca_bundle", aws_ca.to_string().into())?;
        set("dial.source_address", bastion.to_string().into())?;
        set(
            "dial.allow",
            vec![toml::Value::from(self.network.cidr())].into(),
        )?;
        set("evidence.store", audit_store.display().to_string().into())?;
        let recipients: Vec<toml::Value> = self
            .recipients
            .iter()
            .map(|recipient| recipient.as_str().into())
            .collect();
        set("evidence.recipients", recipients.into())?;
        // The lab lives in a temporary folder, which may be small.
        set("evidence.free_floor", "16MiB".into())?;
        if self.options.echo {
            let file = self.folder.join("inventory.toml");
            let address = self.network.echo();
            let entry = format!(
                "[[target]]\nname = \"{ECHO}\"\naddress = \"{address}\"\nssh_port = {SSH_PORT}\n"
            );
            std::fs::write(&file, entry)?;
            set("inventory.file", file.display().to_string().into())?;
        }
        for (path, value) in &self.options.agent {
            let value = format!("value = {value}").parse::<toml::Table>()?;
            let value = value.get("value").cloned().context("no value")?;
            set(path, value)?;
        }
        Ok(toml::to_string(&settings)?)
    }

    /// Who may do what: see the table in README.md.
    fn policy(&self) -> Result<String> {
        let key = |name: &str| {
            let user = self
                .aws
                .user(name)
                .with_context(|| format!("no user {name}"))?;
            anyhow::Ok(format!("{ACCOUNT}/{}", user.unique_id))
        };
        let policy = include_str!("policy.cedar")
            .replace("${alice}", &key("alice")?)
            .replace("${bob}", &key("bob")?)
            .replace("${carol}", &key("carol")?)
            .replace("${login}", &login_user());
        Ok(policy + self.options.policy.as_deref().unwrap_or_default())
    }

    /// The agent's own AWS identity, which an instance role gives on AWS.
    fn environment(&self) -> Result<Vec<(String, String)>> {
        let user = self
            .aws
            .user(BASTION_USER)
            .context("no user for the bastion")?;
        let credentials = self.folder.join("aws-credentials");
        let text = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            user.access_key.id, user.access_key.secret
        );
        write_private(&credentials, text.as_bytes())?;
        let empty = self.folder.join("aws-config");
        std::fs::write(&empty, "")?;
        Ok(vec![
            (
                "AWS_SHARED_CREDENTIALS_FILE".to_owned(),
                credentials.display().to_string(),
            ),
            ("AWS_CONFIG_FILE".to_owned(), empty.display().to_string()),
            ("AWS_REGION".to_owned(), REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
        ])
    }
}

fn insert(table: &mut toml::Table, path: &str, value: toml::Value) -> Result<()> {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
            Ok(())
        }
        Some((head, rest)) => {
            let inner = table
                .entry(head)
                .or_insert_with(|| toml::Table::new().into());
            insert(
                inner
                    .as_table_mut()
                    .with_context(|| format!("{head} is no section"))?,
                rest,
                value,
            )
        }
    }
}

impl Prepared {
    /// Starts it and waits until it is ready.
    pub async fn run(mut self) -> Result<Agent> {
        self.agent.start().await?;
        Ok(self.agent)
    }
}

impl Agent {
    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Another command of `postern-agent`, with the agent's own AWS identity.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.environment.iter().cloned());
        command.kill_on_drop(true);
        command
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Starts it (again) and waits until `/readyz` says so.
    pub async fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let child = self
            .command()
            .args(["run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .context("cannot start postern-agent")?;
        let child = self.child.insert(child);
        let ready = async {
            loop {
                if let Some(status) = child.try_wait()? {
                    bail!("postern-agent ended with {status}");
                }
                if is_ready(self.health).await {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(START, ready).await;
        outcome
            .context("postern-agent is not ready after a minute")
            .and_then(|ready| ready)
            .with_context(|| format!("the agent's log:\n{}", self.log().trim()))
    }

    /// SIGTERM: it drains and ends.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)?;
        self.ended().await
    }

    /// Waits for its orderly end, which somebody ordered.
    pub async fn ended(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let status = tokio::time::timeout(STOP, child.wait())
            .await
            .context("postern-agent does not end after SIGTERM")??;
        ensure!(
            status.success(),
            "postern-agent ended with {status}:\n{}",
            self.log().trim()
        );
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid
            .and_then(rustix::process::Pid::from_raw)
            .context("the agent is not running")?;
        rustix::process::kill_process(pid, signal)?;
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }
}

/// Whether `/readyz` answers 200.
async fn is_ready(health: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(health).await?;
        let request = b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        stream.take(16 * 1024).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(2), ask)
        .await
        .is_ok_and(|ready| ready.unwrap_or(false))
}
