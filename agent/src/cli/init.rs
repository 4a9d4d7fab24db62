//! `postern-agent init`: five separate keys, their certificates, agent.toml, an example policy.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use postern_proto::names::{AccountId, AgentId};
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::template::{self, Settings};
use crate::ca::x509::{Authority, Purpose};
use crate::ca::{log, ssh};
use crate::config::{Config, DEFAULT_PATH, RoleArn};
use crate::keys::{KeyFolder, name};

/// Files in the offline folder.
const SERVER_CA_KEY: &str = "server-ca.key";
const CLIENT_ROOT_KEY: &str = "client-root.key";

/// What `init` needs to know. It asks nothing.
#[derive(Debug, clap::Args)]
pub struct InitArguments {
    /// Where agent.toml goes; keys/, policy/, aws/, offline/ and a systemd unit go beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The agent's id, such as `bastion-1`
    #[arg(long)]
    pub id: AgentId,
    /// What clients dial
    #[arg(long, value_name = "HOST:PORT")]
    pub address: String,
    /// ARN of the attestation role
    #[arg(long, value_name = "ARN")]
    pub role: RoleArn,
    /// AWS region of STS
    #[arg(long)]
    pub region: String,
    /// An auditor's age recipient (`age1…`); give two or more
    #[arg(long, value_name = "AGE", required_unless_present = "new_auditor")]
    pub recipient: Vec<String>,
    /// Make an auditor's age identity in this file, and use its recipient
    #[arg(long, value_name = "FILE")]
    pub new_auditor: Option<PathBuf>,
    /// Where the agent listens; by default every address, at the port of --address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<std::net::SocketAddr>,
    /// What the agent itself writes
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/postern")]
    pub state: PathBuf,
    /// An account whose users may enrol; by default the role's
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Vec<AccountId>,
    /// `https://HOST[:PORT]` of an STS endpoint other than the region's
    #[arg(long, value_name = "URL")]
    pub sts_endpoint: Option<String>,
    /// PEM file of the CAs of AWS endpoints
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// Use the CAs in the offline/ folder of an earlier init, for a further agent
    #[arg(long, value_name = "FOLDER")]
    pub offline: Option<PathBuf>,
    /// Answer as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What was made, and what clients need.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    id: String,
    address: String,
    attestation_role: String,
    /// PEM file of the server CA.
    ca: PathBuf,
    ca_pem: String,
    log_key: String,
    /// For targets: `TrustedUserCAKeys`.
    ssh_user_ca: String,
    /// For clients' `known_hosts`: `@cert-authority *.postern`.
    ssh_host_ca: String,
    config: PathBuf,
    offline: PathBuf,
    #[serde(skip)]
    offline_is_new: bool,
    /// IAM policies to put in place.
    aws: PathBuf,
    /// The systemd unit.
    unit: PathBuf,
    /// The section for a client's config.toml.
    profile: String,
}

/// The CAs that are kept offline.
struct Offline {
    server_ca: Authority,
    client_root: Authority,
    /// Whether this run made them.
    new: bool,
}

/// Makes everything, or nothing that is not there already.
pub(super) fn init(arguments: &InitArguments) -> anyhow::Result<Made> {
    let config_path = std::path::absolute(&arguments.config)?;
    let folder = config_path
        .parent()
        .unwrap_or_else(|| Path::new("/"))
        .to_owned();
    let [keys, policy, aws, unit, offline_folder] =
        ["keys", "policy", "aws", template::UNIT_NAME, "offline"].map(|name| folder.join(name));
    let port = port_of(&arguments.address)?;
    let listen = arguments
        .listen
        .unwrap_or_else(|| ([0, 0, 0, 0], port).into());
    let mut fresh = vec![&config_path, &keys, &policy, &aws, &unit];
    if arguments.offline.is_none() {
        fresh.push(&offline_folder);
    }
    for path in fresh.into_iter().chain(&arguments.new_auditor) {
        if path.symlink_metadata().is_ok() {
            bail!(
                "{} exists, and init overwrites nothing\n\
                 hint: move it away, or name another place with --config",
                path.display()
            );
        }
    }

    let auditor = arguments
        .new_auditor
        .as_ref()
        .map(|path| (path, age::x25519::Identity::generate()));
    let made_recipient = auditor
        .iter()
        .map(|(_, identity)| identity.to_public().to_string());
    let recipients: Vec<_> = arguments
        .recipient
        .iter()
        .cloned()
        .chain(made_recipient)
        .collect();
    let text = template::agent_toml(&Settings {
        arguments,
        listen,
        recipients: &recipients,
        ca_bundle: arguments
            .ca_bundle
            .as_deref()
            .map(std::path::absolute)
            .transpose()?,
    });
    // What is written must be what the agent accepts; find out before anything is made.
    Config::parse(&text, &config_path).context("these settings cannot work")?;

    let now = OffsetDateTime::now_utc().unix_timestamp();
    let offline = match &arguments.offline {
        Some(folder) => Offline::load(folder)?,
        None => Offline::make(now)?,
    };
    make_folder(&folder, 0o755)?;
    make_folder(&keys, 0o700)?;
    let made = make_keys(&keys, &offline, &arguments.id, now)?;
    if offline.new {
        offline.save(&offline_folder)?;
    }
    make_folder(&policy, 0o755)?;
    write(
        &policy.join("example.cedar"),
        template::POLICY.as_bytes(),
        0o644,
    )?;
    if let Some((path, identity)) = auditor {
        use age::secrecy::ExposeSecret as _;
        let secret = identity.to_string();
        let text = Zeroizing::new(format!(
            "# recipient: {}\n{}\n",
            identity.to_public(),
            secret.expose_secret()
        ));
        write(path, text.as_bytes(), 0o600)?;
    }
    make_folder(&aws, 0o755)?;
    for (name, text) in template::aws_policies(arguments) {
        write(&aws.join(name), text.as_bytes(), 0o644)?;
    }
    write(&unit, template::unit(&config_path).as_bytes(), 0o644)?;
    // Last, so that a half-made folder is not taken for a whole one.
    write(&config_path, text.as_bytes(), 0o644)?;

    let ca = keys.join(name::SERVER_CA);
    Ok(Made {
        id: arguments.id.to_string(),
        address: arguments.address.clone(),
        attestation_role: arguments.role.to_string(),
        ca_pem: offline.server_ca.certificate_pem(),
        profile: template::profile(arguments, &made.log_key),
        log_key: made.log_key,
        ssh_user_ca: made.ssh_user_ca,
        ssh_host_ca: made.ssh_host_ca,
        ca,
        config: config_path,
        offline_is_new: offline.new,
        offline: arguments.offline.clone().unwrap_or(offline_folder),
        aws,
        unit,
    })
}

