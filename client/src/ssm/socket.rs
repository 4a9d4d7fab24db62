//! One WebSocket to the message service, over our own TLS, with a heartbeat.
//!
//! SSM-PROTOCOL.md section 1: exactly the URL that AWS gave, no header, subprotocol or compression
//! of ours. The plugin pings with the body `keepalive` at once and every five minutes; we ask
//! sooner when nothing is heard, since that is what tells a dead path from a quiet one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use http::Uri;
use postern_proto::ssm::channel::Transmit;
use postern_proto::ssm::message::MESSAGE_LIMIT;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::{Sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::proxy::{Proxies, Stream};

use super::error::SsmError;

/// From the name to the end of the WebSocket handshake.
const DIAL_DEADLINE: Duration = Duration::from_secs(15);
/// Without a sign of the service: when it is asked for one, and how long it has to answer.
const QUIET: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
/// How long writing may be blocked while nothing is heard.
const STALL: Duration = Duration::from_secs(20);
/// For a polite end.
const FAREWELL: Duration = Duration::from_millis(300);
/// Bytes between system calls.
const BUFFER: usize = 64 * 1024;
const KEEPALIVE: &[u8] = b"keepalive";

/// A connection that is up.
pub(super) struct Socket {
    stream: WebSocketStream<TlsStream<Stream>>,
    // The last sign of the service.
    heard: Instant,
    ping: Ping,
    // Whether the last turn read: silence counts only while somebody listens.
    listening: bool,
    blocked: bool,
    timer: Pin<Box<Sleep>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ping {
    Idle,
    Due,
    Queued,
    Sent(Instant),
}

impl Socket {
    /// Connects to the URL of a stream.
    pub(super) async fn open(
        url: &str,
        tls: &Arc<ClientConfig>,
        proxies: &Proxies,
    ) -> Result<Self, SsmError> {
        let uri: Uri = url.parse().map_err(|_| failed(url, "it is no URL"))?;
        let host = uri.host().ok_or_else(|| failed(url, "it names no host"))?;
        if uri.scheme_str() != Some("wss") {
            return Err(failed(host, "only wss is encrypted, and this is not"));
        }
        let port = uri.port_u16().unwrap_or(443);
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| failed(host, "it is no host name"))?;
        let connect = async {
            let tcp = proxies.connect(host, port, tls).await;
            let tcp = tcp.map_err(|error| SsmError::Stream {
                host: host.to_owned(),
                hint: error.hint(),
                is_answer: error.is_answer(),
                cause: error.to_string(),
            })?;
            let tls = TlsConnector::from(Arc::clone(tls))
                .connect(name, tcp)
                .await
                .map_err(|error| SsmError::Stream {
                    host: host.to_owned(),
                    cause: error.to_string(),
                    hint: None,
                    is_answer: is_certificate(&error),
                })?;
            let (stream, _answer) = client_async_with_config(&uri, tls, Some(limits()))
                .await
                .map_err(|error| failed(host, &error.to_string()))?;
            Ok::<_, SsmError>(stream)
        };
        let stream = timeout(DIAL_DEADLINE, connect)
            .await
            .map_err(|_| failed(host, "it did not answer in time"))??;
        Ok(Self {
            stream,
            heard: Instant::now(),
            ping: Ping::Due,
            listening: false,
            blocked: false,
            timer: Box::pin(tokio::time::sleep(QUIET)),
        })
    }

    /// When the service was last heard.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether nothing more can be sent at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what `next` gives for as long as there is room. An error says why the connection is
    /// of no more use.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut() -> Option<Transmit>,
    ) -> Result<(), String> {
        loop {
            self.blocked = false;
            match Pin::new(&mut self.stream).poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(lost(&error)),
                Poll::Pending => {
                    self.blocked = true;
                    return Ok(());
                }
            }
            let message = match next() {
                // The opening text comes first; a ping before it would be an odd one out.
                Some(Transmit::Text(text)) => Message::text(text.expose()),
                Some(Transmit::Binary(frame)) => Message::Binary(frame),
                None if self.ping == Ping::Due => {
                    self.ping = Ping::Queued;
                    Message::Ping(Bytes::from_static(KEEPALIVE))
                }
                None => break,
            };
            Pin::new(&mut self.stream)
                .start_send(message)
                .map_err(|error| lost(&error))?;
        }
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                if self.ping == Ping::Queued {
                    self.ping = Ping::Sent(Instant::now());
                }
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(lost(&error)),
            Poll::Pending => {
                self.blocked = true;
                Ok(())
            }
        }
    }

    /// The next message. An error says why the connection is of no more use.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, String>> {
        loop {
            let Poll::Ready(message) = Pin::new(&mut self.stream).poll_next(cx) else {
                return Poll::Pending;
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Err(lost(&error))),
                None => return Poll::Ready(Err("the service closed the connection".to_owned())),
            };
            self.heard = Instant::now();
            self.ping = match self.ping {
                Ping::Sent(_) => Ping::Idle,
                other => other,
            };
            match message {
                Message::Binary(frame) => return Poll::Ready(Ok(frame)),
                // The plugin takes them as if they were binary.
                Message::Text(text) => return Poll::Ready(Ok(text.into())),
                Message::Close(frame) => return Poll::Ready(Err(closed(frame.as_ref()))),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Looks at the clock: `true` when a ping is due now. An error says that the path is dead.
    /// `listening`: whether this turn reads.
    pub(super) fn poll_heartbeat(
        &mut self,
        cx: &mut Context<'_>,
        listening: bool,
    ) -> Result<bool, String> {
        if listening && !self.listening {
            // What came meanwhile was not looked at.
            self.heard = Instant::now();
            self.ping = match self.ping {
                Ping::Sent(_) => Ping::Idle,
                other => other,
            };
        }
        self.listening = listening;
        if !listening {
            return Ok(false);
        }
        loop {
            let due = match self.ping {
                Ping::Sent(at) => at.max(self.heard) + ANSWER,
                Ping::Idle => self.heard + QUIET,
                Ping::Due | Ping::Queued => self.heard + STALL,
            };
            if due <= Instant::now() {
                let seconds = self.heard.elapsed().as_secs();
                match self.ping {
                    Ping::Idle => {
                        self.ping = Ping::Due;
                        return Ok(true);
                    }
                    _ => return Err(format!("nothing was heard for {seconds} s")),
                }
            }
            self.timer.as_mut().reset(due.into());
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(false);
            }
        }
    }

    /// Ends the connection politely, if that is quick.
    pub(super) async fn close(mut self) {
        let _late = timeout(FAREWELL, self.stream.close(None)).await;
    }
}

fn limits() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = BUFFER;
    config.write_buffer_size = BUFFER;
    config.max_write_buffer_size = 2 * MESSAGE_LIMIT;
    config.max_message_size = Some(MESSAGE_LIMIT);
    config.max_frame_size = Some(MESSAGE_LIMIT);
    config
}

/// Whether the certificate is the reason.
fn is_certificate(error: &std::io::Error) -> bool {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

fn lost(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            "the connection is closed".to_owned()
        }
        tungstenite::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn closed(frame: Option<&CloseFrame>) -> String {
    match frame {
        None => "the service closed the connection".to_owned(),
        Some(frame) if frame.reason.is_empty() => {
            format!("the service closed the connection ({})", frame.code)
        }
        Some(frame) => format!(
            "the service closed the connection ({} {})",
            frame.code,
            frame.reason.as_str()
        ),
    }
}

fn failed(host: &str, cause: &str) -> SsmError {
    SsmError::Stream {
        host: host.to_owned(),
        cause: cause.to_owned(),
        hint: None,
        is_answer: false,
    }
}
