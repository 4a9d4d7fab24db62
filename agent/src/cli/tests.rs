use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::config::Config;
use crate::keys::{KeyFolder, name};

const FIRST: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from([&["postern-agent"], arguments].concat())
}

fn arguments(folder: &Path, more: &[&str]) -> InitArguments {
    let config = folder.join("agent.toml").display().to_string();
    let state = folder.join("state").display().to_string();
    let base = [
        "init",
        "--config",
        &config,
        "--state",
        &state,
        "--id",
        "bastion-1",
        "--address",
        "127.0.0.1:8443",
        "--region",
        "eu-west-1",
        "--role",
        "arn:aws:iam::111122223333:role/postern-attest",
    ];
    let Command::Init(arguments) = parse(&[&base[..], more].concat()).unwrap().command else {
        panic!("not init");
    };
    *arguments
}

fn made(folder: &Path) -> init::Made {
    init::init(&arguments(folder, &["--recipient", FIRST])).unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn init_makes_separate_keys_that_the_agent_loads() {
    let folder = tempfile::tempdir().unwrap();
    let answer = made(folder.path());
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    assert_eq!(config.listen.port(), 8443);
    let keys = Keys::load(&config).unwrap();
    let json: serde_json::Value = serde_json::from_str(&answer.json().unwrap()).unwrap();
    assert_eq!(json["log_key"], keys.log_verifier_key);
    assert_eq!(
        json["ssh_user_ca"],
        keys.ssh_user_ca.public_key().to_openssh().unwrap()
    );
    assert_eq!(
        std::fs::read_to_string(json["ca"].as_str().unwrap()).unwrap(),
        json["ca_pem"]
    );
    for name in name::PRIVATE {
        assert_eq!(
            mode(&folder.path().join("keys").join(name)),
            0o600,
            "{name}"
        );
    }
    for path in ["keys", "offline"] {
        assert_eq!(mode(&folder.path().join(path)), 0o700);
    }
    assert_eq!(mode(&folder.path().join("offline/server-ca.key")), 0o600);
    assert!(!folder.path().join("keys/server-ca.key").exists());
    assert!(
        keys.ssh_host_certificate("bastion-1", &[], 1_790_000_000)
            .is_ok()
    );
    assert!(answer.text().contains("[[agent]]\nid = \"bastion-1\""));
}

#[test]
fn init_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for existing in [
        "agent.toml",
        "keys",
        "policy",
        "offline",
        "aws",
        "postern-agent.service",
    ] {
        let path = folder.path().join(existing);
        std::fs::write(&path, "mine").unwrap();
        let error = init::init(&arguments(folder.path(), &["--recipient", FIRST])).unwrap_err();
        assert!(error.to_string().contains("hint: move it away"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn init_makes_nothing_from_settings_that_cannot_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = arguments(folder.path(), &["--recipient", "age1nonsense"]);
    assert!(init::init(&bad).is_err());
    bad = arguments(folder.path(), &["--recipient", FIRST]);
    bad.address = "no-port".to_owned();
    let error = init::init(&bad).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    `--address no-port` is not HOST:PORT
    hint: write it like `bastion.example.com:8443`
    ");
    bad = arguments(
        folder.path(),
        &["--recipient", FIRST, "--sts-endpoint", "http://clear"],
    );
    assert!(init::init(&bad).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_second_agent_is_signed_by_the_same_offline_cas() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = made(one.path());
    let offline = one.path().join("offline").display().to_string();
    let mut second = arguments(two.path(), &["--recipient", FIRST, "--offline", &offline]);
    second.id = "bastion-2".parse().unwrap();
    let second = init::init(&second).unwrap();
    let ca = |made: &init::Made| {
        let json: serde_json::Value = serde_json::from_str(&made.json().unwrap()).unwrap();
        json["ca_pem"].as_str().unwrap().to_owned()
    };
    assert_eq!(ca(&first), ca(&second));
    assert!(!two.path().join("offline").exists());
    let intermediate = |folder: &Path| {
        KeyFolder::with_credentials(&folder.join("keys"), None)
            .certificates(name::CLIENT_CA)
            .unwrap()
    };
    assert_ne!(intermediate(one.path()), intermediate(two.path()));
}

#[test]
fn a_new_auditor_identity_opens_what_its_recipient_seals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auditor.key");
    init::init(&arguments(
        folder.path(),
        &["--new-auditor", path.to_str().unwrap()],
    ))
    .unwrap();
    assert_eq!(mode(&path), 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    let secret = text
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-"))
        .unwrap();
    let identity: age::x25519::Identity = secret.parse().unwrap();
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    assert_eq!(
        config.evidence.recipients,
        [identity.to_public().to_string()]
    );
}

async fn findings(folder: &Path) -> Vec<Finding> {
    check::check(&folder.join("agent.toml"), true).await
}

fn level(findings: &[Finding], subject: &str) -> Level {
    let found = findings.iter().filter(|finding| finding.subject == subject);
    found.map(|finding| finding.level).max().unwrap()
}

/// The text with its dates made the same for every run.
fn dates(text: &str) -> String {
    let cut = |line: &str| match line.split_once("valid until ") {
        Some((before, _)) => format!("{before}valid until [date]\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(cut).collect()
}

#[tokio::test]
async fn check_passes_what_init_made_and_warns_of_what_is_left_to_do() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let mut found = findings(folder.path()).await;
    // What depends on the machine has tests of its own.
    let machine = ["listen", "health_listen", "open files", "free space"];
    found.retain(|finding| !machine.contains(&finding.subject.as_str()));
    let place = folder.path().display().to_string();
    let shown = finding::text(&found).replace(&place, "/etc/postern");
    insta::assert_snapshot!(dates(&shown));
}

#[tokio::test]
async fn check_tells_every_key_that_others_may_read() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    for name in [name::SSH_USER_CA, name::LOG_KEY] {
        let path = folder.path().join("keys").join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    std::fs::remove_file(folder.path().join("keys/server.key")).unwrap();
    let found = findings(folder.path()).await;
    let errors: Vec<_> = found.iter().filter(|f| f.level == Level::Error).collect();
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|finding| finding.hint.is_some()));
}

#[tokio::test]
async fn check_finds_a_key_that_serves_two_purposes() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let keys = folder.path().join("keys");
    std::fs::copy(keys.join(name::SSH_USER_CA), keys.join(name::SSH_HOST_CA)).unwrap();
    let found = findings(folder.path()).await;
    let shared = found
        .iter()
        .find(|finding| finding.level == Level::Error)
        .unwrap();
    insta::assert_snapshot!(shared.message, @"ssh-user-ca and ssh-host-ca hold the same key");
}

#[tokio::test]
async fn check_finds_certificates_of_another_installation() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(one.path());
    made(two.path());
    let swap = |name: &str| {
        std::fs::copy(
            two.path().join("keys").join(name),
            one.path().join("keys").join(name),
        )
        .unwrap();
    };
    swap(name::SERVER_CA);
    assert_eq!(
        level(&findings(one.path()).await, "server certificate"),
        Level::Error
    );
    swap(name::CLIENT_ROOT);
    assert_eq!(
        level(&findings(one.path()).await, "client CA"),
        Level::Error
    );
    swap(name::SERVER);
    assert_eq!(level(&findings(one.path()).await, "keys"), Level::Error);
}

#[tokio::test]
async fn check_finds_a_log_key_of_another_agent_and_a_broken_deny_list() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    std::fs::write(folder.path().join("deny"), "alice\n").unwrap();
    assert_eq!(level(&findings(folder.path()).await, "trust"), Level::Error);
    let config = folder.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("id = \"bastion-1\"", "id = \"bastion-2\""),
    )
    .unwrap();
    assert_eq!(level(&findings(folder.path()).await, "keys"), Level::Error);
}

