//! Stock OpenSSH clients, our agent, a genuine sshd.

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
async fn sixty_four_mebibytes_pass_both_ways_at_once_unchanged() {
    // With keys changed on the way by the client, by sshd, and by us.
    let agent = Agent::with_sshd(Sshd::start("RekeyLimit 9M").await).await;
    let mut command = agent.command("ssh");
    command
        .args(["-o", "RekeyLimit=7M", "web-1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let sent = noise(64 * 1024 * 1024);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut got = Vec::with_capacity(sent.len());
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        drop(stdin);
    };
    within(async { tokio::join!(write, stdout.read_to_end(&mut got)).1.unwrap() }).await;
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn scp_and_sftp_copy_both_ways_and_say_what_they_did() {
    let agent = Agent::start().await;
    let content = noise(3_000_000);
    let local = agent.folder.path().join("local");
    std::fs::write(&local, &content).unwrap();
    for old in [false, true] {
        let (there, back) = (
            agent.folder.path().join("there"),
            agent.folder.path().join("back"),
        );
        for (from, to) in [
            (
                local.display().to_string(),
                format!("web-1:{}", there.display()),
            ),
            (
                format!("web-1:{}", there.display()),
                back.display().to_string(),
            ),
        ] {
            let mut command = agent.command("scp");
            command.args(old.then_some("-O")).arg(from).arg(to);
            stdout(&run(command).await);
        }
        assert!(std::fs::read(&back).unwrap() == content);
        std::fs::remove_file(there).unwrap();
        std::fs::remove_file(back).unwrap();
    }
    let batch = agent.folder.write(
        "batch",
        &format!(
            "cd {0}\nmkdir d\nput {0}/local d/x\nrename d/x d/y\nget d/y {0}/z\nrm d/y\nrmdir d\n",
            agent.folder.path().display()
        ),
    );
    let mut command = agent.command("sftp");
    command.arg("-b").arg(batch).arg("web-1");
    stdout(&run(command).await);
    assert!(std::fs::read(agent.folder.path().join("z")).unwrap() == content);
}

#[tokio::test]
async fn rsync_and_git_work() {
    let agent = Agent::start().await;
    let folder = agent.folder.path();
    let source = folder.join("source");
    std::fs::create_dir(&source).unwrap();
    for n in 0..200 {
        std::fs::write(source.join(format!("f{n}")), noise(n * 37)).unwrap();
    }
    let shell = format!("ssh {}", agent.options().join(" "));
    for _ in 0..2 {
        let mut command = tokio::process::Command::new("rsync");
        command
            .args(["-a", "--checksum", "-e", &shell])
            .arg(format!("{}/", source.display()))
            .arg(format!("web-1:{}/copy/", folder.display()))
            .kill_on_drop(true);
        stdout(&run(command).await);
    }
    let mut command = tokio::process::Command::new("diff");
    command.arg("-r").arg(&source).arg(folder.join("copy"));
    stdout(&run(command).await);

    let git = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("git");
        command
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .env("GIT_SSH_COMMAND", &shell)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir(&source)
            .kill_on_drop(true);
        command
    };
    stdout(&run(git(&["init", "-q"])).await);
    stdout(&run(git(&["add", "."])).await);
    stdout(&run(git(&["commit", "-qm", "files"])).await);
    stdout(&run(git(&["init", "-q", "--bare", "../bare"])).await);
    let url = format!("web-1:{}/bare", folder.display());
    stdout(&run(git(&["push", "-q", &url, "HEAD:main"])).await);
    stdout(&run(git(&["clone", "-q", "-b", "main", &url, "../clone"])).await);
    assert!(folder.join("clone/f199").exists());
}

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
