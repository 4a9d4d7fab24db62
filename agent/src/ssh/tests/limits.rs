//! Where relays between SSH connections break: stalled channels, pipelined requests, bulk in both
//! directions, order at the end. The peers are stock OpenSSH and russh, which is what our own
//! client uses.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use russh::client;
use russh::keys::PublicKeyOrCertificate;
use russh::server::{self, Auth};
use russh::{Channel, ChannelMsg, Pty};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::{
    Agent, connect, eventually, host_identity, key, noise, run, session, stdout, target, within,
};
use crate::ssh::{HostKeys, serve};

/// russh as the user's client: it trusts the agent's certificate as far as these tests go.
struct RusshUser;

impl client::Handler for RusshUser {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn russh_user(address: SocketAddr, user: &str) -> client::Handle<RusshUser> {
    let mut handle = within(client::connect(Arc::default(), address, RusshUser))
        .await
        .unwrap();
    let login = within(handle.authenticate_none(user)).await.unwrap();
    assert!(login.success());
    handle
}

/// Everything that a channel says until it is closed.
async fn drain(channel: &mut Channel<client::Msg>) -> Vec<ChannelMsg> {
    let mut all = Vec::new();
    within(async {
        while let Some(message) = channel.wait().await {
            if !matches!(message, ChannelMsg::WindowAdjusted { .. }) {
                all.push(message);
            }
        }
    })
    .await;
    all
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let agent = Agent::start().await;
    let user = russh_user(agent.address, &agent.user).await;
    for _ in 0..10 {
        let mut channel = user.channel_open_session().await.unwrap();
        channel.set_env(true, "REFUSED_BY_SSHD", "1").await.unwrap();
        channel
            .request_pty(true, "xterm", 80, 24, 0, 0, &[(Pty::ECHO, 0)])
            .await
            .unwrap();
        channel
            .request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0)
            .await
            .unwrap();
        channel.set_env(true, "LC_TEST", "1").await.unwrap();
        channel
            .exec(true, "tty > /dev/null && echo $LC_TEST")
            .await
            .unwrap();
        channel.request_shell(true).await.unwrap();
        let all = drain(&mut channel).await;
        let answers: Vec<bool> = all
            .iter()
            .filter_map(|message| match message {
                ChannelMsg::Success => Some(true),
                ChannelMsg::Failure => Some(false),
                _ => None,
            })
            .collect();
        // sshd refuses the first; we refuse X11 and a second program.
        assert_eq!(answers, [false, true, false, true, true, false], "{all:?}");
        let data: Vec<u8> = all
            .iter()
            .filter_map(|message| match message {
                ChannelMsg::Data { data } => Some(data.to_vec()),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(data, b"1\r\n");
    }
}

#[tokio::test]
async fn all_data_comes_before_the_end_of_the_channel() {
    let agent = Agent::start().await;
    let user = russh_user(agent.address, &agent.user).await;
    for _ in 0..10 {
        let mut channel = user.channel_open_session().await.unwrap();
        let line = "head -c 3000000 /dev/zero; echo e >&2; exit 9";
        channel.exec(true, line).await.unwrap();
        let all = drain(&mut channel).await;
        let lengths = all.iter().map(|message| match message {
            ChannelMsg::Data { data } => data.len(),
            _ => 0,
        });
        assert_eq!(lengths.sum::<usize>(), 3_000_000);
        // sshd itself may send the status before the last data; nothing comes after the end.
        let last = |wanted: fn(&ChannelMsg) -> bool| all.iter().rposition(wanted).unwrap();
        let eof = last(|m| matches!(m, ChannelMsg::Eof));
        assert!(last(|m| matches!(m, ChannelMsg::Data { .. })) < eof);
        assert!(last(|m| matches!(m, ChannelMsg::ExtendedData { ext: 1, .. })) < eof);
        let status = last(|m| matches!(m, ChannelMsg::ExitStatus { exit_status: 9 }));
        let close = last(|m| matches!(m, ChannelMsg::Close));
        assert!(status < close && eof < close);
    }
}

#[tokio::test]
async fn an_exit_signal_comes_back_whole() {
    let agent = Agent::start().await;
    let user = russh_user(agent.address, &agent.user).await;
    let mut channel = user.channel_open_session().await.unwrap();
    channel.exec(true, "kill -TERM $$").await.unwrap();
    let all = drain(&mut channel).await;
    let signal = all.iter().find_map(|message| match message {
        ChannelMsg::ExitSignal {
            signal_name,
            core_dumped,
            ..
        } => Some((format!("{signal_name:?}"), *core_dumped)),
        _ => None,
    });
    assert_eq!(signal, Some(("TERM".to_owned(), false)), "{all:?}");
}

#[tokio::test]
async fn a_stalled_forward_holds_up_neither_shell_nor_keepalives() {
    let agent = Agent::start().await;
    // One service that never reads, one that never stops to write.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink = listener.local_addr().unwrap().port();
    let sink_task = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = listener.local_addr().unwrap().port();
    let source_task = tokio::spawn(async move {
        let mut running = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            running.spawn(async move { while stream.write_all(&[7; 65_536]).await.is_ok() {} });
        }
    });
    let folder = agent.folder.path();
    let control = folder.join("control");
    let mut command = agent.command("ssh");
    command.args(["-N", "-M", "-S"]).arg(&control);
    command.args(["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"]);
    for (name, port) in [("sink", sink), ("source", source)] {
        command
            .arg("-L")
            .arg(format!("{}:127.0.0.1:{port}", folder.join(name).display()));
    }
    command.arg("web-1");
    let mut child = command.spawn().unwrap();
    eventually(|| control.exists() && folder.join("source").exists()).await;

    // Fill both until they stand still: no progress for a while, after much progress.
    let mut up = tokio::net::UnixStream::connect(folder.join("sink"))
        .await
        .unwrap();
    let mut sent = 0_usize;
    let still = std::time::Duration::from_secs(1);
    while let Ok(written) = tokio::time::timeout(still, up.write(&[1; 65_536])).await {
        sent += written.unwrap();
    }
    assert!(sent > 1024 * 1024, "{sent}");
    let mut down = tokio::net::UnixStream::connect(folder.join("source"))
        .await
        .unwrap();
    down.read_exact(&mut [0; 100_000]).await.unwrap();

    // The last one outlives the keepalives that would have missed their answers by then.
    for (n, seconds) in [(0, 0), (1, 0), (2, 4)] {
        let mut command = tokio::process::Command::new("ssh");
        command.args(["-F", "none", "-S"]).arg(&control);
        command
            .args(["web-1", &format!("echo {n}; sleep {seconds}")])
            .stdin(Stdio::null());
        assert_eq!(stdout(&run(command).await), format!("{n}\n"));
    }
    assert!(child.try_wait().unwrap().is_none(), "the client gave up");
    // What stood still goes on when somebody reads.
    let mut more = vec![0; 20 * 1024 * 1024];
    within(down.read_exact(&mut more)).await.unwrap();
    assert!(more.iter().all(|byte| *byte == 7));
    child.kill().await.unwrap();
    sink_task.abort();
    source_task.abort();
}

/// russh as the target's sshd: sends back what it gets, and says 5 at the end.
struct RusshTarget(Option<russh::ChannelId>);

impl RusshTarget {
    fn leave(&mut self, session: &mut server::Session) -> Result<(), russh::Error> {
        if let Some(channel) = self.0.filter(|channel| !session.has_pending_data(*channel)) {
            self.0 = None;
            session.exit_status_request(channel, 5)?;
            session.eof(channel)?;
            session.close(channel)?;
        }
        Ok(())
    }
}

impl server::Handler for RusshTarget {
    type Error = russh::Error;

