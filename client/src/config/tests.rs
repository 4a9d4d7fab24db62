use super::*;

const CA: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
const ROLE: &str = "arn:aws:iam::111122223333:role/attest";

struct Home(tempfile::TempDir);

impl Home {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join(".config/postern")).unwrap();
        std::fs::write(folder.path().join(".config/postern/config.toml"), config).unwrap();
        std::fs::write(folder.path().join(".config/postern/ca.pem"), CA).unwrap();
        Self(folder)
    }

    fn load(&self, more: &[(&str, &str)], global: &GlobalArgs) -> Result<Settings, ConfigError> {
        let home = self.0.path().to_str().unwrap();
        let environment: Environment = [("HOME", home)]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        Settings::load(global, &environment)
    }
}

fn section(id: &str) -> String {
    format!(
        "[[agent]]\nid = \"{id}\"\naddress = \"bastion.example.com:8443\"\nca = \"ca.pem\"\n\
         attestation_role = \"{ROLE}\"\nlog_key = \"{id}+00000000+key\"\n"
    )
}

#[test]
fn flags_come_before_variables_and_variables_before_the_file() {
    let home = Home::new("profile = \"file\"\nuser = \"file\"\nkeyring = \"file\"\n");
    let none = GlobalArgs::default();
    let settings = home.load(&[], &none).unwrap();
    assert_eq!(settings.profile, "file");
    assert_eq!(settings.login_user.as_deref(), Some("file"));
    assert_eq!(settings.keyring, KeyringChoice::File);
    assert!(!settings.profile_named);
    let variables = [
        ("AWS_PROFILE", "variable"),
        ("POSTERN_USER", "variable"),
        ("POSTERN_KEYRING", "kernel"),
        ("POSTERN_MFA_CODE", "123456"),
    ];
    let settings = home.load(&variables, &none).unwrap();
    assert_eq!(settings.profile, "variable");
    assert_eq!(settings.login_user.as_deref(), Some("variable"));
    assert_eq!(settings.keyring, KeyringChoice::Kernel);
    assert!(!format!("{settings:?}").contains("123456"));
    let flag = GlobalArgs {
        profile: Some("flag".to_owned()),
        ..GlobalArgs::default()
    };
    let settings = home.load(&variables, &flag).unwrap();
    assert_eq!(settings.profile, "flag");
    assert!(settings.profile_named);
}

#[test]
fn without_anything_there_are_defaults() {
    let home = Home::new("");
    let settings = home.load(&[], &GlobalArgs::default()).unwrap();
    assert_eq!(settings.profile, "default");
    assert_eq!(settings.keyring, KeyringChoice::Auto);
    assert_eq!(settings.state, home.0.path().join(".local/state/postern"));
    assert_eq!(settings.evidence, settings.state.join("evidence"));
    assert!(settings.agents.is_empty());
    let empty = Environment::default();
    let error = Settings::load(&GlobalArgs::default(), &empty).unwrap_err();
    assert_eq!(error, ConfigError::NoHome);
}

#[test]
fn agents_keep_their_order_and_paths_start_at_the_file() {
    let home = Home::new(&format!(
        "audit_store = \"~/audit\"\nauditor_identity = \"auditor.key\"\n{}{}",
        section("bastion-2"),
        section("bastion-1")
    ));
    let settings = home.load(&[], &GlobalArgs::default()).unwrap();
    let ids: Vec<_> = settings
        .agents
        .iter()
        .map(|agent| agent.id.as_str())
        .collect();
    assert_eq!(ids, ["bastion-2", "bastion-1"]);
    assert_eq!(settings.agents[0].ca, CA.as_bytes());
    assert_eq!(settings.audit_store, Some(home.0.path().join("audit")));
    assert_eq!(
        settings.auditor_identity,
        Some(home.0.path().join(".config/postern/auditor.key"))
    );
}

