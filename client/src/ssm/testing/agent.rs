//! The SSM Agent of one session, with the service in front of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use postern_proto::ssm::channel::{Config, DataChannel, Event, Plan, Seed, Session, Transmit};
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::handshake::Properties;
use postern_proto::ssm::payload::{ChannelClosed, SecretText};
use postern_proto::ssm::smux::frame::HEADER;
use postern_proto::ssm::smux::{self, Limits, Mux, StreamId};
use postern_proto::ssm::{AGENT_VERSION, Role};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::Socket;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plays {
    /// A terminal that greets, tells sizes, and gives back what it gets; Ctrl-D ends it.
    Echo,
    /// A command: `out`, `err`, exit code 5.
    Command,
    /// A command whose document keeps nothing apart.
    Mixed,
    /// Port forwarding: gives back what each connection sends.
    Forward,
    /// Nothing is heard of it.
    Silent,
}

/// What happens to a session.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// The client is here.
    Connect(Arc<Mutex<Option<Socket>>>),
    /// The connection is gone without a word.
    Abort,
    /// The service closes the connection, with 1000.
    Shut,
    /// The session is over, with this text.
    Close(String),
}

const UNIX: Duration = Duration::from_secs(1_700_000_000);

pub(super) async fn run(plays: Plays, mut orders: mpsc::UnboundedReceiver<Order>) {
    let config = Config {
        unnamed_after: None,
        ..Config::new(Seed::new([7; 32]), AGENT_VERSION, "i-0123456789abcdef0")
    };
    let mut channel = DataChannel::agent(config, Instant::now(), UNIX);
    let mut socket: Option<Socket> = None;
    let mut waiting: Vec<u8> = Vec::new();
    let (mut begun, mut last_words) = (false, false);
    let mut echoes = Echoes::new();
    loop {
        if plays == Plays::Forward {
            echoes.serve(&mut channel);
        } else if begun {
            play(plays, &mut channel, &mut waiting, &mut last_words);
        }
        if let Some(up) = &mut socket {
            let mut lost = false;
            while let Some(transmit) = channel.poll_transmit(Instant::now()) {
                if let Transmit::Binary(frame) = transmit {
                    lost |= up.feed(Frame::Binary(frame)).await.is_err();
                }
            }
            if up.flush().await.is_err() || lost {
                socket = None;
                channel.handle_disconnected();
            }
        }
        if last_words && channel.is_settled() {
            close(&mut socket, "").await;
            return;
        }
        let due = channel
            .poll_timeout()
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Connect(new)) => {
                    channel.handle_disconnected();
                    socket = new.lock().unwrap().take();
                    let token = SecretText::new("agent".to_owned());
                    channel.handle_connected(Instant::now(), UNIX, token);
                    if !begun {
                        begun = true;
                        begin(plays, &mut channel);
                    }
                }
                Some(Order::Abort) => {
                    if let Some(up) = socket.take() {
                        abort(up);
                    }
                    channel.handle_disconnected();
                }
                Some(Order::Shut) => {
                    if let Some(mut up) = socket.take() {
                        let _gone = up.close(None).await;
                    }
                    channel.handle_disconnected();
                }
                Some(Order::Close(text)) => {
                    close(&mut socket, &text).await;
                    return;
                }
            },
            frame = next(&mut socket) => match frame {
                Some(Ok(Frame::Binary(frame))) => {
                    let _dropped = channel.handle_message(Instant::now(), &frame);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    socket = None;
                    channel.handle_disconnected();
                }
            },
            () = tokio::time::sleep_until(due.into()) => channel.handle_timeout(Instant::now()),
        }
    }
}

fn begin(plays: Plays, channel: &mut DataChannel) {
    match plays {
        Plays::Echo => {
            channel.begin_unnamed().unwrap();
            channel.write(Instant::now(), b"$ ").unwrap();
        }
        Plays::Command | Plays::Mixed => {
            let plan = Plan {
                session: Session::NonInteractiveCommands,
                encryption: None,
            };
            channel.begin(Instant::now(), plan).unwrap();
        }
        Plays::Forward => {
            let properties = [("portNumber", "80"), ("type", "LocalPortForwarding")];
            let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let plan = Plan {
                session: Session::Port(Properties(properties.into())),
                encryption: None,
            };
            channel.begin(Instant::now(), plan).unwrap();
        }
        Plays::Silent => {}
    }
}

