use super::*;

const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

fn minimal() -> String {
    format!(
        "id = \"bastion-1\"\n\
         [sts]\nregion = \"eu-west-1\"\n\
         [attestation]\nrole = \"arn:aws:iam::111122223333:role/postern-attest\"\n\
         [evidence]\nrecipients = [\"{RECIPIENT}\"]\n"
    )
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/postern/agent.toml"))
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = parse(&minimal()).unwrap();
    assert_eq!(config.health_listen.to_string(), "127.0.0.1:9180");
    assert_eq!(config.keys, Path::new("/etc/postern/keys"));
    assert_eq!(
        config.evidence_store(),
        Path::new("/var/lib/postern/evidence")
    );
    assert_eq!(config.attestation.mfa_max_age.as_secs(), 43_200);
    assert_eq!(config.certificate.lifetime.as_secs(), 3600);
    assert_eq!(config.session.detach.as_secs(), 3600);
    assert_eq!(config.accounts(), ["111122223333".parse().unwrap()]);
    assert!(!config.evidence.record_input);
}

#[test]
fn an_unknown_key_names_the_nearest_right_one() {
    insta::assert_snapshot!(message(&format!("listne = \"0.0.0.0:1\"\n{}", minimal())), @r"
    /etc/postern/agent.toml:1: there is no setting `listne` here
    hint: did you mean `listen`?
    ");
    insta::assert_snapshot!(message(&format!("{}\n[evidence.x]\n", minimal())), @r"
    /etc/postern/agent.toml:9: there is no setting `x` here
    hint: the settings here are store, recipients, previous_key, free_floor, session_quota, principal_quota, record_input, bulk_programs, retention
    ");
    insta::assert_snapshot!(message(&minimal().replace("role =", "rolle =")), @r"
    /etc/postern/agent.toml:5: there is no setting `rolle` here
    hint: did you mean `role`?
    ");
}

#[test]
fn values_that_cannot_work_say_what_would() {
    let with = |extra: &str| message(&format!("{}{extra}", minimal()));
    insta::assert_snapshot!(with("[certificate]\nlifetime = \"90h\"\n"), @r"
    /etc/postern/agent.toml: `certificate.lifetime` is 90h
    hint: choose from 5m to 12h
    ");
    insta::assert_snapshot!(with("[certificate]\nlifetime = 90\n"), @"/etc/postern/agent.toml:9: invalid type: integer `90`, expected a string");
    insta::assert_snapshot!(with("[dial]\ndeadline = \"soon\"\n"), @"/etc/postern/agent.toml:9: `soon` is not a duration: expected a whole number and a unit, such as `30s`, `15m`, `12h` or `7d`");
    insta::assert_snapshot!(message(&minimal().replace("eu-west-1", "Ireland")), @r"
    /etc/postern/agent.toml: `sts.region` has `Ireland`, which is no AWS region
    hint: write it like `eu-west-1`
    ");
    insta::assert_snapshot!(message(&minimal().replace(RECIPIENT, "ssh-ed25519 AAAA")), @r"
    /etc/postern/agent.toml: `evidence.recipients` has `ssh-ed25519 AAAA`, which is no age recipient: invalid Bech32 encoding
    hint: a recipient starts with `age1`; `age-keygen` prints one
    ");
    insta::assert_snapshot!(message(&minimal().replace(&format!("\"{RECIPIENT}\""), "")), @r"
    /etc/postern/agent.toml: `evidence.recipients` is empty, so nobody could ever read a recording
    hint: list the auditors' age recipients (`age1…`), two or more
    ");
    let previous =
        message(&minimal().replace("[evidence]", "[evidence]\nprevious_key = \"../old\""));
    insta::assert_snapshot!(previous, @r#"
    /etc/postern/agent.toml: `evidence.previous_key` is `../old`, which is no name of a key
    hint: name a file of the keys folder without its path: "audit-log-old.key"
    "#);
    insta::assert_snapshot!(with("[limits]\nconnections = 0\n"), @r"
    /etc/postern/agent.toml: `limits.connections` is 0, so nobody could connect
    hint: leave it out for the default
    ");
}

#[test]
fn an_endpoint_is_https_and_nothing_more() {
    for bad in [
        "http://sts.example",
        "https://sts.example/path",
        "https://user@sts.example",
        "https://sts.example?x",
        "sts.example",
    ] {
        let text = minimal().replace("[sts]\n", &format!("[sts]\nendpoint_url = \"{bad}\"\n"));
        assert!(parse(&text).is_err(), "{bad}");
    }
    let text = minimal().replace(
        "[sts]\n",
        "[sts]\nendpoint_url = \"https://127.0.0.2:4443\"\n",
    );
    assert!(parse(&text).is_ok());
}

#[test]
fn a_missing_file_says_how_to_make_one() {
    let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    cannot read /nonexistent/agent.toml: No such file or directory (os error 2)
    hint: `postern-agent init` makes one, `--config` names another
    ");
}
