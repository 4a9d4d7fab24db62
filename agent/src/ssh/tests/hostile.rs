//! Targets and users that break the protocol. Both speak through a transport of our own, so that
//! they can say whatever they like.

use std::time::Duration;

use bytes::Bytes;
use postern_proto::gateway::message::CloseReason;
use postern_proto::wire::Writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::support::{credential, host_identity, key, session, target, within};
use crate::ssh::link::Link;
use crate::ssh::message::{self, plain};
use crate::ssh::transport::Transport;
use crate::ssh::{HostIdentity, HostKeys, SshEnd, Upstream, UpstreamError, serve};

/// A target that lets everybody in.
async fn accept(listener: &TcpListener) -> Link<TcpStream> {
    let (stream, _) = listener.accept().await.unwrap();
    let identity = HostIdentity::new(key(66), None).unwrap();
    let mut link = Link::new(stream, Transport::server(identity).unwrap());
    link.exchange_keys().await.unwrap();
    link.receive().await.unwrap();
    let service = Writer::new().u8(6).vec32(b"ssh-userauth").finish();
    link.transport.send(&service).unwrap();
    link.receive().await.unwrap();
    link.transport.send(&[message::USERAUTH_SUCCESS]).unwrap();
    link.transport.authenticated();
    link.flush().await.unwrap();
    link
}

struct Scene {
    user: Link<DuplexStream>,
    target: Link<TcpStream>,
    served: JoinHandle<SshEnd>,
}

impl Scene {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let host_keys = HostKeys::load(folder.path().join("keys"), &[]).unwrap();
        let host = target("web-1", address.port());
        let tcp = TcpStream::connect(address).await.unwrap();
        let root = "root".parse().unwrap();
        let (upstream, target) = within(async {
            tokio::join!(
                Upstream::connect(tcp, &host, &root, credential("root"), &host_keys),
                accept(&listener),
            )
        })
        .await;
        let (user_end, agent_end) = tokio::io::duplex(1024 * 1024);
        let served = tokio::spawn(serve(
            agent_end,
            upstream.unwrap().0,
            session("root", &host),
            host_identity(),
        ));
        let algorithms = vec!["ssh-ed25519".to_owned()];
        let mut user = Link::new(user_end, Transport::client(algorithms).unwrap());
        within(user.exchange_keys()).await.unwrap();
        let service = Writer::new().u8(5).vec32(b"ssh-userauth").finish();
        user.transport.send(&service).unwrap();
        user.transport.send(&login("root", "none")).unwrap();
        assert_eq!(within(user.receive()).await.unwrap()[0], 6);
        assert_eq!(
            within(user.receive()).await.unwrap()[0],
            message::USERAUTH_SUCCESS
        );
        user.transport.authenticated();
        Self {
            user,
            target,
            served,
        }
    }

    async fn say(&mut self, message: &[u8]) {
        self.user.transport.send(message).unwrap();
        within(self.user.flush()).await.unwrap();
    }

    async fn target_says(&mut self, message: &[u8]) {
        self.target.transport.send(message).unwrap();
        within(self.target.flush()).await.unwrap();
    }

    async fn heard(&mut self) -> Bytes {
        within(self.user.receive()).await.unwrap()
    }

    async fn target_heard(&mut self) -> Bytes {
        within(self.target.receive()).await.unwrap()
    }

    /// A shell in channel 3 of the user, 8 of the target.
    async fn shell(&mut self) {
        self.say(&open("session", 3, b"")).await;
        assert_eq!(self.target_heard().await, open("session", 3, b""));
        self.target_says(&confirm(3, 8)).await;
        assert_eq!(self.heard().await, confirm(3, 8));
        self.say(&request(8, "shell", true, b"")).await;
        assert_eq!(self.target_heard().await, request(8, "shell", true, b""));
        self.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
        assert_eq!(self.heard().await, plain(message::CHANNEL_SUCCESS, 3));
    }

    async fn end(self) -> SshEnd {
        within(self.served).await.unwrap()
    }
}

