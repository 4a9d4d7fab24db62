//! The texts that `init` writes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::InitArguments;

/// What goes into agent.toml.
pub(super) struct Settings<'a> {
    pub(super) arguments: &'a InitArguments,
    pub(super) listen: SocketAddr,
    pub(super) recipients: &'a [String],
    pub(super) ca_bundle: Option<PathBuf>,
}

/// What is printed for people.
pub(super) struct Summary<'a> {
    pub(super) config: &'a Path,
    pub(super) offline: &'a Path,
    pub(super) ca: &'a Path,
    pub(super) profile: &'a str,
    pub(super) ssh_user_ca: &'a str,
}

pub(super) const OFFLINE: &str = "\
Keys of the two certificate authorities that no agent needs while it runs.

server-ca.key    signs the agents' server certificates. Clients pin server-ca.pem.
client-root.key  signs each agent's own client CA (keys/client-ca.pem).

Move this folder to a medium that is kept offline, in two copies, and delete it here:
whoever holds server-ca.key can stand in for every agent, whoever holds client-root.key can
make client certificates. It is needed again

- for a further agent:       postern-agent init --offline FOLDER --id bastion-2 ...
- when a certificate of an agent nears its end (`postern-agent check` warns 30 days ahead):
  init into a new folder with --offline, then replace server.key, server.pem, client-ca.key
  and client-ca.pem in the agent's keys folder by the new ones.
";

pub(super) const POLICY: &str = r#"// Policies of this agent (Cedar). Nothing is allowed until a policy permits it, and every policy
// carries an @id, which decisions and the audit log name. The agent reads this folder again when
// a file changes; `postern-agent check` validates it.
//
// A principal is `ACCOUNT/USER-ID`: the unique id of an IAM user (AIDA...), which
// `aws iam get-user` and `postern status` show. Remove the slashes and fill in your own:
//
// @id("operators-connect")
// permit (
//   principal == Principal::"111122223333/AIDAEXAMPLEEXAMPLE1",
//   action in [Action::"connect", Action::"tunnel"],
//   resource
// );
//
// @id("developers-staging")
// permit (
//   principal == Principal::"111122223333/AIDAEXAMPLEEXAMPLE2",
//   action == Action::"connect",
//   resource
// )
// when { resource.hasTag("env") && resource.getTag("env") == "staging" && context.user == "ec2-user" };
//
// Production wants a fresh code for every session:
//
// @id("production-wants-a-fresh-code")
// forbid (principal, action in [Action::"connect", Action::"tunnel"], resource)
// when { resource.hasTag("env") && resource.getTag("env") == "production" }
// unless { context.assurance == "aws-mfa-fresh" };
//
// @id("auditors-read")
// permit (
//   principal == Principal::"111122223333/AIDAEXAMPLEEXAMPLE3",
//   action in [Action::"audit_list", Action::"audit_play", Action::"session_list"],
//   resource
// );
"#;

