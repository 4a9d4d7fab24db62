//! Bad input and bad days: each has a clear message, a hint and its exit code.

use lab::stack::Options;

use crate::harness::{
    ending, events, eventually, get, lab, lab_with, postern, postern_as, run, session,
};

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
    let ls = async |arguments: &[&str]| {
        let mut command = lab.postern("alice");
        command
            .arg("ls")
            .args(arguments)
            .env("POSTERN_AGENT", format!("{}:9", lab.network.bastion()));
        run(&mut command, b"").await
    };
    let alone = ls(&["--via", "bastion"]).await;
    alone.status(3).says(&["cannot be reached", "hint:"]);
    // SSM's list is still worth something, and says that it is not all.
    let rest = ls(&[]).await.status(0);
    rest.says(&[
        "warning: the agent's targets are not listed",
        "cannot be reached",
    ]);
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
async fn a_target_that_refuses_is_told_apart_from_a_denial() {
    let lab = lab().await;
    // `app-1` is reached over SSM alone: nothing listens there.
    postern(
        &lab,
        &["connect", "--via", "bastion", "app-1", "--", "true"],
    )
    .await
    .status(255)
    .says(&["unreachable", "refused the connection", "hint:"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_changed_host_key_opens_nothing_and_is_an_event() {
    let lab = lab().await;
    let connect = ["connect", "web-1", "--", "true"];
    postern(&lab, &connect).await.status(0);
    let key = lab.folder().join("web-1/ssh_host_ed25519_key");
    std::fs::remove_file(&key).unwrap();
    let mut keygen = tokio::process::Command::new("ssh-keygen");
    keygen
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    run(&mut keygen, b"").await.status(0);
    postern(&lab, &connect)
        .await
        .status(255)
        .says(&["host key", "hint:"]);
    let log = events(&lab).await;
    assert!(log.contains("host key changed"), "{log}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_aws_ended_asks_for_a_login() {
    let lab = lab().await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    lab.aws.expire_sessions_of("bob");
    postern_as(&lab, "bob", &["ls"])
        .await
        .status(4)
        .says(&["hint: postern login"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_unknown_key_of_the_configuration_is_named_with_the_nearest_one() {
    let lab = lab().await;
    let config = lab.folder().join("wrong.toml");
    std::fs::write(&config, "usr = \"root\"\n").unwrap();
    let mut command = lab.postern("alice");
    command.arg("ls").env("POSTERN_CONFIG", &config);
    run(&mut command, b"")
        .await
        .status(2)
        .says(&["usr", "did you mean `user`"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_broken_policy_file_keeps_the_old_policy_and_turns_readiness_red() {
    let lab = lab().await;
    let folder = lab.agent.config.with_file_name("policy");
    let policy = folder.join("broken.cedar");
    std::fs::write(&policy, "permit (principal, action, resource").unwrap();
    eventually("readiness turns red", async || {
        let (status, text) = get(&lab, "/readyz").await;
        (status == 503 && text.contains("broken.cedar line 1")).then_some(())
    })
    .await;
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(0);
    eventually("it is an event", async || {
        let log = events(&lab).await;
        log.contains("policy broken, the old one stays")
            .then_some(())
    })
    .await;
    std::fs::remove_file(&policy).unwrap();
    eventually("readiness is back", async || {
        (get(&lab, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_policy_that_fails_to_evaluate_denies_everything_by_its_name() {
    let lab = lab_with(Options {
        no_database: true,
        policy: Some(
            "@id(\"overflows\")\npermit (principal, action, resource)\n\
             when { 9223372036854775807 + (context.hour + 1) > 0 };\n"
                .to_owned(),
        ),
        ..Options::default()
    })
    .await;
    // Another policy permits it, and Cedar itself would pass over the broken one.
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(255)
        .says(&["overflows", "could not be evaluated", "lab.cedar line"]);
    postern(&lab, &["forward", "web-1", "0:80"])
        .await
        .status(1)
        .says(&["overflows"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn why_tells_which_condition_failed_in_words() {
    let lab = lab().await;
    postern_as(&lab, "bob", &["login"]).await.status(0);
    let told = postern_as(&lab, "bob", &["why", "db-1"]).await.status(1);
    let out = told.out();
    assert!(out.starts_with("denied: connect on db-1 as "), "{out}");
    assert!(
        out.contains("permit developers-connect-staging (lab.cedar line"),
        "{out}"
    );
    assert!(
        out.contains("this is not so: ") && out.contains("== \"staging\""),
        "{out}"
    );
    assert!(out.contains("permit operators-connect"), "{out}");
    assert!(!out.contains("{\"") && !out.contains("null"), "{out}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_forbid_on_a_user_ends_the_running_session_and_blocks_renewal() {
    let lab = lab().await;
    let running = session(&lab).await;
    let user = lab.aws.user("alice").unwrap().unique_id;
    let policy = format!(
        "@id(\"left-the-company\")\n\
         forbid (principal == Principal::\"111122223333/{user}\", action, resource);\n"
    );
    let folder = lab.agent.config.with_file_name("policy");
    std::fs::write(folder.join("left.cedar"), policy).unwrap();
    let told = ending(running).await;
    told.status(255).says(&["left-the-company"]);
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(255)
        .says(&["may not come in any more"]);
    lab.stop().await.unwrap();
}
