//! `postern connect`: commands and shells on `web-1` through the agent.

use lab::stack::Lab;
use tokio::io::AsyncReadExt as _;

use crate::harness::{PATIENCE, lab, noise, postern, run};

#[tokio::test]
async fn output_errors_and_exit_status_arrive_apart() {
    let lab = lab().await;
    let script = "echo to stdout; echo to stderr >&2; exit 7";
    let told = postern(&lab, &["connect", "web-1", "--", script])
        .await
        .status(7);
    assert_eq!(told.out(), "to stdout\n");
    assert_eq!(told.stderr, "to stderr\n");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn several_words_arrive_as_they_are_and_one_is_a_line() {
    let lab = lab().await;
    let words = [
        "connect",
        "web-1",
        "--",
        "sh",
        "-c",
        "echo \"$1\"; exit 7",
        "sh",
        "a  *",
    ];
    let told = postern(&lab, &words).await.status(7);
    assert_eq!(told.out(), "a  *\n");
    let told = postern(
        &lab,
        &["connect", "web-1", "--", "echo one  two | tr a-z A-Z"],
    )
    .await
    .status(0);
    assert_eq!(told.out(), "ONE TWO\n");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_command_killed_by_a_signal_ends_with_128_and_its_number() {
    let lab = lab().await;
    postern(&lab, &["connect", "web-1", "--", "kill -TERM $$"])
        .await
        .status(143);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn input_ends_when_ours_does_and_bytes_arrive_unchanged() {
    let lab = lab().await;
    // Both directions at once, far above every window and buffer between.
    let bytes = noise(64 << 20);
    let mut command = lab.postern("alice");
    let told = run(command.args(["connect", "web-1", "--", "cat"]), &bytes)
        .await
        .status(0);
    assert!(
        told.stdout == bytes,
        "{} bytes of {}",
        told.stdout.len(),
        bytes.len()
    );
    lab.stop().await.unwrap();
}

/// A command on a terminal of 100 columns that becomes one of 132.
async fn on_changing_terminal(lab: &Lab, program: &str, arguments: &[&str]) {
    let (mut pty, slave) = pty_process::open().unwrap();
    pty.resize(pty_process::Size::new(40, 100)).unwrap();
    let mut child = pty_process::Command::new(program)
        .args(arguments)
        // What it says first, and what it says when it is told of a change.
        .arg("trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 0.05; done")
        .envs(&lab.environment)
        .kill_on_drop(true)
        .spawn(slave)
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let story = async {
        for (size, next) in [("40 100", Some((50, 132))), ("50 132", None)] {
            while !seen.contains(size) {
                let length = pty.read(&mut buffer).await.expect("more output");
                seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            if let Some((rows, columns)) = next {
                pty.resize(pty_process::Size::new(rows, columns)).unwrap();
            }
        }
        // A terminal whose last user is gone reads as an error.
        while pty.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, story).await.expect("an end");
    assert_eq!(status.code(), Some(3), "{seen}");
    assert!(seen.starts_with("40 100"), "from the first byte: {seen}");
}

#[tokio::test]
async fn the_terminal_has_the_right_size_from_the_first_byte_and_after_a_change() {
    let lab = lab().await;
    let program = lab.programs.client.display().to_string();
    on_changing_terminal(&lab, &program, &["connect", "-t", "web-1", "--"]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config").display().to_string();
    let told = postern(&lab, &["ssh-config"]).await.status(0);
    std::fs::write(&config, told.out()).unwrap();
    let stock = ["-q", "-F", &config, "-t", "web-1.postern"];
    on_changing_terminal(&lab, "ssh", &stock).await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_private_host_refuses_every_source_but_the_bastion() {
    let lab = lab().await;
    let address = (lab.network.web(), lab::stack::SSH_PORT);
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut greeting = Vec::new();
    let read = stream.read_to_end(&mut greeting).await;
    assert!(
        greeting.is_empty() && read.is_err(),
        "{read:?} {greeting:?}"
    );
    lab.stop().await.unwrap();
}
