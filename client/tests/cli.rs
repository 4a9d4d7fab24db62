//! What people see: every help page, and the messages that need no network. One snapshot each;
//! `INSTA_UPDATE=always cargo test -p postern --test cli` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder to live in, and nothing of the environment around.
struct Home {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Home {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn write(self, name: &str, text: &str) -> Self {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn config(self, text: &str) -> Self {
        self.write(".config/postern/config.toml", text)
    }

    /// Exit code, stdout and stderr of one command.
    fn run(&self, line: &str) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(line.split_whitespace())
            .env_clear()
            .env("HOME", self.path())
            .env("COLUMNS", "100")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.path())
            .stdin(Stdio::null())
            // In the background of whatever terminal the tests run on: nobody is asked.
            .process_group(0)
            .output()
            .unwrap();
        let text = format!(
            "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
            output.status.code().unwrap_or(-1),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        text.replace(self.path().to_str().unwrap(), "[HOME]")
    }
}

const AWS: &str = "[profile alice]\nregion = eu-west-1\n\
    mfa_serial = arn:aws:iam::111122223333:mfa/alice\nendpoint_url = https://127.0.0.1:1\n";
const KEYS: &str = "[alice]\naws_access_key_id = AKIAALICEALICEALICE0\n\
    aws_secret_access_key = canary-secret\n";

fn alice() -> Home {
    Home::new()
        .write(".aws/config", AWS)
        .write(".aws/credentials", KEYS)
        .set("AWS_PROFILE", "alice")
}

#[test]
fn every_help_page() {
    let home = Home::new();
    insta::assert_snapshot!("help", home.run("--help"));
    for command in [
        "login",
        "logout",
        "status",
        "ls",
        "connect",
        "forward",
        "proxy",
        "ssh-config",
        "why",
        "audit",
        "audit ls",
        "audit show",
        "audit play",
        "audit verify",
        "policy",
        "policy iam",
        "policy check",
        "completions",
    ] {
        let name = format!("help-{}", command.replace(' ', "-"));
        insta::assert_snapshot!(name, home.run(&format!("{command} --help")));
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2_and_255_where_the_status_is_the_remote_one() {
    let home = Home::new();
    insta::assert_snapshot!("usage-none", home.run(""));
    insta::assert_snapshot!("usage-unknown-command", home.run("conect web-1"));
    insta::assert_snapshot!("usage-unknown-flag", home.run("login --mfacode 123456"));
    insta::assert_snapshot!("usage-duration", home.run("login --duration soon"));
    insta::assert_snapshot!("usage-json", home.run("--json ls --wrong"));
    insta::assert_snapshot!("usage-connect", home.run("connect --wrong web-1"));
    insta::assert_snapshot!("usage-proxy-json", home.run("--output json proxy"));
}

#[test]
fn no_session_is_exit_code_4_with_the_way_in() {
    let home = alice();
    insta::assert_snapshot!("status-none", home.run("status"));
    insta::assert_snapshot!("status-none-json", home.run("status --json"));
    insta::assert_snapshot!("logout-none", home.run("logout"));
    insta::assert_snapshot!("logout-none-json", home.run("logout --all --json"));
}

#[test]
fn a_login_that_cannot_work_says_why() {
    let login = "login --mfa-code 123456";
    insta::assert_snapshot!("login-unreachable", alice().run(login));
    insta::assert_snapshot!(
        "login-unreachable-json",
        alice().run("login --mfa-code 123456 --json")
    );
    insta::assert_snapshot!(
        "login-no-profile",
        Home::new().run("login --profile nobody")
    );
    insta::assert_snapshot!(
        "login-no-keys",
        alice().write(".aws/credentials", "").run(login)
    );
    insta::assert_snapshot!(
        "login-temporary-keys",
        alice()
            .set("AWS_ACCESS_KEY_ID", "ASIAALICEALICEALICE0")
            .set("AWS_SECRET_ACCESS_KEY", "canary-secret")
            .set("AWS_SESSION_TOKEN", "canary-token")
            .run(login)
    );
    insta::assert_snapshot!(
        "login-http-endpoint",
        alice()
            .set("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
            .run(login)
    );
    insta::assert_snapshot!(
        "login-no-region",
        Home::new()
            .write(".aws/credentials", &KEYS.replace("[alice]", "[default]"))
            .run(login)
    );
    insta::assert_snapshot!("login-duration", alice().run("login --duration 2d"));
    insta::assert_snapshot!(
        "login-no-ca",
        alice()
            .set("AWS_CA_BUNDLE", "/does/not/exist.pem")
            .run(login)
    );
}

#[test]
fn a_wrong_configuration_is_named_with_the_right_one() {
    let run = |config: &str| Home::new().config(config).run("status");
    insta::assert_snapshot!("config-unknown-key", run("profil = \"x\"\n"));
    insta::assert_snapshot!(
        "config-unknown-agent-key",
        run("[[agent]]\nid = \"b\"\nattestation-role = \"x\"\n")
    );
    insta::assert_snapshot!("config-unlike-key", run("zzz = 1\n"));
    insta::assert_snapshot!("config-syntax", run("profile = \"x\"\nuser = \n"));
    insta::assert_snapshot!("config-type", run("profile = 1\n"));
    insta::assert_snapshot!("config-keyring", run("keyring = \"keychain\"\n"));
    let agent = |key: &str, value: &str| {
        let mut keys = vec![
            ("id", "bastion-1"),
            ("address", "127.0.0.1:1"),
            ("ca", "ca.pem"),
            ("attestation_role", "arn:aws:iam::111122223333:role/attest"),
            ("log_key", "x"),
        ];
        for (name, right) in &mut keys {
            if *name == key {
                *right = value;
            }
        }
        let lines: String = keys
            .iter()
            .map(|(name, value)| format!("{name} = \"{value}\"\n"))
            .collect();
        Home::new()
            .config(&format!("[[agent]]\n{lines}"))
            .write(".config/postern/ca.pem", "no PEM")
            .run("status")
    };
    insta::assert_snapshot!("config-agent-address", agent("address", "bastion"));
    insta::assert_snapshot!(
        "config-agent-role",
        agent("attestation_role", "role/attest")
    );
    insta::assert_snapshot!("config-agent-ca-absent", agent("ca", "other.pem"));
    insta::assert_snapshot!("config-agent-ca-empty", agent("", ""));
    insta::assert_snapshot!(
        "config-agent-incomplete",
        Home::new()
            .set("POSTERN_AGENT", "127.0.0.1:1")
            .run("status")
    );
    insta::assert_snapshot!(
        "config-named-file-absent",
        Home::new().run("status --config /does/not/exist.toml")
    );
    insta::assert_snapshot!(
        "config-keyring-variable",
        Home::new()
            .set("POSTERN_KEYRING", "x\u{1b}[31m")
            .run("status")
    );
}

#[test]
fn iam_policies_are_printed_without_a_login_and_without_a_network() {
    let home = Home::new();
    let policy = |rest: &str| {
        home.run(&format!(
            "policy iam --account 111122223333 --region eu-west-1 {rest}"
        ))
    };
    insta::assert_snapshot!("policy-iam-operators", policy("--for operators"));
    insta::assert_snapshot!(
        "policy-iam-attestation-json",
        policy("--for attestation --max-age 1h --source-ip 203.0.113.7 --json")
    );
    insta::assert_snapshot!("policy-iam-all-json", policy("--tag env=staging --json"));
    // With a profile and without an account: the region is known, the account is not.
    insta::assert_snapshot!("policy-iam-no-account", alice().run("policy iam"));
    insta::assert_snapshot!(
        "policy-iam-no-region",
        home.run("policy iam --account 111122223333")
    );
    insta::assert_snapshot!("policy-iam-tag", policy("--tag env"));
    insta::assert_snapshot!("policy-iam-whom", policy("--for everybody"));
}

#[test]
fn a_policy_check_that_cannot_ask_says_so() {
    let check = |rest: &str| alice().run(&format!("policy check {rest}"));
    insta::assert_snapshot!("policy-check-login", check(""));
    insta::assert_snapshot!("policy-check-context", check("--context aws:SourceIp"));
    insta::assert_snapshot!(
        "policy-check-own-context",
        check("--context aws:MultiFactorAuthPresent=true")
    );
    insta::assert_snapshot!("policy-check-instance", check("--instance web-1"));
}

#[test]
fn the_completion_script_names_every_command() {
    let script = Home::new().run("completions bash");
    for word in ["login", "ssh-config", "--mfa-code", "audit", "policy"] {
        assert!(script.contains(word), "{word}");
    }
}

#[test]
fn no_message_shows_a_secret() {
    for line in [
        "login --mfa-code 987654",
        "-vv login --mfa-code 987654",
        "--json login --mfa-code 987654",
        "login --mfa-code 98765",
        "status",
    ] {
        let said = alice().run(line);
        assert!(
            !said.contains("98765") && !said.contains("canary"),
            "{said}"
        );
    }
}
