//! `postern ls` where both ways are configured.

use lab::account::HOSTS;
use serde_json::{Value, json};

use crate::harness::{lab, postern, postern_as, run};

#[tokio::test]
async fn targets_are_listed_once_with_every_way_to_them() {
    let lab = lab().await;
    assert!(lab.ssm.vanish("app-1"));
    let told = postern(&lab, &["ls"]).await.status(0);
    let listed = told.out();
    let row = |name: &str| {
        let mut rows = listed.lines().filter(|line| line.starts_with(name));
        let row = rows
            .next()
            .unwrap_or_else(|| panic!("no {name} in {listed}"));
        assert_eq!(rows.next(), None, "{listed}");
        row.to_owned()
    };
    assert!(row("NAME").contains("ROUTE"), "{listed}");
    assert!(row("web-1").contains("bastion, ssm  "), "{listed}");
    assert!(row("app-1").contains("bastion, ssm (offline)"), "{listed}");
    assert!(row("db-1").contains("bastion  "), "{listed}");

    let told = postern(&lab, &["--json", "ls", "tag:env=staging"])
        .await
        .status(0);
    let answer: Value = serde_json::from_slice(&told.stdout).unwrap();
    let targets = answer["targets"].as_array().unwrap();
    let names: Vec<&Value> = targets.iter().map(|target| &target["name"]).collect();
    assert_eq!(names, ["app-1", "web-1"], "{answer}");
    assert_eq!(targets[0]["routes"], json!(["bastion", "ssm"]));
    assert_eq!(targets[0]["ssm"]["online"], false);
    assert_eq!(targets[1]["ssm"]["online"], true);
    assert_eq!(targets[1]["id"], HOSTS[0].id);

    // A name that only the agent knows is found, with both ways.
    let told = postern(&lab, &["ls", "web"]).await.status(0);
    assert!(told.out().contains("bastion, ssm"), "{}", told.out());
    let told = postern(&lab, &["ls", "--via", "bastion"]).await.status(0);
    assert!(!told.out().contains("ssm"), "{}", told.out());
    let told = postern(&lab, &["ls", "--via", "ssm"]).await.status(0);
    assert!(told.out().contains("ssm (offline)"), "{}", told.out());
    assert_eq!(told.out().lines().count(), 3, "{}", told.out());
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn what_one_side_does_not_tell_hides_nothing_of_the_other() {
    let lab = lab().await;
    // The agent is away: SSM still knows its nodes.
    let mut command = lab.postern("alice");
    command.env("POSTERN_AGENT", "127.0.0.1:1").arg("ls");
    let told = run(&mut command, b"").await.status(0);
    assert!(told.out().contains(HOSTS[1].id), "{}", told.out());
    told.says(&["warning: the agent's targets are not listed: "]);
    // AWS is away: the agent still knows its targets.
    let mut command = lab.postern("alice");
    command
        .env("AWS_ENDPOINT_URL_SSM", "https://127.0.0.1:1")
        .arg("ls");
    let told = run(&mut command, b"").await.status(0);
    assert!(told.out().contains("db-1"), "{}", told.out());
    told.says(&["warning: what SSM manages is not listed: AWS SSM at `127.0.0.1:1`"]);
    // Who may not look there is not bothered.
    let mut user = lab.aws.user("bob").unwrap();
    user.policies.retain(|(name, _)| name == "attest");
    lab.aws.put_user(user).unwrap();
    postern_as(&lab, "bob", &["login"]).await.status(0);
    let told = postern_as(&lab, "bob", &["ls"]).await.status(0);
    assert!(told.out().contains("web-1"), "{}", told.out());
    assert_eq!(told.stderr, "");
    lab.stop().await.unwrap();
}
