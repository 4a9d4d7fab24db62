//! The texts that `init` writes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

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
    /// Whether this run made it.
    pub(super) offline_is_new: bool,
    pub(super) aws: &'a Path,
    pub(super) unit: &'a Path,
    pub(super) role: &'a str,
    pub(super) ca: &'a Path,
    pub(super) profile: &'a str,
    pub(super) ssh_user_ca: &'a str,
}

/// The systemd unit's file, as it is in `deploy/`.
pub(super) const UNIT_NAME: &str = "postern-agent.service";
pub(super) const UNIT: &str = include_str!("../../../deploy/postern-agent.service");
const TRUST_POLICY: &str = "attestation-role-trust.json";
const USER_POLICY: &str = "user-permissions.json";
const AGENT_POLICY: &str = "agent-permissions.json";
/// What agent.toml says of `mfa_max_age`, too.
const MFA_AGE: std::time::Duration = std::time::Duration::from_secs(12 * 3600);

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
            format!(
                "# endpoint_url = \"https://vpce-0123.sts.{}.vpce.amazonaws.com\"",
                arguments.region
            )
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

# Where targets come from: a file of hosts, EC2, or both. Without one nothing can be reached.
#
# The file is read again when it changes. One entry for each host:
#
#   [[target]]
#   name = "db-1"
#   address = "10.0.2.20"           # or a DNS name that this machine resolves
#   aliases = ["db"]
#   ssh_port = 22
#   login = "certificate"           # or "instance-connect", for an EC2 instance
#   platform = "linux"              # or "windows"
#   tags = {{ env = "prod" }}         # what policies look at
[inventory]
# file = "inventory.toml"

# EC2's running instances; the machine's own role needs ec2:DescribeInstances. `login` is how the
# agent logs in: with a certificate of its SSH user CA, which the instances trust, or with a key
# that EC2 Instance Connect pushes. Tags of an instance win for that instance:
#   postern:login      certificate, or instance-connect
#   postern:ssh-port   where its sshd listens, when not at 22
# [inventory.ec2]
# regions = [{region}]
# login = "certificate"
# refresh = "60s"
# endpoint_url = "https://vpce-0123.ec2.{plain_region}.vpce.amazonaws.com"
# ca_bundle = "aws-ca.pem"

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
# How often the agent checks that the role still demands MFA.
# interval = "1h"
# iam_endpoint_url = "https://iam.amazonaws.com"

# Client certificates. They are renewed without a prompt while the login lives.
[certificate]
# lifetime = "1h"

# Other agents whose client certificates are accepted here, and agents that are withdrawn.
[trust]
# agents = [{{ id = "bastion-2", intermediate = "bastion-2.pem" }}]
# withdrawn = []

# How targets are dialled.
[dial]
# source_address = "10.0.0.5"
# deadline = "10s"
# Loopback, link-local and the agent's own addresses are refused unless they are listed here.
# allow = []

# The audit log and recordings.
[evidence]
# Auditors' age recipients: only they can read recordings. Two or more, so that one lost key
# does not lose the recordings.
recipients = {recipients}
# store = "/var/lib/postern/evidence"
# To change the log's key, keep the old one beside it under another name and name that here: it
# signs the new one in the log, and both sign until this line is gone. Take it away once every
# client's `log_key` is the new one.
# previous_key = "audit-log-old.key"
# No session starts with less free space.
# free_floor = "1GiB"
# Recording bytes of one session, and of one principal in 24 hours.
# session_quota = "16GiB"
# principal_quota = "64GiB"
# Terminal input holds passwords.
# record_input = false
# Programs whose streams are recorded as digest, counts and first MiB instead of whole.
# bulk_programs = ["rsync", "git", "scp"]
# Recordings are deleted so long after they ended, each named in the audit log first, whose own
# entries stay. Left out, recordings are kept for ever.
# retention = "400d"

# Ceilings that keep one client from starving the rest.
[limits]
# connections = 20000
# unauthenticated = 512
# unauthenticated_per_address = 64
# enrollments = 64
# enrollments_per_address = 8
# pipes_per_principal = 2048
# sessions_per_principal = 128
# drain = "30s"

# How long a session may last, and how long it waits for a client that lost its network.
[session]
# grant = "12h"
# detach = "1h"
"#,
        id = quote(arguments.id.as_str()),
        listen = quote(&settings.listen.to_string()),
        state = quote(&arguments.state.display().to_string()),
        region = quote(&arguments.region),
        plain_region = arguments.region,
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

