//! One session: drives its [`DataChannel`] over as many connections as it takes.

mod begin;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use postern_proto::ssm::channel::{CloseReason, Config, DataChannel, Event, Seed, Transmit};
use postern_proto::ssm::message::{Message, MessageKind};
use postern_proto::ssm::payload::{Flag, SecretText};
use rand::Rng as _;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::Host;
use super::work::{Input, Output, Work};
use crate::ssm::document::Kind;
use crate::ssm::hub::Order;
use crate::ssm::knobs::Knobs;
use crate::ssm::session::Status;

/// For the handshake response and the challenge, each (SSM-PROTOCOL.md section 4).
const HANDSHAKE: Duration = Duration::from_secs(15);
/// An SSM Agent never gives a client up: the idle timeout does.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3600);
/// For the last messages to be acknowledged (SSM Agent PrepareToCloseChannel).
const SETTLE: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Runs a session to its end and reports it.
pub(super) async fn run(host: Arc<Host>, order: Order) {
    let id = order.session.clone();
    let hub = Arc::clone(host.gateway.hub());
    let mut token = Some(order.token.clone());
    let mut driver = Driver::new(host, order);
    let end = loop {
        let Some(fresh) = token.take().or_else(|| hub.agent_token(&id)) else {
            // It was ended while we were away.
            return;
        };
        let socket = driver.host.gateway.connect_agent(&id).await;
        driver
            .channel
            .handle_connected(now(), since_1970(), SecretText::new(fresh));
        driver.begin();
        if let Some(end) = driver.connection(socket).await {
            break end;
        }
        driver.channel.handle_disconnected();
        tokio::time::sleep(RETRY).await;
    };
    match end {
        End::Reported => {}
        End::Done => hub.complete(&id, Status::Terminated, ""),
        End::Failed(output) => hub.complete(&id, Status::Failed, &output),
        End::Idle => hub.complete(
            &id,
            Status::Terminated,
            "Your session timed out due to inactivity",
        ),
    }
}

/// How a session ended.
#[derive(Clone, Debug)]
enum End {
    /// By the service, which knows.
    Reported,
    Done,
    Failed(String),
    Idle,
}

struct Driver {
    host: Arc<Host>,
    order: Order,
    knobs: Knobs,
    channel: DataChannel,
    challenge: Option<String>,
    work: Option<Work>,
    /// For the work, when it has room.
    input: Option<Input>,
    /// From the work, when the channel has room.
    output: Option<Output>,
    /// Data that comes before is refused, as by a handler that is not ready.
    ready: Option<Instant>,
    used: Instant,
    /// The work is over: the end, and until when the last messages may still be acknowledged.
    over: Option<(End, Instant)>,
}

impl Driver {
    fn new(host: Arc<Host>, order: Order) -> Self {
        let knobs = host.gateway.hub().knobs();
        let mut config = Config::new(
            Seed::new(rand::rng().random()),
            &knobs.agent_version,
            &host.instance,
        );
        config.payload = knobs.payload;
        config.handshake_time = HANDSHAKE;
        config.silence = FOR_EVER;
        let challenge = (order.plan.kms_key.is_some() && knobs.kms_challenge)
            .then(|| BASE64_STANDARD.encode(rand::rng().random::<[u8; 16]>()));
        Self {
            channel: DataChannel::agent(config, now(), since_1970()),
            host,
            order,
            knobs,
            challenge,
            work: None,
            input: None,
            output: None,
            ready: None,
            used: Instant::now(),
            over: None,
        }
    }