fn login(user: &str, method: &str) -> Vec<u8> {
    Writer::new()
        .u8(message::USERAUTH_REQUEST)
        .vec32(user.as_bytes())
        .vec32(b"ssh-connection")
        .vec32(method.as_bytes())
        .finish()
}

fn open(kind: &str, sender: u32, rest: &[u8]) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_OPEN)
        .vec32(kind.as_bytes())
        .u32(sender)
        .u32(100_000)
        .u32(32_768)
        .raw(rest)
        .finish()
}

fn confirm(recipient: u32, sender: u32) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_OPEN_CONFIRMATION)
        .u32(recipient)
        .u32(sender)
        .u32(100_000)
        .u32(32_768)
        .finish()
}

fn request(recipient: u32, name: &str, want_reply: bool, rest: &[u8]) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_REQUEST)
        .u32(recipient)
        .vec32(name.as_bytes())
        .u8(want_reply.into())
        .raw(rest)
        .finish()
}

fn data(recipient: u32, bytes: &[u8]) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_DATA)
        .u32(recipient)
        .vec32(bytes)
        .finish()
}

fn tcp(host: &str, port: u32) -> Vec<u8> {
    Writer::new()
        .vec32(host.as_bytes())
        .u32(port)
        .vec32(b"127.0.0.1")
        .u32(1)
        .finish()
}

#[tokio::test]
async fn channels_that_were_not_granted_do_not_reach_the_user() {
    let mut scene = Scene::new().await;
    for (kind, rest) in [
        ("forwarded-tcpip", tcp("127.0.0.1", 8080)),
        ("auth-agent@openssh.com", vec![]),
        ("x11", tcp("127.0.0.1", 1)[13..].to_vec()),
        ("session", vec![]),
        ("direct-tcpip", tcp("10.0.0.1", 22)),
        ("forwarded-streamlocal@openssh.com", vec![]),
        ("tun@openssh.com", vec![]),
    ] {
        scene.target_says(&open(kind, 1, &rest)).await;
        let answer = scene.target_heard().await;
        assert_eq!(
            answer[..5],
            [message::CHANNEL_OPEN_FAILURE, 0, 0, 0, 1],
            "{kind}"
        );
    }
    // The user has heard of none: the next thing is what the user asks for.
    scene.shell().await;
}

#[tokio::test]
async fn a_listener_that_was_refused_by_the_target_forwards_nothing() {
    let mut scene = Scene::new().await;
    let listen = Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(b"tcpip-forward")
        .u8(1)
        .vec32(b"localhost")
        .u32(8080)
        .finish();
    scene.say(&listen).await;
    assert_eq!(scene.target_heard().await, listen);
    scene.target_says(&[message::REQUEST_FAILURE]).await;
    assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    scene
        .target_says(&open("forwarded-tcpip", 1, &tcp("localhost", 8080)))
        .await;
    assert_eq!(scene.target_heard().await[0], message::CHANNEL_OPEN_FAILURE);
    // Granted, it does.
    scene.say(&listen).await;
    scene.target_heard().await;
    scene.target_says(&[message::REQUEST_SUCCESS]).await;
    scene.heard().await;
    let wanted = open("forwarded-tcpip", 1, &tcp("localhost", 8080));
    scene.target_says(&wanted).await;
    assert_eq!(scene.heard().await, wanted);
}

#[tokio::test]
async fn data_for_no_program_does_not_pass() {
    let mut scene = Scene::new().await;
    scene.say(&open("session", 3, b"")).await;
    scene.target_heard().await;
    // Before the channel is confirmed, and before anything runs in it.
    scene.target_says(&data(3, b"early")).await;
    scene.target_says(&confirm(3, 8)).await;
    assert_eq!(scene.heard().await, confirm(3, 8));
    scene.say(&data(8, b"early")).await;
    scene.target_says(&data(3, b"early")).await;
    // The answer to this comes after that was looked at.
    let ask = Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(b"x")
        .u8(1)
        .finish();
    scene.target_says(&ask).await;
    assert_eq!(scene.target_heard().await[..], [message::REQUEST_FAILURE]);
    scene.say(&request(8, "shell", true, b"")).await;
    assert_eq!(scene.target_heard().await, request(8, "shell", true, b""));
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_SUCCESS, 3));
    // After the channel is closed by its sender.
    scene.target_says(&plain(message::CHANNEL_CLOSE, 3)).await;
    scene.target_says(&data(3, b"late")).await;
    scene.target_says(&[message::REQUEST_FAILURE]).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_CLOSE, 3));
    let end = scene.end().await;
    assert_eq!((end.reason, end.down), (CloseReason::Target, 0), "{end:?}");
}