    async fn auth_openssh_certificate(
        &mut self,
        _: &str,
        _: &russh::keys::Certificate,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        drop(channel);
        reply.accept().await;
        Ok(())
    }

    async fn data(
        &mut self,
        channel: russh::ChannelId,
        data: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.data(channel, bytes::Bytes::copy_from_slice(data))
    }

    async fn channel_eof(
        &mut self,
        channel: russh::ChannelId,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        // Behind the data that waits for the window: russh would let the status overtake it.
        self.0 = Some(channel);
        self.leave(session)
    }

    async fn window_adjusted(
        &mut self,
        _: russh::ChannelId,
        _: u32,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.leave(session)
    }

    async fn exec_request(
        &mut self,
        channel: russh::ChannelId,
        _: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
}

#[tokio::test]
async fn bulk_in_both_directions_passes_between_two_russh_peers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(server::Config {
        keys: vec![key(77)],
        ..Default::default()
    });
    let target_task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let running = server::run_stream(config, stream, RusshTarget(None))
            .await
            .unwrap();
        running.await.ok();
    });
    let folder = tempfile::tempdir().unwrap();
    let host_keys = HostKeys::load(folder.path().join("keys"), &[]).unwrap();
    let target = target("web-1", address.port());
    let upstream = connect(address, &target, "root", &host_keys).await;
    // Nothing between user and agent but a small buffer: windows larger than all buffers.
    let (user_end, agent_end) = tokio::io::duplex(16 * 1024);
    let served = tokio::spawn(serve(
        agent_end,
        upstream,
        session("root", &target),
        host_identity(),
        false,
    ));
    let config = Arc::<client::Config>::default();
    let mut user = within(client::connect_stream(config, user_end, RusshUser))
        .await
        .unwrap();
    assert!(user.authenticate_none("root").await.unwrap().success());
    let channel = user.channel_open_session().await.unwrap();
    channel.exec(true, "echo").await.unwrap();
    let (mut read, write) = channel.split();
    let sent = noise(64 * 1024 * 1024);
    let mut got = Vec::with_capacity(sent.len());
    let mut status = None;
    let writing = async {
        write.data(&sent[..]).await.unwrap();
        write.eof().await.unwrap();
    };
    let reading = async {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } => got.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
    };
    within(async { tokio::join!(writing, reading) }).await;
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
    assert_eq!(status, Some(5));
    user.disconnect(russh::Disconnect::ByApplication, "", "")
        .await
        .unwrap();
    let end = within(served).await.unwrap();
    assert_eq!(end.exit_status, Some(5));
    assert_eq!((end.up, end.down), (sent.len() as u64, sent.len() as u64));
    target_task.abort();
}

