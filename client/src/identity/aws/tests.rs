use super::*;

/// Files in a folder of their own, and the environment that names them.
struct Home {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    fn new(config: &str, credentials: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/config"), config).unwrap();
        std::fs::write(folder.path().join(".aws/credentials"), credentials).unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        Self {
            folder,
            variables: vec![("HOME".to_owned(), home)],
        }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn environment(&self) -> Environment {
        self.variables.iter().cloned().collect()
    }

    fn load(&self, name: &str) -> Result<AwsProfile, AwsError> {
        AwsProfile::load(&self.environment(), name, false)
    }
}

const KEYS: &str = "[default]\naws_access_key_id = AKIAAAAAAAAAAAAAAAAA\n\
    aws_secret_access_key = s3cr3t/with+signs=\n[work]\n\
    aws_access_key_id = AKIABBBBBBBBBBBBBBBB\naws_secret_access_key = other\n";

#[test]
fn a_role_uses_the_keys_and_the_device_of_its_source() {
    let home = Home::new(
        "[profile ops]\nrole_arn = arn:aws:iam::111122223333:role/ops\nsource_profile = work\n\
         duration_seconds = 3600\nexternal_id = x\n[profile work]\nregion = eu-west-1\n\
         mfa_serial = arn:aws:iam::111122223333:mfa/alice\nduration_seconds = 28800\n\
         mfa_process = totp \"my key\" # not a comment\n",
        KEYS,
    );
    let profile = home.load("ops").unwrap();
    assert_eq!(profile.source, "work");
    assert_eq!(profile.region, "eu-west-1");
    assert_eq!(profile.session_seconds, Some(28_800));
    assert_eq!(
        profile.mfa_serial.as_deref(),
        Some("arn:aws:iam::111122223333:mfa/alice")
    );
    assert_eq!(
        profile.mfa_process.as_deref(),
        Some("totp \"my key\" # not a comment")
    );
    assert_eq!(profile.roles.len(), 1);
    assert_eq!(profile.roles[0].seconds, Some(3600));
    assert_eq!(profile.roles[0].external_id.as_deref(), Some("x"));
    let keys = profile.long_term_keys(&home.environment()).unwrap();
    assert_eq!(keys.access_key_id, "AKIABBBBBBBBBBBBBBBB");
    assert_eq!(profile.sts_host(), "sts.eu-west-1.amazonaws.com");
}

#[test]
fn roles_on_the_way_are_assumed_from_the_user_outwards() {
    let home = Home::new(
        "[profile far]\nrole_arn = arn:far\nsource_profile = near\nregion = eu-west-1\n\
         [profile near]\nrole_arn = arn:near\nsource_profile = work\n",
        KEYS,
    );
    let profile = home.load("far").unwrap();
    let arns: Vec<_> = profile.roles.iter().map(|role| role.arn.as_str()).collect();
    assert_eq!(arns, ["arn:near", "arn:far"]);
    assert_eq!(profile.source, "work");
}

#[test]
fn the_endpoint_that_is_nearest_to_sts_wins() {
    let config = "[default]\nregion = eu-west-1\nservices = lab\nendpoint_url = https://all:1\n\
        [services lab]\nsts =\n  endpoint_url = https://section:2\n";
    let host = |home: Home| home.load("default").unwrap().sts_host();
    assert_eq!(host(Home::new(config, KEYS)), "section:2");
    let home = Home::new(config, KEYS).set("AWS_ENDPOINT_URL", "https://variable:3/");
    assert_eq!(host(home), "variable:3");
    let home = Home::new(config, KEYS)
        .set("AWS_ENDPOINT_URL", "https://variable:3")
        .set("AWS_ENDPOINT_URL_STS", "https://sts:443");
    assert_eq!(host(home), "sts");
    let home = Home::new(config, KEYS).set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
    assert_eq!(host(home), "sts.eu-west-1.amazonaws.com");
    let home = Home::new(
        "[default]\nregion = eu-west-1\nendpoint_url = https://all:1\n",
        KEYS,
    );
    assert_eq!(host(home), "all:1");
    for (region, expected) in [
        ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
    ] {
        let home = Home::new("[default]\n", KEYS).set("AWS_REGION", region);
        assert_eq!(host(home), expected);
    }
}

#[test]
fn credentials_never_leave_over_plain_http() {
    for url in [
        "http://sts:1",
        "https://u:p@sts",
        "https://sts/path",
        "https://sts?x=1",
        "sts",
        "",
    ] {
        let home = Home::new(
            &format!("[default]\nregion = eu-west-1\nendpoint_url = {url}\n"),
            KEYS,
        );
        let loaded = home.load("default");
        if url.is_empty() {
            assert!(loaded.is_ok());
        } else {
            assert_eq!(loaded, Err(AwsError::Endpoint(url.to_owned())));
        }
    }
}

#[test]
fn keys_of_the_environment_come_first_unless_a_profile_was_named() {
    let home = Home::new("[profile work]\nregion = eu-west-1\n", KEYS)
        .set("AWS_ACCESS_KEY_ID", "AKIACCCCCCCCCCCCCCCC")
        .set("AWS_SECRET_ACCESS_KEY", "env");
    let environment = home.environment();
    let id = |named| {
        AwsProfile::load(&environment, "work", named)
            .unwrap()
            .long_term_keys(&environment)
            .unwrap()
            .access_key_id
    };
    assert_eq!(id(false), "AKIACCCCCCCCCCCCCCCC");
    assert_eq!(id(true), "AKIABBBBBBBBBBBBBBBB");
}

#[test]
fn keys_that_cannot_log_in_are_refused_with_the_reason() {
    let region = "[default]\nregion = eu-west-1\n";
    let place = || "profile `default`".to_owned();
    for (credentials, expected) in [
        ("", AwsError::NoKeys(place())),
        (
            "[default]\naws_access_key_id = ASIAAAAAAAAAAAAAAAAA\naws_secret_access_key = x\n",
            AwsError::TemporaryKeys(place()),
        ),
        (
            "[default]\naws_access_key_id = AKIAAAAAAAAAAAAAAAAA\naws_secret_access_key = x\n\
             aws_session_token = t\n",
            AwsError::TemporaryKeys(place()),
        ),
        (
            "[default]\naws_access_key_id = AKIA/../AAAAAAAAAAAAA\naws_secret_access_key = x\n",
            AwsError::KeyId(place()),
        ),
    ] {
        let home = Home::new(region, credentials);
        let profile = home.load("default").unwrap();
        let error = profile.long_term_keys(&home.environment()).unwrap_err();
        assert_eq!(error, expected);
    }
}

#[test]
fn a_broken_configuration_is_named() {
    let home = |config: &str| Home::new(config, KEYS);
    assert!(matches!(
        home("[default]\nregion = eu-west-1\n").load("nobody"),
        Err(AwsError::NoProfile { name, .. }) if name == "nobody"
    ));
    assert_eq!(
        home(
            "[profile a]\nrole_arn = r\nsource_profile = b\n[profile b]\nrole_arn = r\n\
              source_profile = a\n"
        )
        .load("a"),
        Err(AwsError::Circle("b".to_owned()))
    );
    assert_eq!(
        home("[profile a]\nrole_arn = r\n").load("a"),
        Err(AwsError::NoSource("a".to_owned()))
    );
    assert_eq!(
        home("[default]\n").load("default"),
        Err(AwsError::NoRegion("default".to_owned()))
    );
    assert_eq!(
        home("[default]\nregion = ../../x\n").load("default"),
        Err(AwsError::Region("../../x".to_owned()))
    );
    assert!(matches!(
        home("[default]\nwhat\n").load("default"),
        Err(AwsError::Line { line: 2, .. })
    ));
    assert!(matches!(
        home("[default]\nregion = eu-west-1\nduration_seconds = long\n").load("default"),
        Err(AwsError::Seconds { .. })
    ));
}

#[test]
fn named_files_replace_the_usual_ones() {
    let home = Home::new("[default]\nregion = eu-west-1\n", KEYS);
    let other = home.folder.path().join("other");
    std::fs::write(&other, "[profile lab]\nregion = us-east-1\n").unwrap();
    let home = home
        .set("AWS_CONFIG_FILE", "~/other")
        .set("AWS_CA_BUNDLE", "/ca.pem");
    let profile = home.load("lab").unwrap();
    assert_eq!(profile.region, "us-east-1");
    assert_eq!(profile.ca_bundle, Some(PathBuf::from("/ca.pem")));
}
