//! The SSH server behind the pipe: commands that show what a client passes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use postern_proto::names::LoginUser;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, Session};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, Sig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

/// The host CA as it stands in `Granted`.
pub(super) fn host_ca() -> String {
    key(3).public_key().to_openssh().unwrap()
}

pub(super) async fn serve(stream: DuplexStream, user: LoginUser, status: Arc<Mutex<Option<u32>>>) {
    let mut builder = Builder::new([7; 16], key(4).public_key(), 0, u64::MAX).unwrap();
    builder
        .cert_type(CertType::Host)
        .unwrap()
        .all_principals_valid()
        .unwrap();
    let config = Config {
        keys: vec![key(4)],
        certificates: vec![builder.sign(&key(3)).unwrap()],
        auth_rejection_time_initial: Some(std::time::Duration::ZERO),
        ..Config::default()
    };
    let server = Server {
        user,
        status,
        channels: HashMap::new(),
        told: HashMap::new(),
    };
    if let Ok(session) = russh::server::run_stream(Arc::new(config), stream, server).await {
        let _ended = session.await;
    }
}

#[derive(Clone, Default)]
struct Told {
    environment: Vec<String>,
    terminal: Option<(String, u32, u32, usize)>,
    size: Option<watch::Sender<(u32, u32)>>,
    signal: Option<watch::Sender<Option<String>>>,
    agent: bool,
}

struct Server {
    user: LoginUser,
    status: Arc<Mutex<Option<u32>>>,
    channels: HashMap<ChannelId, Channel<Msg>>,
    told: HashMap<ChannelId, Told>,
}

impl Server {
    fn start(&mut self, id: ChannelId, command: String, session: &mut Session) {
        session.channel_success(id).unwrap();
        let (mut told, channel) = (
            self.told.remove(&id).unwrap_or_default(),
            self.channels.remove(&id).unwrap(),
        );
        let (sizes, signals) = (watch::Sender::new((0, 0)), watch::Sender::new(None));
        told.size = Some(sizes);
        told.signal = Some(signals);
        self.told.insert(id, told.clone());
        let (handle, status) = (session.handle(), Arc::clone(&self.status));
        tokio::spawn(async move {
            let id = channel.id();
            let (reader, writer) = channel.split();
            let mut job = Job {
                id,
                handle,
                reader,
                writer,
                told,
            };
            let exit = job.run(&command).await;
            match exit {
                Ok(code) => {
                    *status.lock().unwrap() = Some(code);
                    let _ = job.writer.exit_status(code).await;
                }
                Err(signal) => {
                    let told = "core? no".to_owned();
                    let _ = job
                        .handle
                        .exit_signal_request(id, signal, false, told, String::new())
                        .await;
                }
            }
            let _ = job.writer.eof().await;
            let _ = job.writer.close().await;
        });
    }
}

struct Job {
    id: ChannelId,
    handle: Handle,
    reader: ChannelReadHalf,
    writer: ChannelWriteHalf<Msg>,
    told: Told,
}

impl Job {
    async fn say(&self, text: &str) {
        let _ = self
            .writer
            .data_bytes(Bytes::copy_from_slice(text.as_bytes()))
            .await;
    }