/// Connections, each with what it is still to get back.
struct Echoes {
    mux: Mux,
    owed: BTreeMap<StreamId, Vec<u8>>,
}

impl Echoes {
    fn new() -> Self {
        Self {
            mux: Mux::new(Role::Agent, Limits::default(), false, Instant::now()),
            owed: BTreeMap::new(),
        }
    }

    fn serve(&mut self, channel: &mut DataChannel) {
        let now = Instant::now();
        while self.mux.wants_data()
            && let Some(event) = channel.poll_event()
        {
            if let Event::Data(bytes) = event {
                self.mux.handle_data(now, bytes).unwrap();
            }
        }
        while let Some(event) = self.mux.poll_event() {
            match event {
                smux::Event::Opened(id) => drop(self.owed.insert(id, Vec::new())),
                smux::Event::Readable(_) => {}
                smux::Event::Finished(id) => {
                    self.mux.finish(id);
                    self.owed.remove(&id);
                }
            }
        }
        for (id, owed) in &mut self.owed {
            while owed.len() < 64 * 1024
                && let Some(bytes) = self.mux.read(*id, 64 * 1024)
            {
                owed.extend_from_slice(&bytes);
            }
            let taken = self.mux.write(*id, owed);
            owed.drain(..taken);
        }
        while self.mux.has_output() && channel.room() > HEADER {
            let mut out = Vec::new();
            self.mux
                .poll_transmit(&mut out, channel.room().min(channel.payload()));
            channel.write(now, &out).unwrap();
        }
    }
}

fn play(plays: Plays, channel: &mut DataChannel, waiting: &mut Vec<u8>, last_words: &mut bool) {
    let now = Instant::now();
    while waiting.len() < 64 * 1024
        && let Some(event) = channel.poll_event()
    {
        match event {
            Event::Opened(_) if plays == Plays::Command => {
                channel.write(now, b"out\n").unwrap();
                channel.write_stderr(now, b"err\n").unwrap();
                channel.exit(now, 5).unwrap();
                *last_words = true;
            }
            Event::Opened(_) if plays == Plays::Mixed => {
                channel.write(now, b"out\nerr\n").unwrap();
                *last_words = true;
            }
            Event::Data(bytes) => waiting.extend_from_slice(&bytes),
            Event::Resized(size) => {
                waiting.extend_from_slice(format!("[{}x{}]", size.cols, size.rows).as_bytes());
            }
            _ => {}
        }
    }
    while !waiting.is_empty() {
        match channel.write(now, waiting) {
            Ok(0) | Err(_) => break,
            Ok(taken) => {
                *last_words |= waiting[..taken].contains(&4);
                waiting.drain(..taken);
            }
        }
    }
}

async fn next(
    socket: &mut Option<Socket>,
) -> Option<Result<Frame, tokio_tungstenite::tungstenite::Error>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

/// The service's word that the session is over.
async fn close(socket: &mut Option<Socket>, text: &str) {
    if let Some(up) = socket {
        let body = ChannelClosed {
            output: Some(text.to_owned()),
            ..ChannelClosed::default()
        };
        let id = MessageId::from_random([9; 16]);
        let message = Message::unnumbered(MessageKind::ChannelClosed, id, 1, body.payload());
        let frame: Bytes = message.encode();
        let _gone = up.send(Frame::Binary(frame)).await;
        let _gone = up.close(None).await;
        // Unread bytes would make a reset of it, and that takes back what was sent.
        let reading = async { while let Some(Ok(_)) = up.next().await {} };
        let _late = tokio::time::timeout(Duration::from_secs(5), reading).await;
    }
}

/// A reset instead of a goodbye.
fn abort(socket: Socket) {
    let tcp = socket.get_ref().get_ref().0;
    let _closed = rustix::net::sockopt::set_socket_linger(tcp, Some(Duration::ZERO));
    drop(socket);
}
