//! Bad input and bad days: each has a clear message, a hint and its exit code.

use lab::stack::Options;

use crate::harness::{lab, lab_with, postern, postern_as, run};

#[tokio::test]
async fn an_unknown_target_is_named_with_the_nearest_one() {
    let lab = lab().await;
    postern(&lab, &["connect", "web-2", "--", "true"])
        .await
        .status(255)
        .says(&["web-2", "web-1", "hint:"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_denial_names_what_would_be_needed() {
    let lab = lab().await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    postern_as(&lab, "bob", &["connect", "db-1", "--", "true"])
        .await
        .status(255)
        .says(&["db-1", "developers-connect-staging"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_login_nothing_opens_and_the_hint_says_what_to_do() {
    let lab = lab().await;
    let told = postern_as(&lab, "bob", &["ls"]).await.status(4);
    assert!(
        told.stderr.contains("hint: postern login"),
        "{}",
        told.stderr
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_wrong_code_and_a_used_code_are_refused() {
    let lab = lab().await;
    postern_as(&lab, "bob", &["login", "--mfa-code", "000000"])
        .await
        .status(1)
        .says(&["hint:"]);
    let code = lab.aws.unused_code("bob").unwrap();
    postern_as(&lab, "bob", &["login", "--mfa-code", &code])
        .await
        .status(0);
    postern_as(&lab, "bob", &["logout"]).await.status(0);
    postern_as(&lab, "bob", &["login", "--mfa-code", &code])
        .await
        .status(1)
        .says(&["hint:"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_be_reached_is_exit_code_3() {
    let lab = lab().await;
    let mut command = lab.postern("alice");
    command
        .args(["ls"])
        .env("POSTERN_AGENT", format!("{}:9", lab.network.bastion()));
    run(&mut command, b"").await.status(3).says(&["hint:"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_behind_another_ca_is_refused() {
    let lab = lab().await;
    let mut command = lab.postern("alice");
    command
        .args(["connect", "web-1", "--", "true"])
        .env("POSTERN_AGENT_CA", &lab.environment["AWS_CA_BUNDLE"]);
    run(&mut command, b"").await.status(255).says(&["hint:"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_broken_policy_file_keeps_the_old_policy_and_turns_readiness_red() {
    let lab = lab().await;
    let policy = lab
        .agent
        .config
        .with_file_name("policy")
        .join("broken.cedar");
    std::fs::write(&policy, "permit (principal, action, resource").unwrap();
    crate::harness::eventually("readiness turns red", async || {
        let told = run(
            tokio::process::Command::new("curl")
                .args(["-s", &format!("http://{}/readyz", lab.agent.health)]),
            b"",
        )
        .await;
        told.out().contains("policy").then_some(())
    })
    .await;
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_policy_that_fails_to_evaluate_denies_everything_by_its_name() {
    let lab = lab_with(Options {
        no_database: true,
        policy: Some(
            "@id(\"overflows\")\npermit (principal, action, resource)\n\
             when { 9223372036854775807 + context.hour > 0 && context.hour >= 0 };\n"
                .to_owned(),
        ),
        ..Options::default()
    })
    .await;
    let told = postern(&lab, &["connect", "web-1", "--", "true"]).await;
    // At hour 0 the sum does not overflow.
    if time::OffsetDateTime::now_utc().hour() > 0 {
        told.status(255).says(&["overflows"]);
    }
    lab.stop().await.unwrap();
}
