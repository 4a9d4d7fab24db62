//! The message gateway: WebSockets in, frames through a session's lanes, WebSockets out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use postern_proto::ssm::message::{FLAG_FIN, FLAG_SYN, MESSAGE_LIMIT, Message, MessageKind};
use postern_proto::ssm::payload::OpenDataChannel;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message as Frame, http};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hub::{Attached, Hub};
use super::link::Taken;
use super::session::{Cut, Lanes, Side};

const MAX_CONNECTIONS: usize = 512;
/// For TLS, the upgrade and the opening text, each.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a peer to take a close frame.
const GOODBYE: Duration = Duration::from_secs(2);
/// In the SSM Agent's in-process connection.
const PIPE: usize = 256 * 1024;
const PATH: &str = "/v1/data-channel/";
/// Frames written before a flush.
const BATCH: usize = 32;

/// A running gateway.
#[derive(Clone)]
pub(crate) struct Gateway {
    address: SocketAddr,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Gateway {
    /// Serves until `shutdown`; then [`Self::stopped`].
    pub(crate) async fn start(
        ip: IpAddr,
        tls: TlsAcceptor,
        hub: Arc<Hub>,
        shutdown: CancellationToken,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let gateway = Self {
            address: listener.local_addr()?,
            hub,
            tasks: TaskTracker::new(),
            shutdown,
        };
        gateway.tasks.spawn(gateway.clone().accept(listener, tls));
        Ok(gateway)
    }

    /// Where clients go with a session's token.
    pub(crate) fn stream_url(address: SocketAddr, session: &str) -> String {
        format!("wss://{address}{PATH}{session}?role=publish_subscribe")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Waits until every connection is closed.
    pub(crate) async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A connection of an SSM Agent: its own WebSocket, without the network in between.
    pub(super) async fn connect_agent(&self, session: &str) -> WebSocketStream<DuplexStream> {
        let (near, far) = tokio::io::duplex(PIPE);
        let (gateway, session) = (self.clone(), session.to_owned());
        self.tasks.spawn(async move {
            let socket = WebSocketStream::from_raw_socket(far, Role::Server, Some(limits())).await;
            gateway.serve(socket, Side::Agent, &session).await;
        });
        WebSocketStream::from_raw_socket(near, Role::Client, Some(limits())).await
    }

    async fn accept(self, listener: TcpListener, tls: TlsAcceptor) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                () = self.shutdown.cancelled() => return,
                next = next => next,
            };
            let Ok((stream, peer)) = accepted else {
                // Out of descriptors, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (gateway, tls) = (self.clone(), tls.clone());
            self.tasks.spawn(async move {
                match timeout(PATIENCE, upgrade(stream, tls)).await {
                    Ok(Ok((socket, session))) => {
                        gateway.serve(socket, Side::Client, &session).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, "message gateway: {error}"),
                    Err(_) => tracing::debug!(%peer, "message gateway: slow upgrade"),
                }
                drop(slot);
            });
        }
    }

    async fn serve<S>(&self, mut socket: WebSocketStream<S>, side: Side, session: &str)
    where
        S: AsyncRead + AsyncWrite + Unpin + Reset,
    {
        let opening = tokio::select! {
            () = self.shutdown.cancelled() => return,
            opening = timeout(PATIENCE, socket.next()) => opening,
        };
        let attached = match self.open(side, session, opening.ok().flatten()) {
            Ok(attached) => attached,
            Err(why) => {
                self.hub.complain(format!("{session}: {why}"));
                let close = CloseFrame {
                    code: CloseCode::Policy,
                    reason: "".into(),
                };
                let _ = timeout(GOODBYE, socket.close(Some(close))).await;
                return;
            }
        };
        let Attached { lanes, epoch, cut } = attached;
        let connection = Connection {
            hub: &self.hub,
            side,
            session,
            lanes,
            epoch,
            started: Instant::now(),
        };
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = connection.run(socket, cut) => {}
        }
    }

    /// The first frame: a text with the token.
    fn open<E>(
        &self,
        side: Side,
        session: &str,
        opening: Option<Result<Frame, E>>,
    ) -> Result<Attached, String> {
        let Some(Ok(Frame::Text(text))) = opening else {
            return Err("the first frame is not a text".to_owned());
        };
        let open = OpenDataChannel::from_text(&text).map_err(|error| error.to_string())?;
        if open.message_schema_version != "1.0" {
            return Err("the opening text has another schema version".to_owned());
        }
        if (side == Side::Agent) != open.client_instance_id.is_some() {
            return Err("the opening text is the other side's".to_owned());
        }
        let token = open.token_value.expose();
        self.hub
            .attach(side, session, token)
            .map_err(|error| error.to_string())
    }
}

/// One connection that may speak.
struct Connection<'a> {
    hub: &'a Hub,
    side: Side,
    session: &'a str,
    lanes: Arc<Lanes>,
    epoch: u64,
    started: Instant,
}

