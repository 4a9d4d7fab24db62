//! A running lab: the emulated AWS, the private hosts and the agent, started in that order and
//! ended together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::secrecy::ExposeSecret as _;
use anyhow::{Context as _, Result};

use crate::account::{self, ACCOUNT, HOSTS, REGION};
use crate::agent::{Agent, AgentSetup};
use crate::aws::{Aws, AwsConfig, Tls};
use crate::client::{self, AgentFacts, Logins};
use crate::control::Control;
use crate::network::{Network, PrivateListener};
use crate::pki::Ca;
use crate::programs::Programs;
use crate::ssm::SsmHosts;
use crate::targets::Flavor;
use crate::targets::database::Database;
use crate::targets::pushed::PushedKeys;
use crate::targets::rdp::{self, Rdp};
use crate::targets::shell::{self, Answers, Shell};
use crate::targets::sshd::{self, Keys, Sshd, write_private};

/// Where sshds of the lab listen: below 1024 would need root.
pub const SSH_PORT: u16 = 2222;
/// Where `db-1` listens.
pub const DATABASE_PORT: u16 = 5432;
/// Where `win-1` listens.
pub const RDP_PORT: u16 = 3389;
const AWS_PORT: u16 = 4443;
/// The target that [`Options::echo`] adds.
pub const ECHO: &str = "echo-1";

/// What differs from the ordinary lab.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lines for the agent's configuration, by section, over the lab's own.
    pub agent: Vec<(String, String)>,
    /// Where the audit store is, when it must be somewhere else.
    pub audit_store: Option<PathBuf>,
    /// Further Cedar policies.
    pub policy: Option<String>,
    /// Leave the database out: it takes a second or two to make.
    pub no_database: bool,
    /// A further target, [`ECHO`], in the agent's inventory file: an SSH host that runs nothing and
    /// echoes what is typed, for thousands of sessions at once.
    pub echo: bool,
}

/// A lab that runs until it is dropped (or, in order, until [`Lab::stop`]).
pub struct Lab {
    /// The emulated AWS.
    pub aws: Arc<Aws>,
    /// The agent.
    pub agent: Agent,
    /// The real programs.
    pub programs: Programs,
    /// All variables that a client needs; `AWS_PROFILE` is `alice`.
    pub environment: BTreeMap<String, String>,
    /// The auditor's age identity file.
    pub auditor_identity: PathBuf,
    /// What answers at `web-1`.
    pub web: Flavor,
    /// What answers at `db-1`.
    pub database: Option<Database>,
    /// The SSM Agents.
    pub ssm: Arc<SsmHosts>,
    /// Where faults are made from outside.
    pub control: Control,
    /// Addresses.
    pub network: Network,
    _web: WebHost,
    _win: Rdp,
    _echo: Option<Shell>,
    _logins: Logins,
    // Last: everything above writes into it.
    folder: tempfile::TempDir,
}