impl Made {
    pub(super) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    pub(super) fn text(&self) -> String {
        template::summary(&template::Summary {
            config: &self.config,
            offline: &self.offline,
            offline_is_new: self.offline_is_new,
            aws: &self.aws,
            unit: &self.unit,
            role: &self.attestation_role,
            ca: &self.ca,
            profile: &self.profile,
            ssh_user_ca: &self.ssh_user_ca,
        })
    }
}

/// Public halves of what was made.
struct MadeKeys {
    log_key: String,
    ssh_user_ca: String,
    ssh_host_ca: String,
}

fn make_keys(keys: &Path, offline: &Offline, id: &AgentId, now: i64) -> anyhow::Result<MadeKeys> {
    let put = |name: &str, text: &str, mode| write(&keys.join(name), text.as_bytes(), mode);
    let (server, server_key) = offline.server_ca.server_certificate(id, now)?;
    put(name::SERVER_KEY, &server_key, 0o600)?;
    put(
        name::SERVER,
        &crate::ca::certificates_to_pem(&[server]),
        0o644,
    )?;
    put(name::SERVER_CA, &offline.server_ca.certificate_pem(), 0o644)?;

    let client_ca = offline.client_root.intermediate(id, now)?;
    put(name::CLIENT_CA_KEY, &client_ca.key_pem(), 0o600)?;
    put(name::CLIENT_CA, &client_ca.certificate_pem(), 0o644)?;
    put(
        name::CLIENT_ROOT,
        &offline.client_root.certificate_pem(),
        0o644,
    )?;

    let make_ssh = |file: &str, comment: String| {
        let key = ssh::generate(&comment)?;
        put(file, &ssh::to_openssh(&key)?, 0o600)?;
        let public = key.public_key().to_openssh()?;
        put(&format!("{file}.pub"), &format!("{public}\n"), 0o644)?;
        anyhow::Ok(public)
    };
    let ssh_user_ca = make_ssh(name::SSH_USER_CA, format!("postern user CA of {id}"))?;
    let ssh_host_ca = make_ssh(name::SSH_HOST_CA, format!("postern host CA of {id}"))?;
    make_ssh(name::SSH_HOST_KEY, format!("postern host key of {id}"))?;

    let (signer, log_key) = log::generate(id)?;
    put(name::LOG_KEY, &signer, 0o600)?;
    put(name::LOG_PUBLIC, &format!("{log_key}\n"), 0o644)?;
    Ok(MadeKeys {
        log_key,
        ssh_user_ca,
        ssh_host_ca,
    })
}

impl Offline {
    fn make(now: i64) -> anyhow::Result<Self> {
        // A random part keeps the names of two installations apart.
        let mark = hex::encode(crate::ca::random::<4>()?);
        let root = |purpose, what| Authority::root(purpose, &format!("Postern {what} {mark}"), now);
        Ok(Self {
            server_ca: root(Purpose::Server, "server CA")?,
            client_root: root(Purpose::Client, "client CA root")?,
            new: true,
        })
    }

    fn load(folder: &Path) -> anyhow::Result<Self> {
        let files = KeyFolder::with_credentials(folder, None);
        let read = |certificate: &str, key: &str| {
            let pem = files.public(certificate)?;
            let key = files.private(key)?;
            Authority::from_pem(&pem, key.text())
                .with_context(|| format!("cannot use the CA in {}", folder.display()))
        };
        Ok(Self {
            server_ca: read(name::SERVER_CA, SERVER_CA_KEY)?,
            client_root: read(name::CLIENT_ROOT, CLIENT_ROOT_KEY)?,
            new: false,
        })
    }

    fn save(&self, folder: &Path) -> anyhow::Result<()> {
        make_folder(folder, 0o700)?;
        let put = |name: &str, text: &str, mode| write(&folder.join(name), text.as_bytes(), mode);
        put(SERVER_CA_KEY, &self.server_ca.key_pem(), 0o600)?;
        put(name::SERVER_CA, &self.server_ca.certificate_pem(), 0o644)?;
        put(CLIENT_ROOT_KEY, &self.client_root.key_pem(), 0o600)?;
        put(
            name::CLIENT_ROOT,
            &self.client_root.certificate_pem(),
            0o644,
        )?;
        put("README", template::OFFLINE, 0o644)
    }
}

fn port_of(address: &str) -> anyhow::Result<u16> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port != 0 => Ok(port),
        _ => bail!(
            "`--address {address}` is not HOST:PORT\nhint: write it like `bastion.example.com:8443`"
        ),
    }
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a new file with exactly this mode, and refuses to touch one that exists.
fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let made = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // The umask may have taken bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    made().with_context(|| format!("cannot write {}", path.display()))
}
