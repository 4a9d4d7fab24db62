//! Shells and commands.

use std::time::Duration;

use lab::account::{ENCRYPTED_SHELL, SEPARATE_COMMAND, SESSION_KEY};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::peer::Peer;
use crate::aws::python;
use crate::harness::{PATIENCE, eventually, run};

#[tokio::test]
async fn the_aws_command_gets_a_shell_in_the_hosts_home() {
    let peer = Peer::start().await;
    let mut talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    let id = talk.session_id().await;
    talk.expect("# ").await;
    talk.send(b"pwd; stty size; echo caf\xc3\xa9; echo $HOME >&2\n")
        .await;
    let home = peer.lab.ssm.home("app-1").unwrap().display().to_string();
    talk.expect(&home).await;
    // What the plugin says without a terminal of its own.
    talk.expect("100 300").await;
    talk.expect("café").await;
    talk.send(b"exit 3\n").await;
    // A shell's status is not carried.
    let told = talk.end().await.status(0);
    assert!(
        told.out()
            .contains(&format!("Exiting session with sessionId: {id}."))
    );
    assert_eq!(peer.lab.aws.sessions(), Vec::<String>::new());
    peer.assert_no_complaints();
}

#[tokio::test]
async fn a_terminal_has_its_size_and_its_interrupts() {
    let peer = Peer::start().await;
    let command = peer.session("app-1", None, &json!({}));
    let (pty, slave) = pty_process::open().unwrap();
    pty.resize(pty_process::Size::new(40, 123)).unwrap();
    let mut on_terminal = pty_process::Command::new(python());
    on_terminal = on_terminal
        .args(command.as_std().get_args())
        .env_clear()
        .kill_on_drop(true);
    for (name, value) in command.as_std().get_envs() {
        if let Some(value) = value {
            on_terminal = on_terminal.env(name, value);
        }
    }
    let mut child = on_terminal.spawn(slave).unwrap();
    let (mut reader, mut writer) = pty.into_split();
    let mut seen = String::new();
    let mut expect = async |text: &str| {
        let wanted = async {
            while !seen.contains(text) {
                let mut buffer = [0; 4096];
                let length = reader.read(&mut buffer).await.unwrap_or(0);
                assert!(length > 0, "no `{text}` in {seen}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            seen = seen.split_off(seen.find(text).unwrap() + text.len());
        };
        tokio::time::timeout(PATIENCE, wanted).await.expect(text);
    };
    expect("# ").await;
    writer.write_all(b"stty size\n").await.unwrap();
    expect("40 123").await;
    // Here and below: what is typed before the shell is back may be thrown away by the terminal.
    expect("# ").await;
    writer.resize(pty_process::Size::new(50, 90)).unwrap();
    writer
        .write_all(b"until stty size | grep -w 90; do sleep 0.1; done\n")
        .await
        .unwrap();
    expect("\n50 90").await;
    expect("# ").await;
    writer.write_all(b"echo begun; sleep 1000\n").await.unwrap();
    expect("\nbegun").await;
    writer.write_all(b"\x03").await.unwrap();
    expect("# ").await;
    writer.write_all(b"echo $((6*7))\n").await.unwrap();
    expect("42").await;
    writer.write_all(b"exit\n").await.unwrap();
    expect("Exiting session").await;
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
    peer.assert_no_complaints();
}

#[tokio::test]
async fn commands_tell_what_their_document_lets_them() {
    let peer = Peer::start().await;
    let line = "echo out; echo err >&2; exit 5";
    let merged = peer
        .command("AWS-StartNonInteractiveCommand", line)
        .await
        .status(0);
    assert!(merged.out().contains("out\nerr\n"), "{}", merged.out());
    assert!(!merged.stderr.contains("exit code"), "{}", merged.stderr);
    let apart = peer
        .command(SEPARATE_COMMAND, line)
        .await
        .status(0)
        .says(&["err\n", "exit code 5"]);
    assert!(apart.out().contains("out\n") && !apart.out().contains("err"));
    let killed = peer.command(SEPARATE_COMMAND, "kill -9 $$").await.status(0);
    killed.says(&["exit code -1"]);
    // On a terminal, so the streams are one, and lines end as on a terminal.
    let shown = peer
        .command(
            "AWS-StartInteractiveCommand",
            "test -t 0 && echo on a terminal",
        )
        .await
        .status(0);
    assert!(shown.out().contains("on a terminal\r\n"), "{}", shown.out());
    let long = peer
        .command(SEPARATE_COMMAND, "seq 20000; seq 20000 >&2")
        .await
        .status(0)
        .says(&["\n20000\n"]);
    let numbers: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    assert!(long.out().contains(&numbers));
    peer.assert_no_complaints();
}

#[tokio::test]
async fn control_c_ends_a_command_without_a_terminal() {
    let peer = Peer::start().await;
    let parameters = json!({"command": ["trap 'echo stopped; exit 9' INT; echo begun; while :; do sleep 0.1; done"]});
    let mut talk = peer.talk(&mut peer.session("app-1", Some(SEPARATE_COMMAND), &parameters));
    talk.expect("begun").await;
    talk.send(b"nothing of this \x03 is read").await;
    talk.expect("stopped").await;
    talk.end().await.status(0).says(&["exit code 9"]);
}

#[tokio::test]
async fn an_old_client_is_asked_to_upgrade_for_separate_streams() {
    let peer = Peer::start().await;
    let parameters = json!({"command": ["true"]});
    let mut old = peer.session("app-1", Some(SEPARATE_COMMAND), &parameters);
    old.env("PLUGIN_VERSION", "1.2.295.0");
    let told = run(&mut old, b"").await.status(0);
    assert!(told.out().contains("Please upgrade"), "{}", told.out());
}

#[tokio::test]
async fn encrypted_shells_work_with_the_challenge_and_without() {
    let peer = Peer::start().await;
    let shell = || peer.session("app-1", Some(ENCRYPTED_SHELL), &json!({}));
    for challenge in [false, true] {
        let mut command = shell();
        if challenge {
            command.env("PLUGIN_CHALLENGE", "1");
            peer.lab
                .aws
                .change_knobs(|knobs| knobs.kms_challenge_required = true);
        }
        let mut talk = peer.talk(&mut command);
        talk.expect("# ").await;
        talk.send(b"echo $((6*7)); exit\n").await;
        talk.expect("42").await;
        let told = talk.end().await.status(0);
        told.says(&["This session is encrypted using AWS KMS."]);
    }
    // It is required now.
    let refused = run(&mut shell(), b"").await.status(0);
    assert!(
        refused.out().contains("----------ERROR-------"),
        "{}",
        refused.out()
    );
    peer.lab
        .aws
        .change_knobs(|knobs| knobs.kms_challenge_required = false);
    let mut wrong = shell();
    let refused = run(wrong.env("PLUGIN_WRONG_CONTEXT", "1"), b"")
        .await
        .status(0);
    assert!(
        refused.out().contains("InvalidCiphertextException"),
        "{}",
        refused.out()
    );
    assert!(
        peer.lab
            .aws
            .enable_key(&format!("alias/{SESSION_KEY}"), false)
    );
    let refused = run(&mut shell(), b"").await.status(0);
    let said = "KMSEncryption failed on client with status 2 error: Failed to process action KMSEncryption";
    assert!(refused.out().contains(said), "{}", refused.out());
    assert!(
        refused.out().contains("DisabledException"),
        "{}",
        refused.out()
    );
    peer.assert_no_complaints();
}

#[tokio::test]
async fn idle_sessions_end_and_say_so() {
    let peer = Peer::start().await;
    peer.lab
        .aws
        .change_knobs(|knobs| knobs.idle_timeout = Duration::from_secs(2));
    let talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    let told = talk.end().await.status(0);
    assert!(
        told.out().contains("timed out due to inactivity"),
        "{}",
        told.out()
    );
}

#[tokio::test]
async fn a_session_that_is_ended_from_outside_tells_why_and_leaves_nothing_running() {
    let peer = Peer::start().await;
    let mut talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    let id = talk.session_id().await;
    talk.expect("# ").await;
    talk.send(b"echo $$ > pid; exec sleep 1000\n").await;
    let file = peer.lab.ssm.home("app-1").unwrap().join("pid");
    let pid = eventually("the shell's pid", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.trim().parse::<u32>().ok()
    })
    .await;
    assert!(peer.lab.aws.end_session(&id, "ended by an administrator"));
    let told = talk.end().await.status(0);
    assert!(
        told.out()
            .contains(&format!("SessionId: {id} : ended by an administrator"))
    );
    eventually("the end of the shell", async || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(Some(()), |text| text.contains(") Z ").then_some(()))
    })
    .await;
}
