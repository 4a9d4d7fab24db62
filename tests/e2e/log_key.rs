//! The audit log's key changes: the old one names the new one in the log, both sign for a while,
//! and clients follow at their own pace.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lab::stack::Lab;
use rustix::process::Signal;

use crate::harness::{Told, events, lab, run};

const CONNECT: [&str; 4] = ["connect", "web-1", "--", "true"];

/// Stops the agent in order, changes its configuration and starts it again.
async fn restart(lab: &mut Lab, change: impl Fn(String) -> String) {
    lab.agent.signal(Signal::TERM).unwrap();
    lab.agent.ended().await.unwrap();
    let text = std::fs::read_to_string(&lab.agent.config).unwrap();
    std::fs::write(&lab.agent.config, change(text)).unwrap();
    lab.agent.start().await.unwrap();
}

/// As a client whose profile names this log key.
async fn knowing(lab: &Lab, key: &str) -> Told {
    let mut command = lab.postern("alice");
    run(command.args(CONNECT).env("POSTERN_LOG_KEY", key), b"").await
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_new_log_key_is_taken_on_the_old_ones_word() {
    const SETTING: &str = "previous_key = \"audit-log-old.key\"\n";
    let mut lab = lab().await;
    let old_key = lab.environment["POSTERN_LOG_KEY"].clone();
    knowing(&lab, &old_key).await.status(0);

    let agent = lab.agent.id.parse().unwrap();
    let (secret, new_key) = postern_agent::ca::log::generate(&agent).unwrap();
    let keys = lab.agent.config.with_file_name("keys");
    std::fs::rename(keys.join("audit-log.key"), keys.join("audit-log-old.key")).unwrap();
    write_key(&keys.join("audit-log.key"), &secret);
    let named = |text: String| text.replace("[evidence]\n", &format!("[evidence]\n{SETTING}"));
    restart(&mut lab, named).await;
    // Both sign: a client is right with either.
    knowing(&lab, &old_key).await.status(0);
    knowing(&lab, &new_key).await.status(0);
    let log = events(&lab).await;
    assert!(
        log.contains(&format!("log key changed to {new_key}")),
        "{log}"
    );

    restart(&mut lab, |text| text.replace(SETTING, "")).await;
    knowing(&lab, &new_key).await.status(0);
    let told = knowing(&lab, &old_key).await;
    assert_eq!(told.status, Some(255), "{}", told.stderr);
    // Whoever verifies the log with the first key follows it to the new one.
    let store = lab.agent.audit_store.display().to_string();
    let mut verify = lab.postern("alice");
    verify
        .args(["audit", "verify", "--store", &store])
        .env("POSTERN_STATE", lab.folder().join("state-elsewhere"));
    run(&mut verify, b"").await.status(0);
    lab.stop().await.unwrap();
}
