//! `postern policy`: printed policies, loaded with the genuine `aws` command, let people in with MFA and not without;
//! the check finds what is open and what is missing, and what it proposes mends it.

use std::path::Path;

use lab::account::{ACCOUNT, ATTESTATION_ROLE, BASTION_USER, REGION};
use lab::aws::User;
use lab::stack::Lab;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::aws::python;
use crate::harness::{Told, lab, postern, postern_as, run};

/// May do everything, and start nothing without being denied MFA: makes policies with long-term keys.
const ADMIN: &str = "admin";

fn document(statements: &Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

/// An account that nobody may start a session in, with somebody who may change it, and carol as the one who checks.
async fn account() -> Lab {
    let lab = lab().await;
    for name in ["alice", "bob"] {
        only(&lab, name, &[]);
    }
    only_carol_checks(&lab).await;
    lab
}

async fn only_carol_checks(lab: &Lab) {
    let iam = document(&json!([{"Effect": "Allow", "Action": "iam:*", "Resource": "*"}]));
    lab.aws
        .put_user(User::new(ADMIN).with_policy("iam", iam).without_mfa())
        .unwrap();
    load(lab, "checker", &[]).await;
    attach(lab, "user", "carol", "checker").await;
    postern_as(lab, "carol", &["login"]).await.status(0);
}

/// Gives a user of the lab these policies alone; keys and device stay.
fn only(lab: &Lab, name: &str, policies: &[(&str, String)]) {
    let mut user = lab.aws.user(name).unwrap();
    user.policies = policies
        .iter()
        .map(|(name, document)| ((*name).to_owned(), document.clone()))
        .collect();
    lab.aws.put_user(user).unwrap();
}

/// The genuine `aws` command with the administrator's keys.
async fn aws(lab: &Lab, arguments: &[&str]) -> Told {
    let keys = lab.aws.user(ADMIN).unwrap().access_key;
    let mut command = Command::new(python());
    command
        .args(["-m", "awscli", "--output", "json"])
        .args(arguments)
        .envs(&lab.environment)
        .env_remove("AWS_PROFILE")
        .env("AWS_ACCESS_KEY_ID", keys.id)
        .env("AWS_SECRET_ACCESS_KEY", keys.secret);
    run(&mut command, b"").await
}

/// What `postern policy iam --for WHOM` prints, in a file.
async fn printed(lab: &Lab, whom: &str, more: &[&str]) -> String {
    let mut arguments = vec!["policy", "iam", "--for", whom, "--account", ACCOUNT];
    arguments.extend(more);
    let told = postern(lab, &arguments).await.status(0);
    let file = lab.folder().join(format!("{whom}.json"));
    std::fs::write(&file, &told.stdout).unwrap();
    url(&file)
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}

/// `aws iam create-policy` with what was printed.
async fn load(lab: &Lab, whom: &str, more: &[&str]) {
    let file = printed(lab, whom, more).await;
    create(lab, whom, &file).await;
}

async fn create(lab: &Lab, name: &str, file: &str) {
    let arguments = [
        "iam",
        "create-policy",
        "--policy-name",
        name,
        "--policy-document",
        file,
    ];
    aws(lab, &arguments).await.status(0);
}

async fn attach(lab: &Lab, kind: &str, name: &str, policy: &str) {
    let action = format!("attach-{kind}-policy");
    let option = format!("--{kind}-name");
    let arn = format!("arn:aws:iam::{ACCOUNT}:policy/{policy}");
    aws(lab, &["iam", &action, &option, name, "--policy-arn", &arn])
        .await
        .status(0);
}

async fn check(lab: &Lab, arguments: &[&str]) -> Told {
    let mut all = vec!["policy", "check"];
    all.extend(arguments);
    postern_as(lab, "carol", &all).await
}

#[tokio::test]
async fn an_account_with_the_printed_policies_passes_the_check() {
    let lab = account().await;
    let staging = ["--tag", "env=staging"];
    load(&lab, "operators", &staging).await;
    load(&lab, "operators-role", &staging).await;
    load(&lab, "recorded", &["--recorded-tag", "env=production"]).await;
    attach(&lab, "user", "alice", "operators").await;
    attach(&lab, "user", "alice", "recorded").await;
    // The trust policy is one that `aws iam create-role` takes.
    let trust = printed(&lab, "attestation", &[]).await;
    let role = [
        "iam",
        "create-role",
        "--role-name",
        "ops",
        "--assume-role-policy-document",
        &trust,
    ];
    aws(&lab, &role).await.status(0);
    attach(&lab, "role", "ops", "operators-role").await;
    attach(&lab, "role", "ops", "recorded").await;

    let asked = [
        "--user",
        "alice",
        "--role",
        "ops",
        "--tag",
        "env=staging",
        "--recorded-tag",
        "env=production",
    ];
    let told = check(&lab, &asked).await;
    let said = told.out();
    assert_eq!(told.status, Some(0), "{said}\n{}", told.stderr);
    lines_of(
        &said,
        &[
            "ok       role/postern-attestation: 1 check holds",
            "ok       user/alice: 13 checks hold",
            "ok       role/ops: 10 checks hold",
            "all holds for 3 identities",
        ],
    );
    // Nobody else is named: only what is open counts, and nothing is.
    let told = check(&lab, &["--tag", "env=staging", "--json"]).await;
    let answer: Value = serde_json::from_str(&told.out()).unwrap();
    assert_eq!(answer["findings"], 0, "{answer}");
    let of = |name: &str| {
        let all = answer["principals"].as_array().unwrap();
        all.iter().find(|one| one["principal"] == name).cloned()
    };
    assert_eq!(of("user/alice").unwrap()["holds"], true);
    assert_eq!(of("user/bob"), None, "he may start nothing");
    assert_eq!(told.status, Some(0));
    // A policy that only reads says nothing to a question that was not asked: another tag, and alice is of no use.
    let told = check(&lab, &["--user", "alice", "--tag", "env=production"]).await;
    assert_eq!(told.status, Some(1));
    assert!(
        told.out()
            .contains("MISSING  user/alice: starting a session on a target with env=production")
    );
    lab.stop().await.unwrap();
}

/// Demands these lines.
#[track_caller]
fn lines_of(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            said.lines().any(|one| one == *line),
            "no `{line}` in:\n{said}"
        );
    }
}

