//! Targets and users that break the protocol. Both speak through a transport of our own, so that
//! they can say whatever they like.

mod channels;
mod floods;
mod logins;
mod messages;

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
            false,
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
        // But for what is kept back of its window.
        let mut opened = message::Open::parse(&open("session", 3, b"").into()).unwrap();
        opened.keep_spare();
        assert_eq!(self.target_heard().await, opened.passed);
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
