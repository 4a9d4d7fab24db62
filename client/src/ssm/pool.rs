//! The SSM sessions of one forward: an SSM Agent sends below 1 MB/s in each, whatever the client
//! does, and several add up (SSM-PROTOCOL.md section 9).
//!
//! - The first comes with the forward, so that a refusal is told at once. A further one is
//!   opened when a connection comes and every session has one already, up to the limit; the
//!   connection waits for it for [`PATIENCE`], then shares the session with the fewest.
//! - A session that nobody used for [`IDLE`] is closed, except the last.
//! - A session that ended takes its connections with it; the next connection finds another.
//! - With an old SSM Agent each connection has a session of its own ([`super::basic`]); when all
//!   are taken, the next connection waits.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::payload::Flag;
use postern_proto::ssm::version::PortMode;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::basic::{Whole, incomplete};
use super::mux::{HoldUp, Streams};
use super::relay::Far;
use super::session::{Event, Reader, Session, Writer};
use crate::error::Error;
use crate::output::Printer;
use crate::pipe::outage;

/// How long a connection waits for a session of its own while it could share one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an unused session is kept.
const IDLE: Duration = Duration::from_secs(60);
/// How often unused ones are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// No further session is tried for this long after one could not be had.
const BACK_OFF: Duration = Duration::from_secs(30);
/// For what was written last to reach the SSM Agent when all is to end.
const SETTLING: Duration = Duration::from_secs(2);

/// Starts one more session; an error is told to whoever waits.
pub(super) trait Opener: Send + Sync + 'static {
    /// Starts it.
    fn open(&self) -> impl Future<Output = Result<Session, Error>> + Send;
}

/// The sessions of one forward.
pub(super) struct Pool<O: Opener> {
    shared: Arc<Shared<O>>,
    _sweeping: AbortOnDropHandle<()>,
}

struct Shared<O: Opener> {
    opener: O,
    limit: usize,
    /// The destination, for people.
    destination: String,
    printer: Printer,
    state: Mutex<State>,
    /// A session was opened, was lost, or became free.
    changed: Notify,
    /// One of the sessions tells of the network, for all.
    teller: Semaphore,
}

struct State {
    members: Vec<Member>,
    /// Old SSM Agents: sessions that wait for their connection.
    fresh: Vec<Whole>,
    /// Old SSM Agents: connections with a session of their own.
    taken: usize,
    is_basic: bool,
    /// Sessions that are being opened, and the tasks that do it.
    opening: usize,
    tasks: JoinSet<()>,
    /// Why the last one could not be had, and when that was.
    failed: Option<(Instant, Error)>,
}

/// A multiplexed session.
struct Member {
    streams: Streams,
    writer: Writer,
    idle_since: Option<Instant>,
    _carrier: AbortOnDropHandle<()>,
}

/// A connection to the target, and its place in the pool.
pub(super) struct Lease<O: Opener> {
    far: Far,
    place: Place<O>,
}

/// Told when it is free again.
struct Place<O: Opener> {
    shared: Arc<Shared<O>>,
    is_whole: bool,
}

impl<O: Opener> Pool<O> {
    /// Begins with a session that is open.
    pub(super) fn new(
        first: Session,
        opener: O,
        limit: usize,
        destination: String,
        printer: Printer,
    ) -> Self {
        let shared = Arc::new(Shared {
            opener,
            limit: limit.max(1),
            destination,
            printer,
            state: Mutex::new(State {
                members: Vec::new(),
                fresh: Vec::new(),
                taken: 0,
                is_basic: false,
                opening: 0,
                tasks: JoinSet::new(),
                failed: None,
            }),
            changed: Notify::new(),
            teller: Semaphore::new(1),
        });
        shared.lock().add(&shared, first);
        let sweeping = tokio::spawn(sweep(Arc::clone(&shared)));
        Self {
            shared,
            _sweeping: AbortOnDropHandle::new(sweeping),
        }
    }

    /// A connection to the target for the local program at `peer`.
    pub(super) async fn connect(&self, peer: SocketAddr) -> Result<Lease<O>, Error> {
        let shared = &self.shared;
        let mut wish = Wish {
            peer,
            since: Instant::now(),
            is_late: false,
        };
        let late = tokio::time::sleep(PATIENCE);
        tokio::pin!(late);
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let choice = shared.lock().choose(shared, &wish)?;
            if let Some(far) = choice {
                let place = Place {
                    shared: Arc::clone(shared),
                    is_whole: matches!(far, Far::Whole(_)),
                };
                return Ok(Lease { far, place });
            }
            tokio::select! {
                () = changed => {}
                () = &mut late, if !wish.is_late => wish.is_late = true,
            }
        }
    }

    /// How many connections there are.
    pub(super) fn load(&self) -> usize {
        self.shared.lock().load()
    }

    /// Lets what was written last arrive, and ends all sessions. Bounded.
    pub(super) async fn close(self) {
        let (members, fresh, tasks) = {
            let mut state = self.shared.lock();
            (
                std::mem::take(&mut state.members),
                std::mem::take(&mut state.fresh),
                std::mem::take(&mut state.tasks),
            )
        };
        // Dropped, those that are being opened end by themselves.
        drop(tasks);
        let members = members.into_iter().map(Member::end);
        let fresh = fresh.into_iter().map(Whole::end);
        tokio::join!(
            futures_util::future::join_all(members),
            futures_util::future::join_all(fresh)
        );
    }
}