#[test]
fn an_agent_of_the_environment_is_the_only_one() {
    let home = Home::new(&section("bastion-2"));
    let ca = home.0.path().join(".config/postern/ca.pem");
    let all = [
        ("POSTERN_AGENT", "127.0.0.1:8443"),
        ("POSTERN_AGENT_ID", "bastion-1"),
        ("POSTERN_AGENT_CA", ca.to_str().unwrap()),
        ("POSTERN_ATTESTATION_ROLE", ROLE),
        ("POSTERN_LOG_KEY", "key"),
        ("POSTERN_STS_HOST", "sts.lab:1"),
    ];
    let settings = home.load(&all, &GlobalArgs::default()).unwrap();
    assert_eq!(settings.agents.len(), 1);
    assert_eq!(settings.agents[0].id.as_str(), "bastion-1");
    assert_eq!(settings.agents[0].sts_host.as_deref(), Some("sts.lab:1"));
    for missing in 1..5 {
        let mut some = all.to_vec();
        let (name, _) = some.remove(missing);
        let error = home.load(&some, &GlobalArgs::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("POSTERN_AGENT is set, but {name} is not")
        );
    }
}

#[test]
fn only_roles_of_an_account_are_attestation_roles() {
    for good in [ROLE, "arn:aws-cn:iam::111122223333:role/path/attest"] {
        assert!(is_role_arn(good), "{good}");
    }
    for bad in [
        "",
        "arn:aws:iam::111122223333:user/x",
        "arn:aws:iam::11112222333:role/x",
        "arn:aws:sts::111122223333:role/x",
        "arn:aws:iam::111122223333:role/",
        "arn:aws:iam::111122223333:role/a b",
        "arn:gcp:iam::111122223333:role/x",
    ] {
        assert!(!is_role_arn(bad), "{bad}");
    }
}

#[test]
fn every_variable_is_in_the_table_once() {
    let mut names = variable::ALL.to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), variable::ALL.len());
    assert!(names.iter().all(|name| name.starts_with("POSTERN_")));
}

#[test]
fn evidence_of_the_client_has_a_place_and_auditors() {
    let auditor = age::x25519::Identity::generate().to_public();
    let home = Home::new(&format!(
        "evidence = \"proof\"\nauditors = [\"{auditor}\"]\n"
    ));
    let settings = home.load(&[], &GlobalArgs::default()).unwrap();
    assert_eq!(
        settings.evidence,
        home.0.path().join(".config/postern/proof")
    );
    assert_eq!(settings.auditors, [auditor.to_string()]);
    let elsewhere = [("POSTERN_EVIDENCE", "/elsewhere")];
    let settings = home.load(&elsewhere, &GlobalArgs::default()).unwrap();
    assert_eq!(settings.evidence, Path::new("/elsewhere"));
    let two = format!("{auditor}, {auditor}");
    let named = [("POSTERN_AUDITORS", two.as_str())];
    let settings = home.load(&named, &GlobalArgs::default()).unwrap();
    assert_eq!(settings.auditors.len(), 2);
    let home = Home::new("auditors = [\"ssh-ed25519 AAAA\"]\n");
    let error = home.load(&[], &GlobalArgs::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`ssh-ed25519 AAAA` is no age recipient"),
        "{error}"
    );
}

#[test]
fn a_route_and_aliases_come_from_the_file_and_are_checked() {
    let home = Home::new("via = \"ssm\"\n[alias]\nfront = \"i-0123456789abcdef0\"\n");
    let none = GlobalArgs::default();
    let settings = home.load(&[], &none).unwrap();
    assert_eq!(settings.via, Via::Ssm);
    assert_eq!(settings.aliases["front"].as_str(), "i-0123456789abcdef0");
    let settings = home.load(&[("POSTERN_VIA", "bastion")], &none).unwrap();
    assert_eq!(settings.via, Via::Bastion);
    let wrong = home.load(&[("POSTERN_VIA", "road")], &none).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "POSTERN_VIA: `road` is no route: auto, bastion or ssm"
    );
    let wrong = Home::new("[alias]\nfront = \"\"\n")
        .load(&[], &none)
        .unwrap_err();
    assert!(
        wrong.to_string().starts_with("`alias.front` in `"),
        "{wrong}"
    );
    let context = crate::context::Context::new(
        crate::output::Printer::plain_json(),
        settings,
        Environment::default(),
    );
    let aliased = |typed: &str| {
        context
            .aliased(&typed.parse().unwrap())
            .unwrap()
            .to_string()
    };
    assert_eq!(aliased("front"), "i-0123456789abcdef0");
    assert_eq!(aliased("root@front"), "root@i-0123456789abcdef0");
    assert_eq!(aliased("frontier"), "frontier");
}