#[tokio::test]
async fn check_of_a_broken_file_says_where() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let config = folder.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("policy = ", "policies = ")).unwrap();
    let found = findings(folder.path()).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].hint.as_deref(), Some("did you mean `policy`?"));
    assert!(
        found[0]
            .message
            .contains("agent.toml:15: there is no setting `policies`")
    );
}

#[test]
fn an_error_tells_each_cause_once_and_the_hint_last() {
    let missing = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
    insta::assert_snapshot!(told(&missing.into()), @r"
    cannot read /nonexistent/agent.toml: No such file or directory (os error 2)
    hint: `postern-agent init` makes one, `--config` names another
    ");
    let folder = tempfile::tempdir().unwrap();
    let mut bad = arguments(folder.path(), &["--recipient", FIRST]);
    bad.region = "Ireland".to_owned();
    let shown = told(&init::init(&bad).unwrap_err());
    let shown = shown.replace(&folder.path().display().to_string(), "/etc/postern");
    insta::assert_snapshot!(shown, @r"
    these settings cannot work: /etc/postern/agent.toml: `sts.region` has `Ireland`, which is no AWS region
    hint: write it like `eu-west-1`
    ");
}

#[test]
fn usage_errors_are_exit_code_2() {
    for bad in [
        &["init"][..],
        &["run", "--bogus"],
        &["init", "--id", "UPPER"],
        &[],
    ] {
        assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad:?}");
    }
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}

#[test]
fn agent_toml_as_init_writes_it() {
    let folder = Path::new("/etc/postern");
    let arguments = arguments(folder, &["--recipient", FIRST]);
    let text = template::agent_toml(&template::Settings {
        arguments: &arguments,
        listen: "0.0.0.0:8443".parse().unwrap(),
        recipients: &arguments.recipient,
        ca_bundle: None,
    });
    // What is commented out shows the default: uncommented, it must be accepted as it stands.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting)
                if setting.starts_with('[')
                    || setting.split_once(" = ").is_some_and(|(key, _)| {
                        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                    }) =>
            {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let config = Config::parse(&uncommented, &folder.join("agent.toml")).unwrap();
    assert_eq!(config.inventory.ec2.unwrap().regions, ["eu-west-1"]);
    assert_eq!(config.limits.connections, 20_000);
    assert_eq!(config.evidence.session_quota, 16 << 30);
}

#[test]
fn init_tells_the_next_steps_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let shown = made(folder.path()).text();
    let shown = shown.replace(&folder.path().display().to_string(), "/etc/postern");
    let mut masked = String::new();
    for line in shown.lines() {
        let random = line.starts_with("ssh-ed25519 ") || line.starts_with("log_key = ");
        let line = if random { "[key]" } else { line };
        masked.push_str(&format!("{line}\n"));
    }
    insta::assert_snapshot!(masked);
}

#[test]
fn the_policies_for_aws_are_what_check_demands() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join("aws").join(name)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        (text, value)
    };
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    let (trust, value) = read("attestation-role-trust.json");
    let bound = config.attestation.mfa_max_age;
    crate::identity::attestation::check_trust_policy(&trust, bound).unwrap();
    assert_eq!(
        value["Statement"][0]["Principal"]["AWS"][0],
        "arn:aws:iam::111122223333:root"
    );
    let (_, users) = read("user-permissions.json");
    assert_eq!(
        users["Statement"][0]["Resource"],
        config.attestation.role.as_str()
    );
    let (agent, _) = read("agent-permissions.json");
    for action in [
        "ec2:DescribeInstances",
        "ec2-instance-connect:SendSSHPublicKey",
        "iam:GetRole",
        "sts:AssumeRole",
    ] {
        assert!(agent.contains(action), "{action}");
    }
}