/// Ends `web-1` when dropped.
enum WebHost {
    Genuine(#[expect(dead_code, reason = "held for its end")] Sshd),
    Own(#[expect(dead_code, reason = "held for its end")] Shell),
}

impl Lab {
    /// Starts everything. Takes a second or two.
    pub async fn start(options: Options) -> Result<Self> {
        let programs = Programs::find()?;
        let folder = tempfile::Builder::new()
            .prefix("postern-lab-")
            .tempdir()
            .context("cannot make a folder for the lab")?;
        // Servers that give up root must pass through it.
        set_mode(folder.path(), 0o711)?;
        let network = Network::claim().await?;

        let ca = Ca::new("Postern lab AWS CA")?;
        let aws_ca = folder.path().join("aws-ca.pem");
        std::fs::write(&aws_ca, ca.pem())?;
        let aws = start_aws(&network, &ca).await?;

        let auditor_identity = folder.path().join("auditor.age");
        let recipients = make_auditors(&auditor_identity)?;
        let setup = AgentSetup {
            folder: &folder.path().join("agent"),
            programs: &programs,
            network: &network,
            aws: &aws,
            aws_ca: &aws_ca,
            recipients: &recipients,
            options: &options,
        };
        let prepared = setup.prepare().await?;

        let web_id = HOSTS.first().map_or("", |host| host.id);
        let pushed = PushedKeys::new(&aws, web_id);
        let web_address = SocketAddr::new(network.web(), SSH_PORT);
        let listener = PrivateListener::bind(web_address, network.bastion())
            .await?
            .letting_in(&[network.web()]);
        let web_folder = folder.path().join("web-1");
        let (web, web_host) = match sshd::installed() {
            Some(program) => {
                let setup = sshd::Setup {
                    program,
                    folder: &web_folder,
                    user_ca: Some(&prepared.ssh_user_ca),
                    keys: Keys::Pushed(pushed, login_user()),
                };
                (
                    Flavor::Genuine,
                    WebHost::Genuine(sshd::start(listener, setup).await?),
                )
            }
            None => {
                let shell =
                    shell::start(listener, &prepared.ssh_user_ca, pushed, Answers::Processes)?;
                (Flavor::Own, WebHost::Own(shell))
            }
        };
        let database = if options.no_database {
            None
        } else {
            let address = SocketAddr::new(network.db(), DATABASE_PORT);
            let files = folder.path().join("db-1");
            Some(Database::start(&files, address, network.bastion(), network.app()).await?)
        };
        let rdp_address = SocketAddr::new(network.win(), RDP_PORT);
        let listener = PrivateListener::bind(rdp_address, network.bastion())
            .await?
            .letting_in(&[network.app()]);
        let win = rdp::start(listener)?;
        let echo = if options.echo {
            let address = SocketAddr::new(network.echo(), SSH_PORT);
            let listener = PrivateListener::bind(address, network.bastion()).await?;
            let pushed = PushedKeys::new(&aws, ECHO);
            let ca = &prepared.ssh_user_ca;
            Some(shell::start(listener, ca, pushed, Answers::Echo)?)
        } else {
            None
        };
        let ssm = Arc::new(SsmHosts::start(&aws, &network, folder.path())?);
        let control = Control::start(network.aws(), &aws, &ssm).await?;

        let agent = prepared.run().await?;
        let environment = client::environment(
            folder.path(),
            &programs,
            &aws,
            &aws_ca,
            &AgentFacts {
                id: agent.id.clone(),
                address: agent.address.to_string(),
                ca: agent.ca.clone(),
                log_key: agent.log_key.clone(),
            },
            &auditor_identity,
        )?;
        Ok(Self {
            _logins: Logins::new(&programs, &environment),
            aws,
            agent,
            auditor_identity,
            web,
            database,
            ssm,
            control,
            network,
            _web: web_host,
            _win: win,
            _echo: echo,
            programs,
            environment,
            folder,
        })
    }

    /// The lab's folder: gone with the lab.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command with the environment of a client inside the lab.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.envs(&self.environment).kill_on_drop(true);
        command
    }

    /// `postern` as `user`.
    pub fn postern(&self, user: &str) -> tokio::process::Command {
        let mut command = self.command(&self.programs.client);
        command.env("AWS_PROFILE", user);
        command
    }

    /// Ends everything in order.
    pub async fn stop(self) -> Result<()> {
        let ended = self.agent.stop().await;
        self.control.stop().await;
        self.ssm.stop().await;
        drop(self.ssm);
        if let Some(database) = self.database {
            database.stop().await;
        }
        if let Some(aws) = Arc::into_inner(self.aws) {
            aws.stop().await;
        }
        ended
    }
}

async fn start_aws(network: &Network, ca: &Ca) -> Result<Arc<Aws>> {
    let identity = ca.server(network.aws())?;
    let tls = Tls {
        chain: identity.chain,
        key: identity.key,
    };
    let listen = SocketAddr::new(network.aws(), AWS_PORT);
    let mut config = AwsConfig::new(ACCOUNT, REGION, listen, tls);
    account::seed(&mut config, network);
    Ok(Arc::new(Aws::start(config).await?))
}

/// Two auditors: the first one's identity is the lab's to use, the second one's is thrown away.
fn make_auditors(identity_file: &Path) -> Result<Vec<String>> {
    let (first, second) = (
        age::x25519::Identity::generate(),
        age::x25519::Identity::generate(),
    );
    let text = format!("{}\n", first.to_string().expose_secret());
    write_private(identity_file, text.as_bytes())?;
    Ok(vec![
        first.to_public().to_string(),
        second.to_public().to_string(),
    ])
}

/// The account that targets are logged in to: our own, since an unprivileged sshd knows no other.
pub fn login_user() -> String {
    let own = rustix::process::getuid().as_raw().to_string();
    std::fs::read_to_string("/etc/passwd")
        .ok()
        .and_then(|accounts| {
            accounts.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)? == own).then(|| name.to_owned())
            })
        })
        .unwrap_or_else(|| "root".to_owned())
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
