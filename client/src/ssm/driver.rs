//! One task for each session: it owns the data channel, the connection of the moment and the way
//! to the next one.
//!
//! ```text
//! AWS began ─ connected ─ lost ─▶ seeking (ResumeSession, same URL) ─▶ connected ─ … ─ ended at AWS
//! ```

mod begin;
mod farewell;
mod link;

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use postern_proto::ssm::channel::{
    CloseReason, Closed, DataChannel, Event as ChannelEvent, KeyRequest, Opened,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use self::link::{Link, Turn};
use super::api::Ssm;
use super::error::SsmError;
use super::kms::{DataKey, data_key};
use super::session::{End, Event, Shared};
use super::unanswered::Unanswered;
use super::watchdog::Watchdog;
use super::way_back::{Back, WayBack};

pub(super) use self::begin::{Ends, Order, spawn};

/// While nothing can be sent, deadlines are looked at that often.
const BLOCKED: Duration = Duration::from_millis(250);
/// How long to wait where the channel waits for nothing.
const NO_DEADLINE: Duration = Duration::from_secs(10);

struct Driver {
    ssm: Arc<Ssm>,
    id: String,
    request_id: Option<String>,
    target: String,
    document: String,
    channel: DataChannel,
    link: Link,
    way: WayBack,
    orders: mpsc::Receiver<Order>,
    // All writers are gone; the reader may still listen.
    is_mute: bool,
    events: mpsc::Sender<Event>,
    opened: Option<oneshot::Sender<Result<Arc<Shared>, SsmError>>>,
    // What is left of a write, and who waits until all writes were acknowledged.
    pending: Bytes,
    settling: Option<oneshot::Sender<()>>,
    key: Option<BoxFuture<'static, Result<DataKey, SsmError>>>,
    // Why the handshake will fail.
    key_error: Option<SsmError>,
    is_port: bool,
    watchdog: Watchdog,
    payload: Arc<AtomicUsize>,
    unanswered: Arc<Unanswered>,
    stop: CancellationToken,
    ended: watch::Sender<Option<Result<(), SsmError>>>,
}

/// What a turn waited for.
enum Happened {
    Stop,
    Ordered(Option<Order>),
    Turned(Turn),
    Answered(Result<DataKey, SsmError>),
    Gone(SsmError),
    Nothing,
}

/// How it ends.
enum Outcome {
    /// We were told to.
    Stopped,
    /// For a reason; `at_aws`: the session is over there.
    Over { end: End, at_aws: bool },
}

impl Driver {
    async fn run(mut self) {
        let outcome = loop {
            let mut full = false;
            if let Some(outcome) = self.hand_on(&mut full) {
                break outcome;
            }
            self.write();
            if let Some(outcome) = self.turn(full).await {
                break outcome;
            }
        };
        self.finish(outcome).await;
    }

    /// Gives events to the reader while it has room: taking one acknowledges it.
    fn hand_on(&mut self, full: &mut bool) -> Option<Outcome> {
        loop {
            let permit = match self.events.try_reserve() {
                Ok(permit) => permit,
                Err(TrySendError::Full(())) => {
                    *full = true;
                    return None;
                }
                Err(TrySendError::Closed(())) => return Some(Outcome::Stopped),
            };
            match self.channel.poll_event()? {
                ChannelEvent::KeyNeeded(request) => {
                    drop(permit);
                    self.key = Some(self.ask_key(request));
                }
                ChannelEvent::Opened(opened) => {
                    drop(permit);
                    self.tell_opened(opened);
                }
                ChannelEvent::Closed(closed) => {
                    drop(permit);
                    return Some(self.closed(closed));
                }
                other => {
                    if let Some(event) = for_reader(other) {
                        permit.send(event);
                    }
                }
            }
        }
    }

    fn tell_opened(&mut self, opened: Opened) {
        self.is_port = opened.port.is_some();
        let shared = Shared {
            id: self.id.clone(),
            request_id: self.request_id.clone(),
            document: self.document.clone(),
            opened,
            away: self.way.outages().watch(),
            payload: Arc::clone(&self.payload),
            unanswered: Arc::clone(&self.unanswered),
            stop: self.stop.clone(),
            ended: self.ended.subscribe(),
        };
        if let Some(handle) = self.opened.take() {
            // Gone: the reader is too, and that ends the session.
            let _gone = handle.send(Ok(Arc::new(shared)));
        }
    }

    fn ask_key(&self, request: KeyRequest) -> BoxFuture<'static, Result<DataKey, SsmError>> {
        let ssm = Arc::clone(&self.ssm);
        let (session, target) = (self.id.clone(), self.target.clone());
        Box::pin(async move { data_key(&ssm, &session, &target, &request).await })
    }

    fn closed(&mut self, closed: Closed) -> Outcome {
        let at_aws = matches!(closed.reason, CloseReason::Service(_));
        let why = match (self.key_error.take(), closed.reason) {
            (Some(error), _) => Some(error),
            (None, CloseReason::Service(text)) if text.trim().is_empty() => None,
            (None, reason) => Some(SsmError::Ended {
                target: self.target.clone(),
                reason,
            }),
        };
        let is_incomplete = closed.is_incomplete;
        Outcome::Over {
            end: End { why, is_incomplete },
            at_aws,
        }
    }

    fn write(&mut self) {
        while !self.pending.is_empty() {
            match self.channel.write(Instant::now(), &self.pending) {
                Ok(0) => break,
                Ok(taken) => self.pending.advance(taken),
                // The session is over: its end is on the way to the reader.
                Err(_) => self.pending.clear(),
            }
        }
        if self.pending.is_empty()
            && self.channel.is_settled()
            && let Some(waiting) = self.settling.take()
        {
            let _gone = waiting.send(());
        }
        self.payload
            .store(self.channel.payload(), Ordering::Relaxed);
        // While we do not listen, or are not connected, silence says nothing of the SSM Agent.
        let listens = matches!(self.link, Link::Up(_)) && self.channel.wants_message();
        if listens && !self.channel.is_settled() {
            self.unanswered.waits();
        } else {
            self.unanswered.clear();
        }
    }

    /// Waits for one thing to happen, and does it.
    async fn turn(&mut self, full: bool) -> Option<Outcome> {
        let listens = self.channel.is_open()
            && self.channel.room() > 0
            && self.pending.is_empty()
            && self.settling.is_none()
            && !self.is_mute;
        let due = self.due();
        let Self {
            channel,
            link,
            orders,
            events,
            key,
            stop,
            watchdog,
            ..
        } = self;
        let is_up = matches!(link, Link::Up(_)) && channel.is_open();
        let happened = tokio::select! {
            () = stop.cancelled() => Happened::Stop,
            () = events.closed() => Happened::Stop,
            // Room for the next event.
            room = events.reserve(), if full => {
                drop(room);
                Happened::Nothing
            }
            order = orders.recv(), if listens => Happened::Ordered(order),
            turn = poll_fn(|cx| link.poll(cx, channel)) => Happened::Turned(turn),
            answer = asked(key) => Happened::Answered(answer),
            error = watchdog.gone(), if is_up => Happened::Gone(error),
            () = sleep_until(due.into()) => {
                channel.handle_timeout(Instant::now());
                Happened::Nothing
            }
        };
        match happened {
            Happened::Stop => return Some(Outcome::Stopped),
            Happened::Ordered(Some(order)) => self.obey(order),
            Happened::Ordered(None) => self.is_mute = true,
            Happened::Turned(turn) => return self.after(turn),
            Happened::Gone(error) => return Some(over(error, false)),
            Happened::Answered(answer) => {
                self.key = None;
                self.use_key(answer);
            }
            Happened::Nothing => {}
        }
        None
    }

    /// When the channel has a deadline. One in the past that cannot be met, since nothing can be
    /// sent, must not keep us busy.
    fn due(&self) -> Instant {
        let now = Instant::now();
        let due = self.channel.poll_timeout().unwrap_or(now + NO_DEADLINE);
        match &self.link {
            Link::Up(socket) if socket.is_blocked() => due.max(now + BLOCKED),
            _ => due,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Write(bytes) => self.pending = bytes,
            Order::Settle(done) => self.settling = Some(done),
            // Refused only when the session is over.
            Order::Resize(size) => drop(self.channel.resize(size)),
            Order::Flag(flag) => drop(self.channel.flag(Instant::now(), flag)),
        }
    }

    fn use_key(&mut self, answer: Result<DataKey, SsmError>) {
        let now = Instant::now();
        match answer {
            Ok(DataKey { key, ciphertext }) => self.channel.provide_key(now, &key, &ciphertext),
            Err(error) => {
                self.channel.refuse_key(now, "the client got no data key");
                self.key_error = Some(error);
            }
        }
    }

    fn after(&mut self, turn: Turn) -> Option<Outcome> {
        match turn {
            Turn::Worked => None,
            Turn::Heard => {
                self.watchdog.heard();
                self.unanswered.clear();
                None
            }
            Turn::Lost(why) => {
                tracing::debug!(session = %self.id, why, "the connection is lost");
                let heard = match &self.link {
                    Link::Up(socket) => socket.heard(),
                    _ => Instant::now(),
                };
                self.channel.handle_disconnected();
                self.link = Link::Seeking(self.way.again(heard, &why));
                None
            }
            Turn::Back(Ok(Back { socket, token })) => {
                tracing::debug!(session = %self.id, "connected");
                self.way.connected();
                self.channel.handle_connected(Instant::now(), unix(), token);
                self.link = Link::Up(Box::new(socket));
                None
            }
            Turn::Back(Err(error)) => {
                self.link = Link::Down;
                let at_aws = error == SsmError::Over;
                Some(over(error, at_aws))
            }
        }
    }
}

/// An end of which the other side does not know, or has said nothing.
fn over(why: SsmError, at_aws: bool) -> Outcome {
    let end = End {
        why: Some(why),
        is_incomplete: true,
    };
    Outcome::Over { end, at_aws }
}

async fn asked(
    key: &mut Option<BoxFuture<'static, Result<DataKey, SsmError>>>,
) -> Result<DataKey, SsmError> {
    match key {
        Some(key) => key.await,
        None => pending().await,
    }
}

fn for_reader(event: ChannelEvent) -> Option<Event> {
    Some(match event {
        ChannelEvent::Data(bytes) => Event::Data(bytes),
        ChannelEvent::Stderr(bytes) => Event::Stderr(bytes),
        ChannelEvent::Exit(code) => Event::Exit(code),
        ChannelEvent::Error(text) => Event::Error(text),
        ChannelEvent::Flag(flag) => Event::Flag(flag),
        _ => return None,
    })
}

/// The time since 1970.
fn unix() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