impl Connection<'_> {
    async fn run<S>(self, socket: WebSocketStream<S>, mut cut: mpsc::Receiver<Cut>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Reset,
    {
        let (mut sink, mut stream) = socket.split();
        let how = tokio::select! {
            () = self.write(&mut sink) => Some(Cut::Close),
            () = self.read(&mut stream) => None,
            how = cut.recv() => how,
            how = self.lifetime() => Some(how),
        };
        self.hub.detach(self.side, self.session, self.epoch);
        match how {
            Some(Cut::Close) => {
                let goodbye = async {
                    let normal = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "".into(),
                    };
                    let _ = sink.send(Frame::Close(Some(normal))).await;
                    // What still comes is nobody's any more.
                    while let Some(Ok(_)) = stream.next().await {}
                };
                let _ = timeout(GOODBYE, goodbye).await;
            }
            Some(Cut::Abort) => {
                if let Ok(socket) = sink.reunite(stream) {
                    socket.get_ref().reset();
                }
            }
            None => {}
        }
    }

    async fn read<S>(&self, stream: &mut S)
    where
        S: futures_util::Stream<Item = Result<Frame, tokio_tungstenite::tungstenite::Error>>
            + Unpin,
    {
        let lane = self.lanes.from(self.side);
        while let Some(Ok(frame)) = stream.next().await {
            match frame {
                Frame::Binary(bytes) => {
                    if self.passes(&bytes) {
                        let (noise, retention) = self.hub.manners(self.side);
                        lane.push(bytes, noise, retention).await;
                    }
                }
                Frame::Text(_) => {
                    self.complain("a text after the first");
                }
                Frame::Close(_) => return,
                Frame::Ping(_) | Frame::Pong(_) | Frame::Frame(_) => {}
            }
        }
    }

    /// Writes until the session is over or the connection is lost.
    async fn write<S>(&self, sink: &mut S)
    where
        S: futures_util::Sink<Frame> + Unpin,
    {
        let lane = self.lanes.to(self.side);
        loop {
            let mut next = Ok(lane.take().await);
            let mut written = 0;
            while let Ok(taken) = next {
                let (frame, is_last) = match taken {
                    Taken::Frame(frame) => (frame, false),
                    Taken::End(frame) => (frame, true),
                };
                if sink.feed(Frame::Binary(frame)).await.is_err() || is_last {
                    return;
                }
                written += 1;
                if written == BATCH {
                    break;
                }
                next = lane.try_take();
            }
            if sink.flush().await.is_err() {
                return;
            }
        }
    }

    /// Ends when the connection has lasted as long as it may.
    async fn lifetime(&self) -> Cut {
        let mut changes = self.hub.watch();
        loop {
            let Some((life, how)) = self.hub.life(self.side) else {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            tokio::select! {
                () = sleep_until(self.started + life) => return how,
                Ok(()) = changes.changed() => {}
            }
        }
    }

    /// Whether a frame is passed on: one that a strict reader would refuse is not.
    fn passes(&self, frame: &Bytes) -> bool {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => return self.complain(&error.to_string()),
        };
        let data = match self.side {
            Side::Client => MessageKind::InputStreamData,
            Side::Agent => MessageKind::OutputStreamData,
        };
        let (passed, flags) = match message.kind {
            kind if kind == data => {
                let first = self.side == Side::Agent && message.sequence == 0;
                (true, if first { FLAG_SYN } else { 0 })
            }
            MessageKind::Acknowledge => (true, FLAG_SYN | FLAG_FIN),
            MessageKind::AgentSessionState if self.side == Side::Agent => {
                (false, FLAG_SYN | FLAG_FIN)
            }
            kind => return self.complain(&format!("a message of the type {kind:?}")),
        };
        if message.flags != flags || message.schema_version != 1 || message.payload.is_empty() {
            self.complain(&format!(
                "{:?} with flags {}, schema {} and {} bytes",
                message.kind,
                message.flags,
                message.schema_version,
                message.payload.len()
            ));
        }
        passed
    }

    fn complain(&self, what: &str) -> bool {
        let (side, session) = (self.side, self.session);
        self.hub.complain(format!("{session}: {side:?}: {what}"));
        false
    }
}

/// A connection that can be reset.
trait Reset {
    fn reset(&self);
}

impl Reset for TlsStream<TcpStream> {
    fn reset(&self) {
        // Without it the kernel would say goodbye properly.
        let _ = self.get_ref().0.set_zero_linger();
    }
}

impl Reset for DuplexStream {
    fn reset(&self) {}
}

/// TLS, then the upgrade of exactly one path.
async fn upgrade(
    stream: TcpStream,
    tls: TlsAcceptor,
) -> anyhow::Result<(WebSocketStream<TlsStream<TcpStream>>, String)> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let mut session = None;
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let check = |request: &Request, response: Response| {
        session = session_of(request);
        match session {
            Some(_) => Ok(response),
            None => {
                let mut refused = ErrorResponse::new(None);
                *refused.status_mut() = http::StatusCode::NOT_FOUND;
                Err(refused)
            }
        }
    };
    let socket =
        tokio_tungstenite::accept_hdr_async_with_config(stream, check, Some(limits())).await?;
    let session = session.ok_or_else(|| anyhow::anyhow!("no session in the path"))?;
    Ok((socket, session))
}

fn session_of(request: &Request) -> Option<String> {
    let uri = request.uri();
    let id = uri.path().strip_prefix(PATH)?;
    let known = uri.query() == Some("role=publish_subscribe");
    (known && !id.is_empty() && !id.contains('/')).then(|| id.to_owned())
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT))
}