/// Ends its sessions in the background: their carriers know the pool.
impl<O: Opener> Drop for Pool<O> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.members.clear();
        state.fresh.clear();
        state.tasks.abort_all();
    }
}

impl<O: Opener> Shared<O> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn load(&self) -> usize {
        let shared: usize = self.members.iter().map(|it| it.streams.count()).sum();
        shared + self.taken
    }

    fn add<O: Opener>(&mut self, shared: &Arc<Shared<O>>, session: Session) {
        let Some(PortMode::Multiplexed { keepalive }) = session.opened().port else {
            self.is_basic = true;
            self.fresh.push(Whole::basic(session));
            return;
        };
        self.is_basic = false;
        let streams = Streams::new(keepalive, Instant::now());
        let (writer, reader) = session.split();
        let carrying = carry(writer.clone(), reader, streams.clone(), Arc::clone(shared));
        self.members.push(Member {
            streams,
            writer,
            idle_since: None,
            _carrier: AbortOnDropHandle::new(tokio::spawn(carrying)),
        });
    }

    /// A place for a connection; `None` when one is to be waited for.
    fn choose<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<Option<Far>, Error> {
        while self.tasks.try_join_next().is_some() {}
        self.members.retain(|it| it.streams.over().is_none());
        if self.is_basic {
            return self.choose_whole(shared, wish);
        }
        let least = self.least();
        let is_free = least.is_some_and(|(_, load)| load == 0);
        if !is_free && self.members.len() + self.opening < shared.limit {
            self.begin_opening(shared, wish)?;
        }
        if !is_free && self.opening > 0 && (!wish.is_late || least.is_none()) {
            return Ok(None);
        }
        let Some(member) = least.and_then(|(place, _)| self.members.get_mut(place)) else {
            return Ok(None);
        };
        member.idle_since = None;
        Ok(Some(Far::Stream(member.streams.open(wish.peer)?)))
    }

    fn choose_whole<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<Option<Far>, Error> {
        if let Some(fresh) = self.fresh.pop() {
            self.taken += 1;
            return Ok(Some(Far::Whole(fresh)));
        }
        if self.taken + self.opening < shared.limit {
            self.begin_opening(shared, wish)?;
        }
        Ok(None)
    }

    /// The session with the fewest connections; one that is held up only when all are.
    fn least(&self) -> Option<(usize, usize)> {
        let loads = self.members.iter().enumerate().map(|(place, member)| {
            let load = member.streams.count();
            (member.streams.is_full(), load, place)
        });
        loads.min().map(|(_, load, place)| (place, load))
    }

    /// Opens one more, unless that failed just now: an error where there is nothing to share.
    fn begin_opening<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<(), Error> {
        if let Some((when, error)) = &self.failed {
            if self.members.is_empty() && *when >= wish.since {
                return Err(error.clone());
            }
            if !self.members.is_empty() && when.elapsed() < BACK_OFF {
                return Ok(());
            }
        }
        self.opening += 1;
        let shared = Arc::clone(shared);
        self.tasks.spawn(async move {
            let opened = shared.opener.open().await;
            let mut state = shared.lock();
            state.opening -= 1;
            match opened {
                Ok(session) => {
                    state.failed = None;
                    state.add(&shared, session);
                }
                Err(error) => {
                    tracing::info!(%error, "no further SSM session");
                    state.failed = Some((Instant::now(), error));
                }
            }
            drop(state);
            shared.changed.notify_waiters();
        });
        Ok(())
    }
}

/// A connection that wants a place.
struct Wish {
    peer: SocketAddr,
    since: Instant,
    /// Whether it waited for a session of its own long enough.
    is_late: bool,
}

impl Member {
    async fn end(self) {
        let settled = async {
            self.streams.drained().await;
            self.writer.settled().await
        };
        if !matches!(tokio::time::timeout(SETTLING, settled).await, Ok(Ok(()))) {
            tracing::debug!(
                session = self.writer.id(),
                "the last bytes were not acknowledged"
            );
        }
        if let Err(error) = self.writer.end().await {
            tracing::debug!(%error, session = self.writer.id(), "not ended at AWS");
        }
    }
}

