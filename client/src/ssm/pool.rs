//! The SSM sessions of one forward: an SSM Agent sends below 1 MB/s in each, whatever the client
//! does, and several add up (SSM-PROTOCOL.md section 9).
//!
//! - The first comes with the forward, so that a refusal is told at once. A further one is
//!   opened when a connection comes and every session has one already, up to the limit; the
//!   connection waits for it for [`PATIENCE`], then shares the session with the fewest.
//! - A session that nobody used for a minute is closed, except the last.
//! - A session that ended takes its connections with it; the next connection finds another.
//! - With an old SSM Agent each connection has a session of its own ([`super::basic`]); when all
//!   are taken, the next connection waits.

mod carry;
mod state;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::state::{Member, State, Wish};
use super::basic::Whole;
use super::relay::Far;
use super::session::Session;
use crate::error::Error;
use crate::output::Printer;

/// How long a connection waits for a session of its own while it could share one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often unused ones are looked for.
const SWEEP: Duration = Duration::from_secs(15);

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
            state: Mutex::new(State::default()),
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

#[cfg(test)]
mod tests;
