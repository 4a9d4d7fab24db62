//! The environment of clients inside the lab: what a person's machine would hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use serde::Serialize;

use crate::account::{ACCOUNT, ATTESTATION_ROLE, PEOPLE, REGION};
use crate::aws::Aws;
use crate::programs::Programs;
use crate::targets::sshd::write_private;

/// What a client must know of the agent.
#[derive(Debug, Clone)]
pub struct AgentFacts {
    /// Its id.
    pub id: String,
    /// `address:port`.
    pub address: String,
    /// PEM file of its server CA.
    pub ca: PathBuf,
    /// Verifier key of its audit log.
    pub log_key: String,
}

/// Ends all logins inside the lab when dropped: their keys are in the kernel's keyring, which
/// outlives the lab's folder and has a quota.
pub(crate) struct Logins(Command);

impl Logins {
    pub(crate) fn new(programs: &Programs, environment: &BTreeMap<String, String>) -> Self {
        let mut logout = Command::new(&programs.client);
        logout
            .args(["logout", "--all"])
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(logout)
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        // What stays nevertheless ends with its time.
        drop(self.0.status());
    }
}

/// A person's keys, for `--serve`.
#[derive(Debug, Clone, Serialize)]
pub struct PersonFacts {
    /// AWS profile.
    pub profile: String,
    /// ARN of the MFA device.
    pub mfa_serial: String,
    /// Base32 seed.
    pub totp_secret: String,
    /// Long-term key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
}

/// Everybody's keys by name.
pub fn people(aws: &Aws) -> BTreeMap<String, PersonFacts> {
    PEOPLE
        .iter()
        .filter_map(|person| {
            let user = aws.user(person.name)?;
            let facts = PersonFacts {
                profile: person.name.to_owned(),
                mfa_serial: aws.mfa_serial(person.name),
                totp_secret: person.totp_secret.to_owned(),
                access_key_id: user.access_key.id,
                secret_access_key: user.access_key.secret,
            };
            Some((person.name.to_owned(), facts))
        })
        .collect()
}

/// Writes the AWS files and answers all variables that a client needs.
pub fn environment(
    folder: &Path,
    programs: &Programs,
    aws: &Aws,
    aws_ca: &Path,
    agent: &AgentFacts,
    auditor_identity: &Path,
) -> Result<BTreeMap<String, String>> {
    let aws_folder = folder.join("aws");
    std::fs::create_dir_all(&aws_folder)?;
    let (config, credentials) = (aws_folder.join("config"), aws_folder.join("credentials"));
    write_private(&config, profiles(programs, aws, aws_ca).as_bytes())?;
    let keys: String = people(aws)
        .values()
        .map(|person| {
            format!(
                "[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n\n",
                person.profile, person.access_key_id, person.secret_access_key
            )
        })
        .collect();
    write_private(&credentials, keys.as_bytes())?;

    let path = std::env::var("PATH").unwrap_or_default();
    let shown = |path: &Path| path.display().to_string();
    let variables = [
        ("PATH", format!("{}:{path}", shown(&programs.folder))),
        ("AWS_PROFILE", "alice".to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_CONFIG_FILE", shown(&config)),
        ("AWS_SHARED_CREDENTIALS_FILE", shown(&credentials)),
        ("AWS_ENDPOINT_URL", aws.endpoint()),
        ("AWS_CA_BUNDLE", shown(aws_ca)),
        // For programs that know no bundle of AWS's, such as session-manager-plugin.
        ("SSL_CERT_FILE", shown(aws_ca)),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("AWS_PAGER", String::new()),
        ("POSTERN_AGENT", agent.address.clone()),
        ("POSTERN_AGENT_ID", agent.id.clone()),
        ("POSTERN_AGENT_CA", shown(&agent.ca)),
        ("POSTERN_LOG_KEY", agent.log_key.clone()),
        ("POSTERN_ATTESTATION_ROLE", ATTESTATION_ROLE.to_owned()),
        ("POSTERN_USER", crate::stack::login_user()),
        ("POSTERN_STATE", shown(&folder.join("state"))),
        ("POSTERN_CONFIG", shown(&folder.join("config.toml"))),
        ("POSTERN_KEYRING", "kernel".to_owned()),
        ("POSTERN_AUDITOR_IDENTITY", shown(auditor_identity)),
        ("POSTERN_AUDITORS", recipients_of(auditor_identity)?),
    ];
    std::fs::write(
        folder.join("config.toml"),
        "# The lab sets everything in the environment.\n",
    )?;
    Ok(variables
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}

/// The recipients of the identities in a file.
fn recipients_of(identities: &Path) -> Result<String> {
    let text = std::fs::read_to_string(identities)?;
    let keys = text.lines().filter(|line| !line.starts_with('#'));
    let recipients = keys
        .map(|key| key.parse::<age::x25519::Identity>())
        .map(|key| key.map(|key| key.to_public().to_string()))
        .collect::<Result<Vec<_>, _>>();
    Ok(recipients.map_err(anyhow::Error::msg)?.join(","))
}

fn profiles(programs: &Programs, aws: &Aws, aws_ca: &Path) -> String {
    PEOPLE
        .iter()
        .map(|person| {
            format!(
                "[profile {name}]\nregion = {REGION}\nendpoint_url = {endpoint}\n\
                 ca_bundle = {ca}\nmfa_serial = arn:aws:iam::{ACCOUNT}:mfa/{name}\n\
                 mfa_process = {lab} totp {name}\n\n",
                name = person.name,
                endpoint = aws.endpoint(),
                ca = aws_ca.display(),
                lab = programs.lab.display(),
            )
        })
        .collect()
}