impl<O: Opener> Lease<O> {
    /// The connection.
    pub(super) fn far(&mut self) -> &mut Far {
        &mut self.far
    }

    /// Whether no other connection shares its session.
    pub(super) fn is_alone(&self) -> bool {
        self.place.is_whole
    }

    /// Gives the place back. Bounded.
    pub(super) async fn end(self) {
        let Self { far, place } = self;
        match far {
            // Its last bytes go out with those of the others.
            Far::Stream(stream) => drop(stream),
            Far::Whole(whole) => whole.end().await,
        }
        drop(place);
    }
}

impl<O: Opener> Drop for Place<O> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.taken -= usize::from(self.is_whole);
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

/// Moves the bytes of one multiplexed session until it is over.
async fn carry<O: Opener>(
    writer: Writer,
    mut reader: Reader,
    streams: Streams,
    shared: Arc<Shared<O>>,
) {
    let why = tokio::select! {
        why = send(&writer, &streams) => why,
        why = receive(&mut reader, &streams, &shared) => why,
        why = keep_alive(&streams) => why,
        why = tell_of_network(&writer, &shared) => why,
    };
    let connections = streams.count();
    streams.end(why.clone());
    if connections > 0 {
        shared.printer.warning(format!(
            "an SSM session to {} ended, and {connections} connections with it: {why}",
            shared.destination
        ));
    } else {
        tracing::info!(session = writer.id(), %why, "an unused SSM session ended");
    }
    shared.changed.notify_waiters();
    // Whatever ended it here, it ends at AWS.
    if let Err(error) = writer.end().await {
        tracing::debug!(%error, session = writer.id(), "not ended at AWS");
    }
}

/// What is sent is decided late: only when the session takes it.
async fn send(writer: &Writer, streams: &Streams) -> Error {
    loop {
        streams.has_output().await;
        let Ok(permit) = writer.reserve().await else {
            // The reader has the reason.
            return std::future::pending().await;
        };
        let out = streams.output(writer.payload());
        if !out.is_empty() {
            permit.send(Bytes::from(out));
        }
    }
}

async fn receive<O: Opener>(reader: &mut Reader, streams: &Streams, shared: &Shared<O>) -> Error {
    loop {
        let tell = |it: HoldUp| {
            shared.printer.warning(format!(
                "the connection from {} does not read: {} other connections to {} wait for it",
                it.peer, it.others, shared.destination
            ));
        };
        streams.space(tell).await;
        match reader.next_event().await {
            Some(Event::Data(bytes)) => {
                if let Err(error) = streams.handle_data(Instant::now(), bytes) {
                    return Error::failed(format!("the SSM Agent broke the protocol: {error}"))
                        .hint("connect again; if it stays, restart the SSM Agent of the target");
                }
            }
            Some(Event::Flag(Flag::ConnectToPortError)) => streams.handle_refusal(),
            Some(Event::Ended(end)) => {
                return match end.why {
                    Some(error) => error.into(),
                    None if end.is_incomplete => incomplete(),
                    None => Error::failed("the session was ended at the other side"),
                };
            }
            Some(_) => {}
            None => return Error::failed("the session is over"),
        }
    }
}

/// Where one side is so old that the other expects signs of life.
async fn keep_alive(streams: &Streams) -> Error {
    loop {
        match streams.handle_timeout(Instant::now()) {
            Ok(Some(next)) => tokio::time::sleep_until(next.into()).await,
            Ok(None) => return std::future::pending().await,
            Err(error) => return Error::failed(error.to_string()),
        }
    }
}

/// Never returns.
async fn tell_of_network<O: Opener>(writer: &Writer, shared: &Shared<O>) -> Error {
    let _turn = shared.teller.acquire().await;
    outage::tell(writer.away(), shared.printer).await;
    std::future::pending().await
}

/// Ends sessions that nobody uses; never returns.
async fn sweep<O: Opener>(shared: Arc<Shared<O>>) {
    let mut ending = JoinSet::new();
    loop {
        tokio::time::sleep(SWEEP).await;
        while ending.try_join_next().is_some() {}
        for member in shared.lock().unused(Instant::now()) {
            ending.spawn(member.end());
        }
    }
}

impl State {
    /// Takes the sessions out that were unused for long enough; one always stays.
    fn unused(&mut self, now: Instant) -> Vec<Member> {
        self.members.retain(|it| it.streams.over().is_none());
        let mut unused = Vec::new();
        let mut place = 0;
        while let Some(member) = self.members.get_mut(place) {
            if member.streams.count() > 0 {
                member.idle_since = None;
            } else {
                let since = *member.idle_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= IDLE && self.members.len() > 1 {
                    unused.push(self.members.swap_remove(place));
                    continue;
                }
            }
            place += 1;
        }
        unused
    }
}

#[cfg(test)]
mod tests;