#[tokio::test]
async fn the_end_of_a_channel_arrives_in_the_targets_order() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    let status = Writer::new().u32(7).finish();
    let signal = Writer::new()
        .vec32(b"KILL")
        .u8(1)
        .vec32(b"out of memory")
        .vec32(b"en")
        .finish();
    let mut said = Vec::new();
    for n in 0..20 {
        said.push(data(3, &[n; 3000]));
        said.push(message::stderr(3, "e"));
    }
    said.extend([
        request(3, "exit-status", false, &status),
        data(3, b"after the status"),
        request(3, "exit-signal", false, &signal),
        plain(message::CHANNEL_EOF, 3),
        plain(message::CHANNEL_CLOSE, 3),
    ]);
    for message in &said {
        scene.target.transport.send(message).unwrap();
    }
    within(scene.target.flush()).await.unwrap();
    for message in said {
        assert_eq!(scene.heard().await, message);
    }
    scene.say(&plain(message::CHANNEL_CLOSE, 8)).await;
    assert_eq!(scene.target_heard().await, plain(message::CHANNEL_CLOSE, 8));
    // The numbers are free again.
    scene.shell().await;
    drop(scene.user);
    let end = within(scene.served).await.unwrap();
    assert_eq!(end.exit_status, Some(128 + 9));
    assert_eq!(end.reason, CloseReason::Client);
}

#[tokio::test]
async fn a_program_that_fails_to_start_leaves_room_for_another() {
    let mut scene = Scene::new().await;
    scene.say(&open("session", 3, b"")).await;
    scene.target_heard().await;
    scene.target_says(&confirm(3, 8)).await;
    scene.heard().await;
    let sftp = request(8, "subsystem", true, &Writer::new().vec32(b"sftp").finish());
    scene.say(&sftp).await;
    assert_eq!(scene.target_heard().await, sftp);
    scene.target_says(&plain(message::CHANNEL_FAILURE, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene.say(&data(8, b"nobody listens")).await;
    scene.say(&request(8, "shell", true, b"")).await;
    assert_eq!(scene.target_heard().await, request(8, "shell", true, b""));
    // And no second one beside it.
    scene.say(&request(8, "shell", true, b"")).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_SUCCESS, 3));
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
}

#[tokio::test]
async fn peers_that_break_the_protocol_end_the_session_with_their_name() {
    for (says, message) in [
        // Numbers that exist already, or do not exist.
        ("user", open("session", 3, b"")),
        ("user", confirm(99, 1)),
        ("target", confirm(99, 1)),
        ("target", confirm(3, 9)),
        ("target", message::open_failure(3, 1, "no")),
        // Replies that nobody waits for.
        ("target", plain(message::CHANNEL_SUCCESS, 3)),
        ("target", vec![message::REQUEST_SUCCESS]),
        // Fields that do not fit.
        ("user", vec![message::CHANNEL_DATA, 0, 0, 0]),
        ("user", data(8, b"x")[..9].to_vec()),
        ("target", request(3, "exit-status", false, b"")),
        ("target", vec![message::CHANNEL_WINDOW_ADJUST, 0, 0, 0, 3]),
        ("user", open("direct-tcpip", 4, b"\0\0\xff\xff")),
        ("user", request(8, "pty-req", true, &[0xff; 8])),
        // Transport messages.
        ("user", vec![21]),
        ("target", vec![31, 0]),
    ] {
        let mut scene = Scene::new().await;
        scene.shell().await;
        let reason = match says {
            "user" => {
                scene.say(&message).await;
                CloseReason::Protocol
            }
            _ => {
                scene.target_says(&message).await;
                CloseReason::Target
            }
        };
        let end = scene.end().await;
        assert_eq!(end.reason, reason, "{message:?}: {end:?}");
        assert!(end.message.is_some());
    }
}

