//! Stock OpenSSH clients, our agent, a genuine sshd.

use postern_proto::gateway::message::CloseReason;

use super::support::{Agent, stdout};

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
async fn a_command_runs_as_the_granted_user() {
    let agent = Agent::start().await;
    let output = agent.ssh(&["id -un"]).await;
    assert_eq!(stdout(&output).trim(), agent.user);
}