    async fn run(&mut self, command: &str) -> Result<u32, Sig> {
        match command.split_once(' ').unwrap_or((command, "")) {
            ("status", code) => return Ok(code.parse().unwrap()),
            ("signal", "TERM") => return Err(Sig::TERM),
            ("both", _) => {
                self.say("out\n").await;
                let _ = self
                    .writer
                    .extended_data_bytes(1, Bytes::from_static(b"err\n"))
                    .await;
            }
            ("cat", _) => {
                while let Some(message) = self.reader.wait().await {
                    match message {
                        ChannelMsg::Data { data } => {
                            let _ = self.writer.data_bytes(data).await;
                        }
                        ChannelMsg::Eof => break,
                        _ => {}
                    }
                }
            }
            // Sends as many bytes as it is told while it takes all that comes, then the hash of that.
            ("bulk", length) => {
                let sent = Bytes::from(pattern(length.parse().unwrap(), 1));
                let (mut got, reader) = (Vec::new(), &mut self.reader);
                let receive = async {
                    while let Some(message) = reader.wait().await {
                        match message {
                            ChannelMsg::Data { data } => got.extend_from_slice(&data),
                            ChannelMsg::Eof => break,
                            _ => {}
                        }
                    }
                };
                tokio::join!(self.writer.data_bytes(sent), receive)
                    .0
                    .unwrap();
                self.say(&hex::encode(digest(&SHA256, &got))).await;
            }
            ("told", _) => {
                let Told {
                    environment,
                    terminal,
                    agent,
                    ..
                } = &self.told;
                self.say(&format!("{environment:?} {terminal:?} agent={agent}"))
                    .await;
            }
            // A new size or a signal is printed; a signal ends it.
            ("wait", _) => {
                self.say("ready\n").await;
                let mut sizes = self.told.size.as_ref().unwrap().subscribe();
                let mut signals = self.told.signal.as_ref().unwrap().subscribe();
                loop {
                    tokio::select! {
                        _ = sizes.changed() => {
                            let size = *sizes.borrow_and_update();
                            self.say(&format!("{size:?}\n")).await;
                        }
                        _ = signals.changed() => {
                            let name = signals.borrow_and_update().clone();
                            self.say(&format!("{}\n", name.unwrap())).await;
                            return Ok(3);
                        }
                        message = self.reader.wait() => if message.is_none() { return Ok(4) }
                    }
                }
            }
            ("ask-agent", _) => {
                let mut channel = self
                    .handle
                    .channel_open_agent()
                    .await
                    .unwrap()
                    .into_stream();
                channel.write_all(b"hello agent").await.unwrap();
                let mut answer = [0; 5];
                channel.read_exact(&mut answer).await.unwrap();
                self.say(&String::from_utf8_lossy(&answer)).await;
            }
            ("callback", port) => {
                let port = port.parse().unwrap();
                let opened = self
                    .handle
                    .channel_open_forwarded_tcpip("localhost", port, "127.0.0.1", 9)
                    .await;
                let mut channel = opened.unwrap().into_stream();
                channel.write_all(b"ping").await.unwrap();
                let mut answer = [0; 4];
                channel.read_exact(&mut answer).await.unwrap();
                self.say(&String::from_utf8_lossy(&answer)).await;
            }
            // A shell of a kind: echoes, ends with `exit N`.
            ("", _) => {
                self.say("$ ").await;
                let mut line = String::new();
                while let Some(message) = self.reader.wait().await {
                    let ChannelMsg::Data { data } = message else {
                        continue;
                    };
                    line.push_str(&String::from_utf8_lossy(&data));
                    self.say(&String::from_utf8_lossy(&data)).await;
                    if let Some(code) = line.trim_end_matches(['\r', '\n']).strip_prefix("exit ")
                        && line.ends_with(['\r', '\n'])
                    {
                        return Ok(code.parse().unwrap());
                    }
                    if line.ends_with(['\r', '\n']) {
                        line.clear();
                    }
                }
            }
            _ => return Ok(127),
        }
        let _ = self.id;
        Ok(0)
    }
}

/// Bytes that show a shift, a loss or a repetition.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        Ok(if user == self.user.as_str() {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let host = if host == "db.internal" {
            "127.0.0.1"
        } else {
            host
        }
        .to_owned();
        tokio::spawn(async move {
            let Ok(mut socket) = TcpStream::connect((host.as_str(), port as u16)).await else {
                return;
            };
            reply.accept().await;
            let mut channel = channel.into_stream();
            let _ended = tokio::io::copy_bidirectional(&mut channel, &mut socket).await;
        });
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        _address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if *port == 0 {
            *port = 40_000;
        }
        Ok(*port != 1)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.told
            .entry(channel)
            .or_default()
            .environment
            .push(format!("{name}={value}"));
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if term == "refused" {
            return session.channel_failure(channel);
        }
        self.told.entry(channel).or_default().terminal =
            Some((term.to_owned(), columns, rows, modes.len().min(1)));
        session.channel_success(channel)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.told.entry(channel).or_default().agent = true;
        session.channel_success(channel)?;
        Ok(true)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(size) = self.told.get(&channel).and_then(|told| told.size.as_ref()) {
            size.send_replace((columns, rows));
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(signals) = self
            .told
            .get(&channel)
            .and_then(|told| told.signal.as_ref())
        {
            signals.send_replace(Some(format!("{signal:?}")));
        }
        Ok(())
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(channel, String::new(), session);
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if data == b"refuse" {
            return session.channel_failure(channel);
        }
        self.start(channel, String::from_utf8_lossy(data).into_owned(), session);
        Ok(())
    }
}
