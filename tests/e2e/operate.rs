//! What the platform team does: checks, reloads, denies.

use lab::account::ACCOUNT;

use crate::harness::{ending, eventually, lab, postern, postern_as, run, session};

#[tokio::test]
async fn check_passes_beside_a_running_agent_and_asks_everything() {
    let lab = lab().await;
    let mut check = lab.agent.command();
    check.arg("check").arg("--config").arg(&lab.agent.config);
    let told = run(&mut check, b"").await;
    let (shown, status) = (told.out(), told.status);
    for line in [
        "ok       keys: 6 private keys",
        "ok       server certificate: valid until",
        "ok       policy: ",
        "ok       EC2 in ",
        "instances run",
        "warning  listen: ",
        "ok       recipients: 2 auditors can read recordings",
        "agree with the last checkpoint",
        "ok       clock: ",
        "ok       attestation role: ",
        "0 errors, ",
    ] {
        assert!(shown.contains(line), "no `{line}` in:\n{shown}");
    }
    assert_eq!(status, Some(0), "{shown}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn check_without_rights_in_aws_says_which_are_missing() {
    let lab = lab().await;
    let mut check = lab.agent.command();
    let none = lab.folder().join("no-credentials");
    std::fs::write(&none, "").unwrap();
    check
        .arg("check")
        .arg("--config")
        .arg(&lab.agent.config)
        .env("AWS_SHARED_CREDENTIALS_FILE", none);
    let told = run(&mut check, b"").await;
    let shown = told.out();
    for line in [
        "ERROR    EC2 in ",
        "hint: the agent's own role needs ec2:DescribeInstances",
        "ERROR    attestation role: ",
    ] {
        assert!(shown.contains(line), "no `{line}` in:\n{shown}");
    }
    assert_eq!(told.status, Some(1), "{shown}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_denied_user_is_cut_off_and_does_not_come_back() {
    let lab = lab().await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    let running = session(&lab).await;
    let alice = lab.aws.user("alice").unwrap().unique_id;
    let deny = lab.agent.config.with_file_name("deny");
    std::fs::write(&deny, format!("user {ACCOUNT}/{alice}\n")).unwrap();
    ending(running).await.status(255).says(&["deny list"]);
    // Neither with the certificate that is there, nor with a new one.
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(255);
    std::fs::remove_file(&deny).unwrap();
    eventually("alice may come again", async || {
        let told = postern(&lab, &["connect", "web-1", "--", "true"]).await;
        (told.status == Some(0)).then_some(())
    })
    .await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_lab_leaves_nothing_in_the_keyring() {
    let lab = lab().await;
    let state = lab.environment["POSTERN_STATE"].clone();
    // The second field has `i`, `R` or `D` for keys that are gone but still listed.
    let ours = || {
        let keys = std::fs::read_to_string("/proc/keys").unwrap();
        let live = |line: &&str| {
            let flags = line.split_whitespace().nth(1).unwrap_or_default();
            line.contains(&state) && !flags.contains(['i', 'R', 'D'])
        };
        keys.lines().filter(live).count()
    };
    assert_eq!(ours(), 1, "alice is logged in");
    lab.stop().await.unwrap();
    assert_eq!(ours(), 0);
}