#[tokio::test]
async fn operators_without_a_tag_condition_are_found_with_the_policy_that_opens_it() {
    let lab = lab().await;
    only_carol_checks(&lab).await;
    // As the lab has them: alice may start sessions on every instance and through every document, bob on staging, and
    // neither policy asks how old MFA is.
    let told = check(&lab, &["--tag", "env=staging"]).await.status(1);
    let said = told.out();
    let faults: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("OPEN"))
        .filter_map(|line| line.split(" (").next())
        .collect();
    let found = [
        "OPEN     user/alice: starting a session with MFA older than 12 h is allowed",
        "OPEN     user/alice: starting a session on a target without env=staging is allowed",
        "OPEN     user/alice: starting a session without a permission on its document is allowed",
        "OPEN     user/alice: starting a session through another document is allowed",
        "OPEN     user/bob: starting a session with MFA older than 12 h is allowed",
    ];
    assert_eq!(faults, found, "{said}");
    assert!(said.contains("; policy sessions)"), "{said}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn what_the_check_proposes_mends_what_it_found() {
    let lab = account().await;
    let broad =
        document(&json!([{"Effect": "Allow", "Action": ["ssm:*", "sts:*"], "Resource": "*"}]));
    only(&lab, "bob", &[("broad", broad.clone())]);
    let found = check(&lab, &["--user", "bob", "--tag", "env=staging", "--json"]).await;
    let found: Value = serde_json::from_str(&found.status(1).out()).unwrap();
    let checks = found["principals"][1]["checks"].as_array().unwrap().clone();
    let open: Vec<&str> = checks
        .iter()
        .filter(|check| check["state"] == "open")
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    let all = [
        "long-term-keys",
        "session-without-mfa",
        "old-mfa",
        "other-targets",
        "document-check",
        "other-documents",
        "others-sessions",
    ];
    assert_eq!(open, all);
    assert!(
        checks[0]["message"]
            .as_str()
            .unwrap()
            .contains("policy broad"),
        "{}",
        checks[0]
    );

    // All that it proposes, in one policy beside the broad one. What demands the document check cannot be a Deny.
    let mut statements: Vec<Value> = Vec::new();
    for proposed in checks
        .iter()
        .filter_map(|check| check["statements"].as_array())
    {
        for statement in proposed {
            if !statements.contains(statement) {
                statements.push(statement.clone());
            }
        }
    }
    only(
        &lab,
        "bob",
        &[("broad", broad), ("mended", document(&json!(statements)))],
    );
    let told = check(&lab, &["--user", "bob", "--tag", "env=staging"])
        .await
        .status(1);
    let faults: Vec<String> = told
        .out()
        .lines()
        .filter(|line| line.starts_with("OPEN") || line.starts_with("MISSING"))
        .map(str::to_owned)
        .collect();
    assert_eq!(faults.len(), 1, "{}", told.out());
    assert!(
        faults[0].contains("without a permission on its document"),
        "{faults:?}"
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_role_is_open_to_whom_its_trust_policy_lets_in_without_mfa() {
    let lab = account().await;
    let staging = ["--tag", "env=staging"];
    load(&lab, "operators-role", &staging).await;
    load(&lab, "operators", &staging).await;
    let trust = json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:root")}, "Action": "sts:AssumeRole"}});
    for (role, policy) in [("open", "operators-role"), ("useless", "operators")] {
        lab.aws
            .put_role(lab::aws::Role::new(role, trust.to_string()))
            .unwrap();
        attach(&lab, "role", role, policy).await;
    }
    let told = check(&lab, &staging).await.status(1);
    lines_of(
        &told.out(),
        &[&format!(
            "OPEN     role/open: role/open may be assumed by `arn:aws:iam::{ACCOUNT}:root` without MFA"
        )],
    );
    // The policy for users is worth nothing on a role, and the check says why.
    let told = check(&lab, &["--role", "useless", "--tag", "env=staging"])
        .await
        .status(1);
    assert!(
        told.out()
            .contains("MISSING  role/useless: starting a session"),
        "{}",
        told.out()
    );
    assert!(
        told.out().contains("no role session carries"),
        "{}",
        told.out()
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn what_depends_on_a_value_that_is_not_known_is_never_fine() {
    let lab = account().await;
    let office = document(
        &json!([{"Effect": "Allow", "Action": "ssm:StartSession", "Resource": "*",
        "Condition": {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}}]),
    );
    only(&lab, "bob", &[("office", office)]);
    let told = check(&lab, &[]).await.status(1);
    let said = told.out();
    assert!(
        said.contains("UNCLEAR  user/bob: starting a session without MFA cannot be told"),
        "{said}"
    );
    assert!(said.contains("--context aws:SourceIp=VALUE"), "{said}");
    let told = check(&lab, &["--context", "aws:SourceIp=203.0.113.9"])
        .await
        .status(1);
    assert!(
        told.out()
            .contains("OPEN     user/bob: starting a session without MFA is allowed")
    );
    let told = check(&lab, &["--context", "aws:SourceIp=198.51.100.1"])
        .await
        .status(0);
    assert!(
        told.out().contains("all holds for 1 identity;"),
        "{}",
        told.out()
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn who_may_not_ask_gets_an_error_and_no_good_news() {
    let lab = account().await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    let told = postern_as(&lab, "bob", &["policy", "check"]).await;
    told.status(1).says(&[
        "AWS does not let you ask, so nothing is known",
        "policy iam --for checker",
    ]);
    let told = check(&lab, &["--user", "nobody"]).await;
    told.status(1)
        .says(&["user/nobody does not exist in this account"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_agent_lives_on_the_printed_policy_of_the_bastion() {
    let lab = account().await;
    let mut agent = lab.aws.user(BASTION_USER).unwrap();
    let user = lab::stack::login_user();
    let more = [
        "--os-user",
        &user,
        "--tag",
        "env=staging",
        "--tag",
        "env=production",
        "--region",
        REGION,
    ];
    let file = printed(&lab, "bastion", &more).await;
    let policy = std::fs::read_to_string(file.trim_start_matches("file://")).unwrap();
    agent.policies = vec![("bastion".to_owned(), policy.clone())];
    lab.aws.put_user(agent).unwrap();
    let mut verify = lab.agent.command();
    verify.arg("check").arg("--config").arg(&lab.agent.config);
    let told = run(&mut verify, b"").await;
    assert_eq!(told.status, Some(0), "{}", told.out());
    assert!(
        told.out().contains("ok       attestation role: "),
        "{}",
        told.out()
    );
    assert!(told.out().contains("instances run"), "{}", told.out());
    // Each of the four calls is there, and nothing else.
    let policy: Value = serde_json::from_str(&policy).unwrap();
    let actions: Vec<&str> = policy["Statement"]
        .as_array()
        .unwrap()
        .iter()
        .map(|statement| statement["Action"].as_str().unwrap())
        .collect();
    let called = [
        "ec2:DescribeInstances",
        "ec2-instance-connect:SendSSHPublicKey",
        "iam:GetRole",
        "sts:AssumeRole",
    ];
    assert_eq!(actions, called);
    assert_eq!(policy["Statement"][2]["Resource"], ATTESTATION_ROLE);
    lab.stop().await.unwrap();
}