#[tokio::test]
async fn the_post_quantum_exchange_is_what_russh_agrees_on_too() {
    // OpenSSH 9.2 has no ML-KEM; russh has an implementation of its own.
    struct Names(tokio::sync::mpsc::UnboundedSender<String>);
    impl client::Handler for Names {
        type Error = russh::Error;
        async fn check_server_key(
            &mut self,
            shown: &PublicKeyOrCertificate,
        ) -> Result<bool, russh::Error> {
            Ok(matches!(shown, PublicKeyOrCertificate::Certificate(_)))
        }
        async fn kex_done(
            &mut self,
            _: Option<&[u8]>,
            names: &russh::Names,
            _: &mut client::Session,
        ) -> Result<(), russh::Error> {
            let name: &str = names.kex.as_ref();
            self.0.send(name.to_owned()).ok();
            Ok(())
        }
    }
    let agent = Agent::start().await;
    let (sender, mut names) = tokio::sync::mpsc::unbounded_channel();
    let config = client::Config {
        preferred: russh::Preferred {
            host_key_certificates: vec![russh::keys::Algorithm::Ed25519].into(),
            ..Default::default()
        },
        ..Default::default()
    };
    let connecting = client::connect(Arc::new(config), agent.address, Names(sender));
    let mut handle = within(connecting).await.unwrap();
    assert!(
        handle
            .authenticate_none(agent.user.as_str())
            .await
            .unwrap()
            .success()
    );
    assert_eq!(names.recv().await.unwrap(), "mlkem768x25519-sha256");
}

/// Bytes of this process's own that are in memory: not its program, which is there once.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kibibytes * 1024
}

#[tokio::test]
async fn an_idle_session_holds_little_also_after_bulk() {
    const SESSIONS: u64 = 40;
    const NAME: &str = "ssh::tests::limits::an_idle_session_holds_little_also_after_bulk";
    const ALONE: &str = "POSTERN_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // Other tests in the same process would be counted too.
        let mut alone = tokio::process::Command::new(std::env::current_exe().unwrap());
        alone
            .args(["--exact", NAME, "--nocapture"])
            .env(ALONE, "1")
            // What is measured is what sessions hold, not what the allocator keeps of freed
            // buffers for the next bulk: that is twice as much, and differs from run to run.
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .kill_on_drop(true);
        print!("{}", stdout(&run(alone).await));
        return;
    }
    let agent = Agent::start().await;
    stdout(&agent.ssh(&["true"]).await);
    let before = resident();
    // A service that says a lot and then nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (said, mut done) = tokio::sync::mpsc::unbounded_channel();
    let service = tokio::spawn(async move {
        let mut running = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let said = said.clone();
            running.spawn(async move {
                for _ in 0..256 {
                    stream.write_all(&[7; 65_536]).await.unwrap();
                }
                said.send(()).unwrap();
                stream.read_to_end(&mut Vec::new()).await.ok();
            });
        }
    });
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        let mut command = agent.command("ssh");
        let forward = format!("127.0.0.1:{port}");
        command.args(["-W", &forward, "web-1"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        clients.push(command.spawn().unwrap());
    }
    for _ in 0..SESSIONS {
        within(done.recv()).await.unwrap();
    }
    let each = || resident().saturating_sub(before) / SESSIONS / 1024;
    let most = each();
    eventually(|| each() <= 256).await;
    println!(
        "{most} KiB per session after bulk, {} KiB soon after",
        each()
    );
    service.abort();
}