    /// Serves one connection. `None`: it was lost.
    async fn connection(&mut self, socket: WebSocketStream<DuplexStream>) -> Option<End> {
        let (mut sink, mut stream) = socket.split();
        let mut outgoing: Option<Frame> = None;
        let mut is_dirty = false;
        loop {
            if let Some(end) = self.advance() {
                let _ = sink.flush().await;
                return Some(end);
            }
            if outgoing.is_none() {
                outgoing = self.channel.poll_transmit(now()).map(frame);
            }
            // While a frame waits to be written, what the channel has to send waits too.
            let has_frame = outgoing.is_some();
            let deadline = self.deadline(!has_frame);
            let takes_output = self.takes_output();
            let inputs = match (&self.input, &self.work) {
                (Some(_), Some(work)) => Some(work.inputs.clone()),
                _ => None,
            };
            let outputs = self.work.as_mut().map(|work| &mut work.outputs);
            tokio::select! {
                written = std::future::poll_fn(|context| match has_frame {
                    true => sink.poll_ready_unpin(context),
                    false => sink.poll_flush_unpin(context),
                }), if has_frame || is_dirty => {
                    written.ok()?;
                    is_dirty = has_frame;
                    if let Some(frame) = outgoing.take() {
                        sink.start_send_unpin(frame).ok()?;
                    }
                }
                frame = stream.next(), if self.channel.wants_message() => match frame?.ok()? {
                    Frame::Binary(bytes) => self.hear(&bytes),
                    Frame::Close(_) => return None,
                    _ => {}
                },
                output = next_output(outputs), if takes_output => {
                    self.output = Some(output);
                }
                place = place(inputs) => {
                    if let (Some(place), Some(input)) = (place, self.input.take()) {
                        place.send(input);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Everything that needs no waiting.
    fn advance(&mut self) -> Option<End> {
        self.channel.handle_timeout(now());
        while self.input.is_none() {
            let Some(event) = self.channel.poll_event() else {
                break;
            };
            if let Some(end) = self.handle(event) {
                return Some(end);
            }
        }
        if !self.channel.is_peer_away() {
            self.send();
        }
        if let Some((end, until)) = &self.over
            && (self.channel.is_settled() || *until <= Instant::now())
        {
            return Some(end.clone());
        }
        let idle = self.used + self.idle_timeout() <= Instant::now();
        idle.then_some(End::Idle)
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Opened(opened) => {
                self.ready = Some(Instant::now() + self.knobs.handler_delay);
                self.work = Some(self.start(&opened));
            }
            Event::KeyOffered(offer) => match self.key(&offer) {
                Ok(key) => self.channel.provide_key(now(), &key, &[]),
                Err(why) => return Some(End::Failed(handshake_error(&why))),
            },
            Event::Data(bytes) => {
                self.used = Instant::now();
                self.input = Some(Input::Data(bytes));
            }
            Event::Resized(size) => {
                self.used = Instant::now();
                self.input = Some(Input::Size(size));
            }
            Event::Flag(Flag::DisconnectToPort) => self.input = Some(Input::Disconnect),
            Event::Flag(Flag::TerminateSession) => return Some(End::Done),
            Event::Closed(closed) => return Some(reason(closed.reason)),
            Event::Flag(_)
            | Event::KeyNeeded(_)
            | Event::Stderr(_)
            | Event::Exit(_)
            | Event::Error(_) => {}
        }
        None
    }

    /// Gives the channel what the work said.
    fn send(&mut self) {
        let Some(output) = self.output.take() else {
            return;
        };
        let now = now();
        let channel = &mut self.channel;
        let sent = match output {
            Output::Data(mut bytes) => {
                let taken = channel
                    .write(now, &bytes)
                    .map(|taken| bytes.split_to(taken));
                self.used = Instant::now();
                self.output = (!bytes.is_empty()).then_some(Output::Data(bytes));
                taken.map(drop)
            }
            Output::Stderr(mut bytes) => {
                let taken = channel
                    .write_stderr(now, &bytes)
                    .map(|taken| bytes.split_to(taken));
                self.output = (!bytes.is_empty()).then_some(Output::Stderr(bytes));
                taken.map(drop)
            }
            Output::Exit(code) => channel.exit(now, code),
            Output::Flag(flag) => channel.flag(now, flag),
            Output::Done(outcome) => {
                let end = match outcome {
                    Ok(()) => End::Done,
                    Err(output) => End::Failed(output),
                };
                self.over = Some((end, Instant::now() + SETTLE));
                match self.order.plan.kind {
                    Kind::Port(_) => Ok(()),
                    _ => channel.tell_state(now, &self.order.session, "Terminating"),
                }
            }
        };
        if let Err(error) = sent {
            tracing::debug!("ssm agent: {error}");
        }
    }

    fn takes_output(&self) -> bool {
        self.output.is_none()
            && self.over.is_none()
            && self.channel.room() > 0
            && !self.channel.is_peer_away()
    }

    fn idle_timeout(&self) -> Duration {
        let minutes = |minutes| Duration::from_secs(60 * minutes);
        self.order
            .plan
            .idle_minutes
            .map_or(self.knobs.idle_timeout, minutes)
    }

    fn deadline(&self, can_send: bool) -> Instant {
        let idle = self.used + self.idle_timeout();
        let own = self.over.as_ref().map_or(idle, |(_, until)| *until);
        let channel = self.channel.poll_timeout().filter(|_| can_send);
        let channel = channel.map(Instant::from_std);
        channel.map_or(own, |channel| channel.min(own))
    }

    fn hear(&mut self, bytes: &Bytes) {
        let is_early = self.ready.is_some_and(|ready| Instant::now() < ready);
        // The genuine handler starts beside the channel: until then the data is not acknowledged.
        if is_early && Message::decode(bytes).is_ok_and(|m| m.kind == MessageKind::InputStreamData)
        {
            return;
        }
        if let Err(error) = self.channel.handle_message(now(), bytes) {
            tracing::debug!("ssm agent: {error}");
        }
    }
}

/// What the work says next; never, when there is none.
async fn next_output(work: Option<&mut mpsc::Receiver<Output>>) -> Output {
    match work {
        Some(outputs) => outputs.recv().await.unwrap_or(Output::Done(Ok(()))),
        None => std::future::pending().await,
    }
}

/// Room for one input. `None`: the work is over and takes no more.
async fn place(work: Option<mpsc::Sender<Input>>) -> Option<mpsc::OwnedPermit<Input>> {
    match work {
        Some(inputs) => inputs.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

fn frame(transmit: Transmit) -> Frame {
    match transmit {
        Transmit::Text(text) => Frame::text(text.expose()),
        Transmit::Binary(bytes) => Frame::Binary(bytes),
    }
}

fn reason(reason: CloseReason) -> End {
    match reason {
        CloseReason::Service(_) => End::Reported,
        CloseReason::ActionFailed {
            action,
            status,
            error,
        } => End::Failed(handshake_error(&format!(
            "{action} failed on client with status {status} error: {error}"
        ))),
        CloseReason::HandshakeTimeout => End::Failed(handshake_error(
            "Handshake timed out. Please ensure that you have the latest version of the session manager plugin.",
        )),
        other => End::Failed(handshake_error(&other.to_string())),
    }
}

/// As the genuine SSM Agent words it (vectors/handshake_failed.jsonl).
fn handshake_error(why: &str) -> String {
    format!("\n----------ERROR-------\nEncountered error while initiating handshake. {why}")
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