#[tokio::test]
async fn unknown_messages_and_requests_are_refused_and_pass_to_nobody() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    scene.say(&[200, 1, 2]).await;
    scene.say(&request(8, "x11-req", true, b"")).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene
        .say(&request(8, "invented@example.com", true, b""))
        .await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene
        .target_says(&request(3, "invented@example.com", true, b""))
        .await;
    assert_eq!(
        scene.target_heard().await,
        plain(message::CHANNEL_FAILURE, 8)
    );
    let ask = |name: &[u8]| {
        Writer::new()
            .u8(message::GLOBAL_REQUEST)
            .vec32(name)
            .u8(1)
            .finish()
    };
    for name in [
        &b"hostkeys-prove-00@openssh.com"[..],
        b"streamlocal-forward@openssh.com",
    ] {
        scene.say(&ask(name)).await;
        assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    }
    scene.target_says(&ask(b"hostkeys-00@openssh.com")).await;
    assert_eq!(scene.target_heard().await[..], [message::REQUEST_FAILURE]);
    scene.say(&data(8, b"still there")).await;
    assert_eq!(scene.target_heard().await, data(8, b"still there"));
}

#[tokio::test]
async fn our_answers_keep_their_place_among_the_targets() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    let ask = |name: &[u8]| {
        Writer::new()
            .u8(message::GLOBAL_REQUEST)
            .vec32(name)
            .u8(1)
            .finish()
    };
    scene.say(&ask(b"keepalive@openssh.com")).await;
    scene.say(&ask(b"streamlocal-forward@openssh.com")).await;
    scene
        .say(&request(
            8,
            "env",
            true,
            &Writer::new().vec32(b"A").vec32(b"\xff").finish(),
        ))
        .await;
    scene.say(&request(8, "x11-req", true, b"")).await;
    scene
        .say(&request(
            8,
            "signal",
            true,
            &Writer::new().vec32(b"INT").finish(),
        ))
        .await;
    for _ in 0..3 {
        scene.target_heard().await;
    }
    scene.target_says(&[message::REQUEST_SUCCESS]).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await[..], [message::REQUEST_SUCCESS]);
    assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    for kind in [
        message::CHANNEL_SUCCESS,
        message::CHANNEL_FAILURE,
        message::CHANNEL_SUCCESS,
    ] {
        assert_eq!(scene.heard().await, plain(kind, 3));
    }
}

#[tokio::test]
async fn a_user_who_asks_without_end_is_ended() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    for _ in 0..400 {
        let env = Writer::new().vec32(b"A").vec32(b"B").finish();
        scene
            .user
            .transport
            .send(&request(8, "env", true, &env))
            .unwrap();
    }
    within(scene.user.flush()).await.unwrap();
    let end = scene.end().await;
    assert_eq!(end.reason, CloseReason::Protocol, "{end:?}");
}

#[tokio::test]
async fn channels_of_a_session_are_counted() {
    let mut scene = Scene::new().await;
    for n in 0..512 {
        scene.user.transport.send(&open("session", n, b"")).unwrap();
    }
    scene.say(&open("session", 512, b"")).await;
    let answer = scene.heard().await;
    assert_eq!(
        answer[..9],
        [message::CHANNEL_OPEN_FAILURE, 0, 0, 2, 0, 0, 0, 0, 4]
    );
}

