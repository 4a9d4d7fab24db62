mod checking;
mod making;

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