/// agent.toml, commented: what was chosen, and the defaults of the rest.
pub(super) fn agent_toml(settings: &Settings<'_>) -> String {
    let arguments = settings.arguments;
    let list = |values: Vec<String>| toml::Value::from(values).to_string();
    let accounts: Vec<_> = if arguments.account.is_empty() {
        vec![arguments.role.account().to_string()]
    } else {
        arguments.account.iter().map(ToString::to_string).collect()
    };
    let endpoint = match &arguments.sts_endpoint {
        Some(url) => format!("endpoint_url = {}", quote(url)),
        None => {
            "# endpoint_url = \"https://vpce-0123.sts.eu-west-1.vpce.amazonaws.com\"".to_owned()
        }
    };
    let bundle = match &settings.ca_bundle {
        Some(path) => format!("ca_bundle = {}", quote(&path.display().to_string())),
        None => "# ca_bundle = \"aws-ca.pem\"".to_owned(),
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        r#"# Settings of one Postern agent. `postern-agent check` validates them and says the fix.
# Relative paths start at this file's folder. What is commented out shows the default or a form.

# Name of this agent: in its server certificate and its audit log. Keys are made for it.
id = {id}
# Where clients connect.
listen = {listen}
# /healthz, /readyz and /metrics, in clear text: keep it on loopback or a private network.
health_listen = "127.0.0.1:9180"
# What the agent writes: pinned host keys, the audit log and recordings.
state = {state}
# Private keys and certificates. systemd credentials of the same names win.
keys = "keys"
# Cedar policies, *.cedar. Nothing is allowed until a policy permits it.
policy = "policy"
# Who may not come in any more: lines `user ACCOUNT/USERID` or `certificate SERIAL`.
deny = "deny"

# Where targets come from: a file of hosts, EC2, or both.
[inventory]
# file = "inventory.toml"

# [inventory.ec2]
# regions = [{region}]
# login = "certificate"        # or "instance-connect"
# refresh = "60s"

# The STS endpoint that attests who logs in. Nothing comes from the environment.
[sts]
region = {region}
# Accounts whose users may enrol.
accounts = {accounts}
{endpoint}
{bundle}

# The role whose trust policy demands MFA, and the age of MFA that it accepts at most.
[attestation]
role = {role}
mfa_max_age = "12h"
# interval = "1h"

[certificate]
# lifetime = "1h"

# Other agents whose client certificates are accepted here, and agents that are withdrawn.
[trust]
# agents = [{{ id = "bastion-2", intermediate = "bastion-2.pem" }}]
# withdrawn = []

[dial]
# source_address = "10.0.0.5"
# deadline = "10s"
# Loopback, link-local and the agent's own addresses are refused unless they are listed here.
# allow = []

[evidence]
# Auditors' age recipients: only they can read recordings. Two or more, so that one lost key
# does not lose the recordings.
recipients = {recipients}
# store = "/var/lib/postern/evidence"
# free_floor = "1GiB"
# session_quota = "16GiB"
# principal_quota = "64GiB"
# Terminal input holds passwords.
# record_input = false

[limits]
# connections = 20000
# unauthenticated = 512
# unauthenticated_per_address = 64
# enrollments = 64
# enrollments_per_address = 8
# pipes_per_principal = 2048
# sessions_per_principal = 128
# drain = "30s"

[session]
# grant = "12h"
# detach = "1h"
"#,
        id = quote(arguments.id.as_str()),
        listen = quote(&settings.listen.to_string()),
        state = quote(&arguments.state.display().to_string()),
        region = quote(&arguments.region),
        accounts = list(accounts),
        role = quote(arguments.role.as_str()),
        recipients = list(settings.recipients.to_vec()),
    );
    text
}

/// The section for a client's config.toml. `ca` is relative: the PEM file goes beside it.
pub(super) fn profile(arguments: &InitArguments, log_key: &str) -> String {
    format!(
        "[[agent]]\nid = {}\naddress = {}\nca = {}\nattestation_role = {}\nlog_key = {}\n",
        quote(arguments.id.as_str()),
        quote(&arguments.address),
        quote(&format!("{}-ca.pem", arguments.id)),
        quote(arguments.role.as_str()),
        quote(log_key),
    )
}

pub(super) fn summary(made: &Summary<'_>) -> String {
    format!(
        "Made {config}, with keys/, policy/ and offline/ beside it.\n\
         \n\
         1. Move {offline} to offline storage: its README says why.\n\
         2. Give every client {ca} as the file that `ca` names,\n   \
            and this section for its config.toml:\n\
         \n\
         {profile}\n\
         3. On targets that log in by certificate, put this line into the file that\n   \
            `TrustedUserCAKeys` of sshd_config names:\n\
         \n\
         {ssh_user_ca}\n\
         \n\
         4. Write policies (policy/example.cedar shows how), then run\n   \
            postern-agent check --config {config}\n",
        config = made.config.display(),
        offline = made.offline.display(),
        ca = made.ca.display(),
        profile = made.profile,
        ssh_user_ca = made.ssh_user_ca,
    )
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}
