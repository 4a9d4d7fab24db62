//! One task for each session: it owns the data channel, the connection of the moment and the way
//! to the next one.
//!
//! ```text
//! AWS began ─ connected ─ lost ─▶ seeking (ResumeSession, same URL) ─▶ connected ─ … ─ ended at AWS
//! ```

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use postern_proto::ssm::CLIENT_VERSION;
use postern_proto::ssm::channel::{
    CloseReason, Closed, Config, DataChannel, Event as ChannelEvent, KeyRequest, Opened, Seed,
};
use postern_proto::ssm::message::MessageId;
use postern_proto::ssm::payload::{Flag, TerminalSize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::pipe::outage::Outages;

use super::api::{Ssm, Started};
use super::document;
use super::error::SsmError;
use super::kms::{DataKey, data_key};
use super::session::{End, Event, Shared, Start};
use super::socket::Socket;
use super::watchdog::Watchdog;
use super::way_back::{Back, Search, WayBack};

/// Messages taken from the socket before anything else has its turn.
const BATCH: usize = 64;
/// While nothing can be sent, deadlines are looked at that often.
const BLOCKED: Duration = Duration::from_millis(250);
/// A command with a terminal that says nothing for so long has no handshake to come.
const UNNAMED: Duration = Duration::from_secs(5);
/// For AWS to end the session; shorter when the network is known to be lost.
const FAREWELL: Duration = Duration::from_secs(10);
const LOST_FAREWELL: Duration = Duration::from_secs(4);
/// Bytes of data in one message at most, where the path lets them through.
const PAYLOAD: usize = 32 * 1024;

/// What the handle wants.
#[derive(Debug)]
pub(super) enum Order {
    Write(Bytes),
    Resize(TerminalSize),
    Flag(Flag),
    Settle(oneshot::Sender<()>),
}

/// The driver's ends of the handle's channels.
pub(super) struct Ends {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) opened: oneshot::Sender<Result<Arc<Shared>, SsmError>>,
}

/// Begins a session in a task that `ssm` owns.
pub(super) fn spawn(ssm: &Arc<Ssm>, start: Start, ends: Ends) {
    let owner = Arc::clone(ssm);
    ssm.drivers.spawn(async move {
        let begun = match random() {
            Ok(random) => owner.start(&start).await.map(|started| (started, random)),
            Err(error) => Err(error),
        };
        match begun {
            Ok((started, random)) => {
                Driver::new(owner, start, started, ends, random).run().await;
            }
            // A handle that is gone has nobody to tell.
            Err(error) => drop(ends.opened.send(Err(error))),
        }
    });
}

/// What a channel draws from: its seed, its client's id.
type Random = ([u8; 32], [u8; 16]);

fn random() -> Result<Random, SsmError> {
    let (mut seed, mut id) = ([0; 32], [0; 16]);
    aws_lc_rs::rand::fill(&mut seed)
        .and_then(|()| aws_lc_rs::rand::fill(&mut id))
        .map_err(|_| SsmError::NoRandomness)?;
    Ok((seed, id))
}

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
    stop: CancellationToken,
    ended: watch::Sender<Option<Result<(), SsmError>>>,
}

enum Link {
    Up(Box<Socket>),
    Seeking(Search),
    /// Nothing more will come.
    Down,
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

/// What a link did.
enum Turn {
    Worked,
    /// The other side said something.
    Heard,
    Lost(String),
    Back(Result<Back, SsmError>),
}

/// How it ends.
enum Outcome {
    /// We were told to.
    Stopped,
    /// For a reason; `at_aws`: the session is over there.
    Over { end: End, at_aws: bool },
}

impl Driver {
    fn new(
        ssm: Arc<Ssm>,
        start: Start,
        Started {
            id,
            token,
            url,
            request_id,
        }: Started,
        ends: Ends,
        (seed, client): Random,
    ) -> Self {
        let client = MessageId::from_random(client).to_string();
        let config = Config {
            payload: PAYLOAD,
            unnamed_after: (start.document == document::INTERACTIVE).then_some(UNNAMED),
            ..Config::new(Seed::new(seed), CLIENT_VERSION, &client)
        };
        let channel = DataChannel::client(config, Instant::now(), unix());
        let way = WayBack::new(Arc::clone(&ssm), id.clone(), url);
        let watchdog = watchdog(&ssm, &start.target, way.outages());
        Self {
            link: Link::Seeking(way.first(token)),
            payload: Arc::new(AtomicUsize::new(channel.payload())),
            stop: ssm.stop.child_token(),
            ended: watch::Sender::new(None),
            request_id,
            target: start.target,
            document: start.document,
            orders: ends.orders,
            is_mute: false,
            events: ends.events,
            opened: Some(ends.opened),
            pending: Bytes::new(),
            settling: None,
            key: None,
            key_error: None,
            is_port: false,
            watchdog,
            ssm,
            id,
            channel,
            way,
        }
    }

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
        let due = self.channel.poll_timeout().unwrap_or(now + FAREWELL);
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

