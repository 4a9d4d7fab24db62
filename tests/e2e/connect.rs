//! `postern connect`: commands and shells on `web-1` through the agent.

use lab::targets::Flavor;

use crate::harness::{PATIENCE, lab, noise, postern, run};

#[tokio::test]
async fn output_errors_and_exit_status_arrive_apart() {
    let lab = lab().await;
    assert_eq!(lab.web, Flavor::Genuine, "sshd is missing: run tests/setup");
    let script = "echo to stdout; echo to stderr >&2; exit 7";
    let told = postern(&lab, &["connect", "web-1", "--", script])
        .await
        .status(7);
    assert_eq!(told.out(), "to stdout\n");
    assert_eq!(told.stderr, "to stderr\n");
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

#[tokio::test]
async fn the_terminal_has_the_right_size_from_the_first_byte_and_after_a_change() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let lab = lab().await;
    let (mut pty, slave) = pty_process::open().unwrap();
    pty.resize(pty_process::Size::new(40, 100)).unwrap();
    let mut child = pty_process::Command::new(&lab.programs.client)
        .args(["connect", "-t", "web-1", "--"])
        .arg("stty size; read line; stty size; exit 3")
        .envs(&lab.environment)
        .kill_on_drop(true)
        .spawn(slave)
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let story = async {
        while !seen.contains("40 100") {
            let length = pty.read(&mut buffer).await.unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        pty.resize(pty_process::Size::new(50, 132)).unwrap();
        // The change must be there before the line: both travel in order.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        pty.write_all(b"\n").await.unwrap();
        while !seen.contains("50 132") {
            let length = pty.read(&mut buffer).await.unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(PATIENCE, story).await.expect(&seen);
    assert_eq!(status.code(), Some(3), "{seen}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_private_host_refuses_every_source_but_the_bastion() {
    use tokio::io::AsyncReadExt as _;

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
