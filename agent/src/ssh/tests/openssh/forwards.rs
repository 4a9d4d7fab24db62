//! Ports, sockets and the user's SSH agent.

use super::*;

/// A server that says `hello `, and then what it is told.
async fn echo() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut running = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            running.spawn(async move {
                stream.write_all(b"hello ").await.ok();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    (port, task)
}

/// Says something to what was forwarded, and hears it back.
async fn converse<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S) {
    let mut got = String::new();
    within(async {
        stream.write_all(b"world").await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_string(&mut got).await.unwrap();
    })
    .await;
    assert_eq!(got, "hello world");
}

#[tokio::test]
async fn local_forwards_reach_what_the_target_reaches() {
    let agent = Agent::start().await;
    let (port, _echo) = echo().await;
    let socket = agent.folder.path().join("socket");
    let mut command = agent.command("ssh");
    command.arg("-N").arg("-L");
    command
        .arg(format!("{}:127.0.0.1:{port}", socket.display()))
        .arg("web-1");
    let mut child = command.spawn().unwrap();
    eventually(|| socket.exists()).await;
    for _ in 0..5 {
        converse(tokio::net::UnixStream::connect(&socket).await.unwrap()).await;
    }
    let streams = futures_util::future::join_all((0..20).map(|_| async {
        converse(tokio::net::UnixStream::connect(&socket).await.unwrap()).await;
    }));
    streams.await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_forward_to_nowhere_fails_with_the_targets_words() {
    let agent = Agent::start().await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let output = agent.ssh(&["-W", &format!("127.0.0.1:{closed}")]).await;
    assert!(!output.status.success());
}

#[tokio::test]
async fn a_socks_proxy_works() {
    let agent = Agent::start().await;
    let (port, _echo) = echo().await;
    let socks = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut command = agent.command("ssh");
    command.args(["-N", "-D", &format!("127.0.0.1:{socks}"), "web-1"]);
    let mut child = command.spawn().unwrap();
    let mut stream = within(async {
        loop {
            match tokio::net::TcpStream::connect(("127.0.0.1", socks)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let [high, low] = port.to_be_bytes();
    stream
        .write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low])
        .await
        .unwrap();
    let mut answer = [0; 12];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[..4], [5, 0, 5, 0]);
    converse(stream).await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn the_target_listens_for_the_user_and_stops_when_told() {
    let agent = Agent::start().await;
    let (port, _echo) = echo().await;
    let socket = agent.folder.path().join("control");
    let mut command = agent.command("ssh");
    command.args(["-N", "-M", "-S"]).arg(&socket).arg("web-1");
    let mut child = command.spawn().unwrap();
    eventually(|| socket.exists()).await;
    let control = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("ssh");
        command
            .args(["-F", "none", "-S"])
            .arg(&socket)
            .args(arguments)
            .arg("web-1");
        command
    };
    let forward = format!("127.0.0.1:0:127.0.0.1:{port}");
    let allocated = stdout(&run(control(&["-O", "forward", "-R", &forward])).await);
    let allocated: u16 = allocated.trim().parse().unwrap();
    for _ in 0..3 {
        converse(
            tokio::net::TcpStream::connect(("127.0.0.1", allocated))
                .await
                .unwrap(),
        )
        .await;
    }
    // A control master of this age forgets the port that it was given; it cancels by name.
    let second = format!("127.0.0.1:{allocated}:127.0.0.1:{port}");
    run(control(&["-O", "cancel", "-R", &second])).await;
    // Several sessions over one connection, at once.
    let outputs = futures_util::future::join_all((0..8).map(|n| {
        let line = format!("echo {n}; exit {n}");
        let mut command = control(&[]);
        command.arg(line).stdin(Stdio::null());
        run(command)
    }));
    for (n, output) in outputs.await.into_iter().enumerate() {
        assert_eq!(output.status.code(), Some(n as i32));
        assert_eq!(output.stdout, format!("{n}\n").as_bytes());
    }
    child.kill().await.unwrap();
}

/// OpenSSH's own, without keys.
async fn ssh_agent(socket: &std::path::Path) -> tokio::process::Child {
    let mut command = tokio::process::Command::new("ssh-agent");
    command
        .arg("-D")
        .arg("-a")
        .arg(socket)
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let agent = command.spawn().unwrap();
    eventually(|| socket.exists()).await;
    agent
}

#[tokio::test]
async fn the_users_ssh_agent_can_be_lent() {
    let agent = Agent::start().await;
    let socket = agent.folder.path().join("agent");
    let mut lender = ssh_agent(&socket).await;
    let mut command = tokio::process::Command::new("ssh-add");
    command
        .arg("-q")
        .arg(agent.folder.path().join("id"))
        .env("SSH_AUTH_SOCK", &socket);
    stdout(&run(command).await);
    let mut command = agent.command("ssh");
    command
        .env("SSH_AUTH_SOCK", &socket)
        .args(["-A", "web-1", "ssh-add -l"]);
    assert!(stdout(&run(command).await).contains("ED25519"));
    // Without -A the target has no agent.
    let output = agent.ssh(&["ssh-add -l"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    lender.kill().await.unwrap();
}

/// Policy allows everything in these tests: what stops here is stopped by sshd itself.
#[tokio::test]
async fn a_target_refuses_by_itself_what_the_certificate_does_not_permit() {
    let (port, service) = echo().await;
    let tries = async |extensions: &[SshExtension]| {
        let agent = Agent::permitting(extensions).await;
        let socket = agent.folder.path().join("agent");
        let _lender = ssh_agent(&socket).await;
        assert_eq!(stdout(&agent.ssh(&["echo in"]).await), "in\n");
        let mut command = agent.command("ssh");
        command.args(["-tt", "web-1", "tty > /dev/null && echo terminal"]);
        let terminal = String::from_utf8_lossy(&run(command).await.stdout).contains("terminal");
        let mut command = agent.command("ssh");
        command.args(["-W", &format!("127.0.0.1:{port}"), "web-1"]);
        let forward = run(command).await.status.success();
        let mut command = agent.command("ssh");
        command.args(["-o", "ExitOnForwardFailure=yes"]);
        command.args(["-R", "127.0.0.1:0:127.0.0.1:1", "web-1", "true"]);
        let listener = run(command).await.status.success();
        let mut command = agent.command("ssh");
        command
            .env("SSH_AUTH_SOCK", &socket)
            .args(["-A", "web-1", "test -n \"$SSH_AUTH_SOCK\""]);
        let lent = run(command).await.status.success();
        (terminal, forward, listener, lent)
    };
    use SshExtension::{AgentForwarding, PortForwarding, Pty};
    assert_eq!(tries(&[]).await, (false, false, false, false));
    assert_eq!(tries(&[Pty]).await, (true, false, false, false));
    assert_eq!(tries(&[PortForwarding]).await, (false, true, true, false));
    assert_eq!(tries(&[AgentForwarding]).await, (false, false, false, true));
    service.abort();
}

#[tokio::test]
async fn unix_sockets_are_refused_in_words() {
    let agent = Agent::start().await;
    let socket = agent.folder.path().join("socket");
    let mut command = tokio::process::Command::new("timeout");
    command.args(["20", "ssh", "-v"]).args(agent.options());
    command.args(["-o", "ExitOnForwardFailure=yes", "-R"]);
    command.args(["/tmp/postern-nothing:127.0.0.1:1", "web-1", "true"]);
    let output = run(command).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("remote port forwarding failed"), "{text}");

    let mut command = tokio::process::Command::new("ssh");
    command.arg("-v").args(agent.options()).arg("-N").arg("-L");
    command
        .arg(format!("{}:/run/nothing", socket.display()))
        .arg("web-1");
    command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    eventually(|| socket.exists()).await;
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let mut nothing = Vec::new();
    within(stream.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty());
    child.start_kill().unwrap();
    let output = within(child.wait_with_output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("postern does not forward Unix sockets"),
        "{text}"
    );
}