#[tokio::test]
async fn only_the_granted_user_gets_in_and_only_without_a_method() {
    for (user, method, stays) in [
        ("root", "password", true),
        ("toor", "none", false),
        ("root\0", "none", false),
    ] {
        let (user_end, agent_end) = tokio::io::duplex(64 * 1024);
        let root = "root".parse().unwrap();
        let accepting = tokio::spawn(async move {
            let accepted = crate::ssh::user::accept(agent_end, host_identity(), &root, None).await;
            accepted.map(|_| ()).map_err(|error| error.to_string())
        });
        let algorithms = vec!["ssh-ed25519".to_owned()];
        let mut link = Link::new(user_end, Transport::client(algorithms).unwrap());
        within(link.exchange_keys()).await.unwrap();
        let service = Writer::new().u8(5).vec32(b"ssh-userauth").finish();
        link.transport.send(&service).unwrap();
        link.transport.send(&login(user, method)).unwrap();
        assert_eq!(within(link.receive()).await.unwrap()[0], 6);
        if stays {
            let answer = within(link.receive()).await.unwrap();
            assert_eq!(answer[0], message::USERAUTH_FAILURE);
            // Right once, then somebody else: out.
            link.transport.send(&login("other", "none")).unwrap();
        }
        let gone = within(link.receive()).await.map(drop);
        assert!(
            gone.unwrap_err().to_string().contains("must be root"),
            "{user:?}"
        );
        let refused = within(accepting).await.unwrap().unwrap_err();
        assert!(refused.contains("must be root"), "{refused}");
    }
}

/// A target that says what it likes to our client.
async fn connect_to(says: impl AsyncFnOnce(TcpStream)) -> UpstreamError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host_keys = HostKeys::load(folder.path().join("keys"), &[]).unwrap();
    let host = target("web-1", address.port());
    let root = "root".parse().unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let connecting = Upstream::connect(tcp, &host, &root, credential("root"), &host_keys);
    let (connected, ()) = within(async { tokio::join!(connecting, says(stream)) }).await;
    connected.map(drop).unwrap_err()
}

#[tokio::test]
async fn targets_that_are_no_ssh_servers_are_told_from_targets_that_are() {
    let http = connect_to(async |mut stream: TcpStream| {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    })
    .await;
    assert!(http.to_string().contains("web-1"), "{http}");
    assert!(http.hint().unwrap().contains("OpenSSH"), "{http}");
    let flood = connect_to(
        async |mut stream: TcpStream| {
            while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
        },
    )
    .await;
    assert!(
        flood.to_string().contains("does not identify itself"),
        "{flood}"
    );
    let lines = connect_to(
        async |mut stream: TcpStream| {
            while stream.write_all(b"patience\r\n").await.is_ok() {}
        },
    )
    .await;
    assert!(
        lines.to_string().contains("does not identify itself"),
        "{lines}"
    );
    let huge = connect_to(async |mut stream: TcpStream| {
        stream
            .write_all(b"SSH-2.0-x\r\n\x7f\xff\xff\xff")
            .await
            .unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    assert!(huge.to_string().contains("too long"), "{huge}");
}

#[tokio::test]
async fn a_target_that_refuses_the_login_gets_a_hint_that_names_the_remedy() {
    let refused = connect_to(async |stream: TcpStream| {
        let identity = HostIdentity::new(key(66), None).unwrap();
        let mut link = Link::new(stream, Transport::server(identity).unwrap());
        link.exchange_keys().await.unwrap();
        link.receive().await.unwrap();
        link.receive().await.unwrap();
        let failure = Writer::new()
            .u8(message::USERAUTH_FAILURE)
            .vec32(b"publickey")
            .u8(0)
            .finish();
        link.transport.send(&failure).unwrap();
        link.flush().await.unwrap();
        link.stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    assert_eq!(refused.to_string(), "web-1 refused the login as root");
    assert!(refused.hint().unwrap().contains("TrustedUserCAKeys"));
}

#[tokio::test]
async fn a_silent_target_is_given_up_after_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host_keys = HostKeys::load(folder.path().join("keys"), &[]).unwrap();
    let host = target("web-1", address.port());
    let root = "root".parse().unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let _silent = listener.accept().await.unwrap();
    let deadline = Duration::from_millis(50);
    let connecting =
        Upstream::connect_within(deadline, tcp, &host, &root, credential("root"), &host_keys);
    let error = within(connecting).await.map(drop).unwrap_err();
    assert!(matches!(error, UpstreamError::Timeout { .. }), "{error}");
}
