//! Connections that are ready before somebody needs them: they hide TCP and TLS handshakes. How
//! many a forward keeps follows its use; unused ones are let go, since the agent would.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::gateway::Gateway;
use crate::transport::Connection;

/// Shorter than the agent's patience with a connection that opens nothing (5 minutes).
const LIFE: Duration = Duration::from_secs(240);
/// How often the unused are looked at.
const ROUND: Duration = Duration::from_secs(30);
/// Kept ready at first.
const LEAST: usize = 1;
/// Kept ready at most: what a browser or a database pool opens at once.
const MOST: usize = 6;

/// The spare connections of one forward.
pub(super) struct Spares {
    gateway: Arc<Gateway>,
    pool: Arc<Mutex<Pool>>,
    // Dials, and the round that lets go.
    tasks: Mutex<JoinSet<()>>,
}

struct Pool {
    ready: VecDeque<(Connection, Instant)>,
    dialling: usize,
    /// How many to have, ready or on their way.
    wanted: usize,
}

impl Spares {
    /// Begins to dial.
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        let pool = Arc::new(Mutex::new(Pool {
            ready: VecDeque::new(),
            dialling: 0,
            wanted: LEAST,
        }));
        let mut tasks = JoinSet::new();
        tasks.spawn(let_go(Arc::clone(&pool)));
        let spares = Self {
            gateway,
            pool,
            tasks: Mutex::new(tasks),
        };
        spares.refill();
        spares
    }

    /// A spare, if one is ready. [`Self::refill`] comes after the connection that it is for: a
    /// handshake at the same time would hold that up.
    pub(super) fn take(&self) -> Option<Connection> {
        let mut pool = lock(&self.pool);
        // What another pipe lost is likely lost here too, and would show only late.
        pool.ready
            .retain(|(_, born)| born.elapsed() < LIFE && self.gateway.unbroken_since(*born));
        let taken = pool.ready.pop_front();
        if taken.is_none() {
            pool.wanted = (pool.wanted + 1).min(MOST);
        }
        taken.map(|(connection, _)| connection)
    }

    /// Dials what is missing.
    pub(super) fn refill(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let mut pool = lock(&self.pool);
        while pool.ready.len() + pool.dialling < pool.wanted {
            pool.dialling += 1;
            tasks.spawn(dial(Arc::clone(&self.gateway), Arc::clone(&self.pool)));
        }
    }
}

async fn dial(gateway: Arc<Gateway>, pool: Arc<Mutex<Pool>>) {
    let dialled = gateway.spare().await;
    let mut pool = lock(&pool);
    pool.dialling -= 1;
    match dialled {
        Ok(connection) => pool.ready.push_back((connection, Instant::now())),
        // Whoever needs a connection dials one and says what is wrong.
        Err(error) => tracing::debug!(%error, "no spare connection"),
    }
}

/// Nobody came for the oldest: fewer are wanted.
async fn let_go(pool: Arc<Mutex<Pool>>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let mut pool = lock(&pool);
        let kept = pool.ready.len();
        pool.ready.retain(|(_, born)| born.elapsed() < LIFE);
        if pool.ready.len() < kept {
            pool.wanted = LEAST;
        }
    }
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