#[test]
fn the_unit_hands_over_every_key_that_the_agent_loads() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let unit = std::fs::read_to_string(folder.path().join(template::UNIT_NAME)).unwrap();
    let credentials = tempfile::tempdir().unwrap();
    for line in unit.lines() {
        let Some(credential) = line.strip_prefix("LoadCredential=") else {
            continue;
        };
        let (name, path) = credential.split_once(':').unwrap();
        assert!(path.ends_with(name), "{line}");
        std::fs::copy(path, credentials.path().join(name)).unwrap();
    }
    // Nothing but the credentials is there.
    let keys = KeyFolder::with_credentials(Path::new("/nowhere"), Some(credentials.path()));
    for name in name::PRIVATE {
        keys.private(name).unwrap();
    }
    for name in [
        name::SERVER,
        name::SERVER_CA,
        name::CLIENT_CA,
        name::CLIENT_ROOT,
    ] {
        keys.certificates(name).unwrap();
    }
    let config = folder.path().join("agent.toml");
    assert!(unit.contains(&format!("run --config {}\n", config.display())));
    assert!(!unit.contains("/etc/postern"), "{unit}");
}

/// What `check` says of a file after a change of its text.
async fn changed(folder: &Path, from: &str, to: &str) -> Vec<Finding> {
    let config = folder.join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(&config, text.replace(from, to)).unwrap();
    findings(folder).await
}

fn told_of(findings: &[Finding], subjects: &[&str], folder: &Path) -> String {
    let kept: Vec<_> = findings
        .iter()
        .filter(|finding| subjects.contains(&finding.subject.as_str()))
        .cloned()
        .collect();
    finding::text(&kept).replace(&folder.display().to_string(), "/etc/postern")
}

