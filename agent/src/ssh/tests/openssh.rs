//! Stock OpenSSH clients, our agent, a genuine sshd.

mod forwards;
mod transfers;

use std::process::Stdio;

use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Agent, Sshd, eventually, noise, run, stdout, within};
use crate::ca::ssh::SshExtension;
use crate::session::Ending;

#[tokio::test]
async fn exit_status_and_separate_stderr_come_through() {
    let mut agent = Agent::start().await;
    let output = agent.ssh(&["echo out; echo err >&2; exit 7"]).await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    let end = agent.end().await;
    assert_eq!(end.exit_status, Some(7));
    assert_eq!(end.reason, CloseReason::Done, "{end:?}");
    assert_eq!((end.up, end.down), (0, 8));
}

#[tokio::test]
async fn a_command_runs_as_the_granted_user_and_as_no_other() {
    let mut agent = Agent::start().await;
    let output = agent.ssh(&["id -un"]).await;
    assert_eq!(stdout(&output).trim(), agent.user);
    assert_eq!(agent.end().await.reason, CloseReason::Done);
    // The first value of an option counts for ssh.
    let mut command = tokio::process::Command::new("ssh");
    command.args(["-o", "User=somebody"]).args(agent.options());
    command.args(["web-1", "id"]).stdin(Stdio::null());
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("must be"), "{text}");
    let end = agent.end().await;
    assert_eq!(end.reason, CloseReason::Protocol, "{end:?}");
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_host_ca_refuses_the_agent() {
    let agent = Agent::start().await;
    agent.folder.write("known_hosts", "");
    let output = agent.ssh(&["true"]).await;
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Host key verification failed"), "{text}");
}

#[tokio::test]
async fn a_command_killed_by_a_signal_is_told_so() {
    let mut agent = Agent::start().await;
    let output = agent.ssh(&["kill -TERM $$"]).await;
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(agent.end().await.exit_status, Some(128 + 15));
}

#[tokio::test]
async fn early_input_reaches_the_command_and_its_end_of_file_too() {
    let agent = Agent::start().await;
    let mut command = agent.command("ssh");
    // `read` takes no more than its line.
    command
        .args(["web-1", "read line; $line; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"echo started\n").await.unwrap();
    stdin.write_all(b"rest").await.unwrap();
    drop(stdin);
    let output = within(child.wait_with_output()).await.unwrap();
    assert_eq!(output.stdout, b"started\nrest");
}

#[tokio::test]
async fn output_goes_on_after_the_input_ended() {
    let agent = Agent::start().await;
    let output = agent.ssh(&["-n", "cat; sleep 0.2; echo late"]).await;
    assert_eq!(output.stdout, b"late\n");
}

#[tokio::test]
async fn environment_passes_also_when_it_is_not_text() {
    let agent = Agent::start().await;
    let mut command = agent.command("ssh");
    use std::os::unix::ffi::OsStrExt;
    command
        .env("POSTERN_ODD", std::ffi::OsStr::from_bytes(b"\xff\xfea"))
        .env("POSTERN_EVEN", "x y")
        .args(["-o", "SendEnv=POSTERN_*", "web-1"])
        .arg("printf %s \"$POSTERN_ODD\" | od -An -tx1; echo \"$POSTERN_EVEN\"");
    assert_eq!(stdout(&run(command).await), " ff fe 61\nx y\n");
}

#[tokio::test]
async fn a_terminal_has_the_users_size_and_follows_it() {
    let agent = Agent::start().await;
    let sizes = agent.folder.path().join("sizes");
    let tmux = agent.folder.path().join("tmux");
    let remote = format!(
        "stty size > {0}; echo $TERM >> {0}; trap 'stty size >> {0}; exit 0' WINCH; \
         echo ready >> {0}; while :; do sleep 0.1; done",
        sizes.display()
    );
    let mut line = vec!["ssh".to_owned(), "-tt".to_owned()];
    line.extend(agent.options());
    line.extend([
        "web-1".to_owned(),
        format!("bash -c \"{remote}\"").replace('$', "\\$"),
    ]);
    let quoted: Vec<String> = line
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    let tmux_command = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("tmux");
        command
            .arg("-S")
            .arg(&tmux)
            .args(["-f", "/dev/null"])
            .args(arguments);
        command
    };
    let started = run(tmux_command(&[
        "new-session",
        "-d",
        "-x",
        "101",
        "-y",
        "31",
        &quoted.join(" "),
    ]))
    .await;
    stdout(&started);
    let read = || std::fs::read_to_string(&sizes).unwrap_or_default();
    eventually(|| read().contains("ready")).await;
    stdout(&run(tmux_command(&["resize-window", "-x", "123", "-y", "44"])).await);
    eventually(|| read().lines().count() >= 4).await;
    let lines: Vec<String> = read().lines().map(str::to_owned).collect();
    run(tmux_command(&["kill-server"])).await;
    assert_eq!(lines[0], "31 101", "{lines:?}");
    assert!(
        lines[1].starts_with("screen") || lines[1].starts_with("tmux"),
        "{lines:?}"
    );
    assert_eq!(lines[3], "44 123", "{lines:?}");
}

#[tokio::test]
async fn keepalives_of_both_ends_are_answered() {
    let agent =
        Agent::with_sshd(Sshd::start("ClientAliveInterval 1\nClientAliveCountMax 1").await).await;
    let mut command = agent.command("ssh");
    command
        .args(["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"])
        .args(["web-1", "sleep 4; echo alive"]);
    assert_eq!(stdout(&run(command).await), "alive\n");
}

#[tokio::test]
async fn an_ordered_end_is_told_to_the_person_and_keeps_the_status() {
    let mut agent = Agent::start().await;
    let mut command = agent.command("ssh");
    command
        .args(["web-1", "echo here; exec sleep 100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let session = agent.session().await;
    let mut here = [0; 5];
    let mut output = child.stdout.take().unwrap();
    within(output.read_exact(&mut here)).await.unwrap();
    session.end(Ending {
        reason: CloseReason::Policy,
        message: Some("policy no longer allows this".to_owned()),
    });
    let output = within(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("postern: policy no longer allows this"),
        "{text}"
    );
    let end = agent.end().await;
    assert_eq!(end.reason, CloseReason::Policy);
    assert_eq!(end.down, 5);
}

#[tokio::test]
async fn a_target_that_goes_away_is_named() {
    let mut agent = Agent::start().await;
    let output = agent.ssh(&["kill -KILL $PPID"]).await;
    assert_eq!(output.status.code(), Some(255));
    let end = agent.end().await;
    assert_eq!(end.reason, CloseReason::Target, "{end:?}");
    assert!(end.message.unwrap().contains("web-1"));
}