/// What AWS needs to know, as files: name and content.
pub(super) fn aws_policies(arguments: &InitArguments) -> [(&'static str, String); 3] {
    let role = &arguments.role;
    let partition = role.partition();
    let own = vec![role.account().clone()];
    let accounts = if arguments.account.is_empty() {
        &own
    } else {
        &arguments.account
    };
    let roots: Vec<_> = accounts
        .iter()
        .map(|account| format!("arn:{partition}:iam::{account}:root"))
        .collect();
    let instances: Vec<_> = accounts
        .iter()
        .map(|account| format!("arn:{partition}:ec2:*:{account}:instance/*"))
        .collect();
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "OnlyWithMfa",
        "Effect": "Allow",
        "Principal": { "AWS": roots },
        "Action": "sts:AssumeRole",
        "Condition": {
            "Bool": { "aws:MultiFactorAuthPresent": "true" },
            "NumericLessThan": { "aws:MultiFactorAuthAge": MFA_AGE.as_secs().to_string() },
        },
    }]});
    let users = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "ProveMfa",
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Resource": role.as_str(),
    }]});
    let agent = json!({ "Version": "2012-10-17", "Statement": [
        {
            "Sid": "ListTargets",
            "Effect": "Allow",
            "Action": "ec2:DescribeInstances",
            "Resource": "*",
        },
        {
            "Sid": "PushKeysWhereLoginIsInstanceConnect",
            "Effect": "Allow",
            "Action": "ec2-instance-connect:SendSSHPublicKey",
            "Resource": instances,
        },
        {
            "Sid": "ReadWhatTheAttestationRoleDemands",
            "Effect": "Allow",
            "Action": "iam:GetRole",
            "Resource": role.as_str(),
        },
        {
            "Sid": "TryTheAttestationRoleWithoutMfaWhichMustFail",
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Resource": role.as_str(),
        },
    ]});
    let text = |policy: &Value| format!("{policy:#}\n");
    [
        (TRUST_POLICY, text(&trust)),
        (USER_POLICY, text(&users)),
        (AGENT_POLICY, text(&agent)),
    ]
}

/// The systemd unit for the agent whose agent.toml is `config`.
pub(super) fn unit(config: &Path) -> String {
    let folder = config.parent().unwrap_or_else(|| Path::new("/"));
    let (config, folder) = (config.display().to_string(), folder.display().to_string());
    UNIT.replace("/etc/postern/agent.toml", &config)
        .replace("/etc/postern", &folder)
}

pub(super) fn summary(made: &Summary<'_>) -> String {
    format!(
        "Made {config}, with keys/, policy/, aws/{offline_too} and {UNIT_NAME} beside it.\n\
         \n\
         1. {offline_step}\n\
         2. In AWS, with the files in {aws}:\n   \
            - make the role {role} with the trust policy\n     \
              {TRUST_POLICY} and no permissions (a boundary that denies all is wise);\n   \
            - allow your users {USER_POLICY};\n   \
            - give this machine a role of its own with {AGENT_POLICY}.\n\
         3. Say in [inventory] of agent.toml where targets come from.\n\
         4. Write policies: policy/example.cedar shows how. Until then nothing is allowed.\n\
         5. On targets that log in by certificate, put this line into the file that\n   \
            `TrustedUserCAKeys` of sshd_config names:\n\
         \n\
         {ssh_user_ca}\n\
         \n\
         6. Check everything, as often as you like:\n   \
            postern-agent check --config {config}\n\
         7. Start it: `postern-agent run --config {config}`, or with systemd\n   \
            cp {unit} /etc/systemd/system/\n   \
            systemctl enable --now postern-agent\n\
         8. Give every client {ca} as the file that `ca` names,\n   \
            and this section for its config.toml:\n\
         \n\
         {profile}",
        config = made.config.display(),
        offline_too = if made.offline_is_new {
            ", offline/"
        } else {
            ""
        },
        offline_step = if made.offline_is_new {
            format!(
                "Move {} to offline storage: its README says why.",
                made.offline.display()
            )
        } else {
            format!("Move {} back to offline storage.", made.offline.display())
        },
        aws = made.aws.display(),
        unit = made.unit.display(),
        ca = made.ca.display(),
        role = made.role,
        profile = made.profile,
        ssh_user_ca = made.ssh_user_ca,
    )
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}
