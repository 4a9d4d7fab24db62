//! What `init` makes.

use super::*;

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