    async fn finish(mut self, outcome: Outcome) {
        let (end, at_aws) = match outcome {
            Outcome::Stopped => (End::default(), false),
            Outcome::Over { end, at_aws } => (end, at_aws),
        };
        let told = if at_aws {
            Ok(())
        } else {
            self.say_goodbye().await
        };
        if let Link::Up(socket) = std::mem::replace(&mut self.link, Link::Down) {
            socket.close().await;
        }
        if let Some(handle) = self.opened.take() {
            let why = end.why.clone().unwrap_or(SsmError::Over);
            let _gone = handle.send(Err(why));
        }
        self.ended.send_replace(Some(told));
        // The reader takes what is left in its own time, unless it is told that we stop.
        let left = async {
            while let Some(event) = self.channel.poll_event() {
                if let Some(event) = for_reader(event) {
                    self.events.send(event).await?;
                }
            }
            self.events.send(Event::Ended(end)).await
        };
        tokio::select! {
            biased;
            _gone = left => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Has AWS end the session. The flag is quicker, where the SSM Agent understands it.
    async fn say_goodbye(&mut self) -> Result<(), SsmError> {
        let limit = match self.link {
            Link::Up(_) => FAREWELL,
            Link::Seeking(_) | Link::Down => LOST_FAREWELL,
        };
        if self.is_port && self.channel.is_open() {
            self.channel.terminate(Instant::now());
        }
        let ssm = Arc::clone(&self.ssm);
        let id = self.id.clone();
        let mut call = pin!(timeout(limit, ssm.terminate(&id)));
        let mut is_over = false;
        loop {
            let due = self.due();
            let Self { channel, link, .. } = self;
            let turn = tokio::select! {
                told = &mut call => {
                    return match told {
                        _ if is_over => Ok(()),
                        Ok(told) => told,
                        Err(_) => Err(SsmError::NotEnded { session: id.clone() }),
                    };
                }
                turn = poll_fn(|cx| link.poll(cx, channel)), if !is_over => turn,
                () = sleep_until(due.into()) => Turn::Worked,
            };
            match turn {
                Turn::Worked | Turn::Heard => channel.handle_timeout(Instant::now()),
                Turn::Lost(_) | Turn::Back(_) => *link = Link::Down,
            }
            while let Some(event) = channel.poll_event() {
                is_over |= matches!(event, ChannelEvent::Closed(_));
            }
        }
    }
}

impl Link {
    /// Sends and receives, or seeks. Whoever drops this lost nothing.
    fn poll(&mut self, cx: &mut Context<'_>, channel: &mut DataChannel) -> Poll<Turn> {
        match self {
            Self::Down => Poll::Pending,
            Self::Seeking(search) => {
                let back = ready!(search.found.as_mut().poll(cx));
                Poll::Ready(Turn::Back(back))
            }
            Self::Up(socket) => pump(socket, channel, cx).unwrap_or_else(|why| {
                // What arrived before stays in the channel.
                Poll::Ready(Turn::Lost(why))
            }),
        }
    }
}

fn pump(
    socket: &mut Socket,
    channel: &mut DataChannel,
    cx: &mut Context<'_>,
) -> Result<Poll<Turn>, String> {
    let now = Instant::now();
    socket.poll_send(cx, || channel.poll_transmit(now))?;
    let mut taken = 0;
    while taken < BATCH && channel.wants_message() {
        let Poll::Ready(frame) = socket.poll_receive(cx) else {
            break;
        };
        if let Err(dropped) = channel.handle_message(Instant::now(), &frame?) {
            tracing::debug!(%dropped, "a message");
        }
        taken += 1;
    }
    let beat = socket.poll_heartbeat(cx, channel.wants_message())?;
    Ok(match (taken, beat) {
        (1.., _) => Poll::Ready(Turn::Heard),
        (0, true) => Poll::Ready(Turn::Worked),
        (0, false) => Poll::Pending,
    })
}

/// An end of which the other side does not know, or has said nothing.
fn over(why: SsmError, at_aws: bool) -> Outcome {
    let end = End {
        why: Some(why),
        is_incomplete: true,
    };
    Outcome::Over { end, at_aws }
}

fn watchdog(ssm: &Arc<Ssm>, target: &str, outages: &Outages) -> Watchdog {
    let (ssm, asked) = (Arc::clone(ssm), target.to_owned());
    let ask = move || -> BoxFuture<'static, Result<bool, SsmError>> {
        let (ssm, target) = (Arc::clone(&ssm), asked.clone());
        Box::pin(async move { ssm.is_connected(&target).await })
    };
    Watchdog::new(target.to_owned(), outages.clone(), Box::new(ask))
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
