//! Every client is a witness: a log that was rolled back or rewritten is refused by whoever saw
//! more of it.

use lab::stack::Lab;

use crate::harness::{Told, copy_folder, lab, postern, run};

const CONNECT: [&str; 4] = ["connect", "web-1", "--", "true"];

/// The agent's store as it is now.
fn backup(lab: &Lab) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&lab.agent.audit_store, copy.path());
    copy
}

/// Stops the agent, puts an older store in place and starts it again.
async fn roll_back(lab: &mut Lab, copy: &tempfile::TempDir) {
    lab.agent.kill().await.unwrap();
    std::fs::remove_dir_all(&lab.agent.audit_store).unwrap();
    copy_folder(copy.path(), &lab.agent.audit_store);
    lab.agent.start().await.unwrap();
}

/// The same person on another computer, which never saw this agent.
async fn elsewhere(lab: &Lab, arguments: &[&str]) -> Told {
    let state = lab.folder().join("state-elsewhere");
    let mut command = lab.postern("alice");
    run(command.args(arguments).env("POSTERN_STATE", state), b"").await
}

#[tokio::test]
async fn an_agent_that_only_restarted_is_trusted() {
    let mut lab = lab().await;
    postern(&lab, &CONNECT).await.status(0);
    lab.agent.kill().await.unwrap();
    lab.agent.start().await.unwrap();
    postern(&lab, &CONNECT).await.status(0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_that_was_rolled_back_is_refused_by_a_client_that_saw_more() {
    let mut lab = lab().await;
    postern(&lab, &CONNECT).await.status(0);
    let copy = backup(&lab);
    for _ in 0..4 {
        postern(&lab, &CONNECT).await.status(0);
    }
    roll_back(&mut lab, &copy).await;
    let told = postern(&lab, &CONNECT).await.status(255);
    let told = told.says(&["not to be trusted", "hint:", "auditors"]);
    assert_eq!(told.out(), "");
    // And again: an accusation is not forgotten by asking twice.
    postern(&lab, &CONNECT).await.status(255);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_that_was_rewritten_is_refused_though_it_is_longer() {
    let mut lab = lab().await;
    let copy = backup(&lab);
    postern(&lab, &CONNECT).await.status(0);
    roll_back(&mut lab, &copy).await;
    // Who never saw the lost part cannot know, and makes the log longer than it was.
    elsewhere(&lab, &["login"]).await.status(0);
    for _ in 0..4 {
        elsewhere(&lab, &CONNECT).await.status(0);
    }
    postern(&lab, &CONNECT)
        .await
        .status(255)
        .says(&["not to be trusted"]);
    lab.stop().await.unwrap();
}