#[tokio::test]
async fn check_tells_each_wrong_policy_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let policy = folder.path().join("policy");
    let two = "permit (principal, action, resource);\n\n\
               @id(\"x\") permit (principal, action, resource) when { context.usr == \"root\" };\n";
    std::fs::write(policy.join("a.cedar"), two).unwrap();
    let first = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&first, &["policy"], folder.path()));
    std::fs::write(policy.join("a.cedar"), &two[two.find('@').unwrap()..]).unwrap();
    let second = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&second, &["policy"], folder.path()));
    std::fs::write(policy.join("a.cedar"), "permit (").unwrap();
    let third = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&third, &["policy"], folder.path()));
    std::fs::remove_dir_all(policy).unwrap();
    let fourth = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&fourth, &["policy"], folder.path()));
}

#[tokio::test]
async fn check_tells_what_is_wrong_with_the_inventory_file() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let hosts = folder.path().join("hosts.toml");
    let mut shown = String::new();
    for text in [
        "[[target]]\nname = \"web-1\"\naddres = \"10.0.0.1\"\n",
        "[[target]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\nlogin = \"instance-connect\"\n",
        "[[target]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\n",
    ] {
        std::fs::write(&hosts, text).unwrap();
        let found = changed(
            folder.path(),
            "[inventory]\n",
            "[inventory]\nfile = \"hosts.toml\"\n",
        )
        .await;
        shown += &told_of(&found, &["inventory"], folder.path());
        changed(folder.path(), "file = \"hosts.toml\"\n", "").await;
    }
    std::fs::remove_file(hosts).unwrap();
    let found = changed(
        folder.path(),
        "[inventory]\n",
        "[inventory]\nfile = \"hosts.toml\"\n",
    )
    .await;
    shown += &told_of(&found, &["inventory"], folder.path());
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn check_tells_where_the_agent_can_neither_listen_nor_dial_from() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    changed(
        folder.path(),
        "health_listen = \"127.0.0.1:9180\"",
        "health_listen = \"192.0.2.1:9180\"",
    )
    .await;
    let found = changed(
        folder.path(),
        "[dial]\n",
        "[dial]\nsource_address = \"192.0.2.1\"\nallow = [\"169.254.0.0/16\"]\n",
    )
    .await;
    let subjects = ["health_listen", "dial.source_address", "dial.allow"];
    insta::assert_snapshot!(told_of(&found, &subjects, folder.path()));
}

#[tokio::test]
async fn check_looks_at_the_store_and_changes_nothing_in_it() {
    use postern_proto::audit::event::Fact;

    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let subjects = ["evidence", "pinned host keys"];
    let mut shown = told_of(&findings(folder.path()).await, &subjects, folder.path());
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    let keys = Keys::load(&config).unwrap();
    let settings = crate::evidence::Settings {
        free_floor: 0,
        deadline: std::time::Duration::from_secs(60),
        ..crate::evidence::Settings::new(
            config.evidence_store(),
            config.id.clone(),
            keys.log_key.text().to_owned().into(),
            config.evidence.recipients.clone(),
        )
    };
    let (evidence, _) = crate::evidence::Evidence::open(settings).unwrap();
    for _ in 0..3 {
        let event = crate::evidence::agent_event(Fact::AttestationChecked { fault: None });
        evidence.append(event).await.unwrap();
    }
    // While it is open, and after an agent that is gone.
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    evidence.shutdown().await.unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());

    std::fs::write(folder.path().join("state/host-keys.json"), "{").unwrap();
    let entries = folder.path().join("state/evidence/tile/entries/000.p");
    std::fs::remove_file(entries.join("growing")).unwrap();
    let last = entries.join("5");
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&last, &bytes).unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    assert_eq!(std::fs::read(&last).unwrap(), bytes);

    let fresh = tempfile::tempdir().unwrap();
    made(fresh.path());
    let key = name::LOG_KEY;
    std::fs::copy(
        fresh.path().join("keys").join(key),
        folder.path().join("keys").join(key),
    )
    .unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn check_says_that_there_is_no_room_for_recordings() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let found = changed(
        folder.path(),
        "# free_floor = \"1GiB\"",
        "free_floor = \"9000000GiB\"",
    )
    .await;
    let shown = told_of(&found, &["free space"], folder.path());
    let free = shown
        .split(": ")
        .nth(1)
        .unwrap()
        .split(" MiB")
        .next()
        .unwrap();
    let place = shown
        .split(" under ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    let shown = shown.replace(free, "[free]").replace(place, "[store]");
    insta::assert_snapshot!(shown);
}
