//! A connection that is ready before somebody needs it: hides TCP and TLS handshakes. One per
//! forward, renewed whenever it is used; an unused one is let go, since the agent would.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::gateway::Gateway;
use crate::transport::Connection;

/// Shorter than the agent's patience with a connection that opens nothing (5 minutes).
const LIFE: Duration = Duration::from_secs(240);

type Slot = Arc<Mutex<Option<(Connection, Instant)>>>;

/// Holds at most one spare connection.
pub(super) struct Spare {
    gateway: Arc<Gateway>,
    slot: Slot,
    dialling: Mutex<JoinSet<()>>,
}

impl Spare {
    /// Begins to dial one.
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        let spare = Self {
            gateway,
            slot: Slot::default(),
            dialling: Mutex::default(),
        };
        spare.renew();
        spare
    }

    /// The spare, if one is ready; the next is dialled meanwhile.
    pub(super) fn take(&self) -> Option<Connection> {
        let taken = self
            .slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.renew();
        taken
            // What another pipe lost is likely lost here too, and would show only late.
            .filter(|(_, born)| born.elapsed() < LIFE && self.gateway.unbroken_since(*born))
            .map(|(connection, _)| connection)
    }

    fn renew(&self) {
        let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        while dialling.try_join_next().is_some() {}
        if !dialling.is_empty() {
            return;
        }
        let (gateway, slot) = (Arc::clone(&self.gateway), Arc::clone(&self.slot));
        dialling.spawn(async move {
            match gateway.spare().await {
                Ok(connection) => {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some((connection, Instant::now()));
                    tokio::time::sleep(LIFE).await;
                    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.take_if(|(_, born)| born.elapsed() >= LIFE);
                }
                // Whoever needs a connection dials one and says what is wrong.
                Err(error) => tracing::debug!(%error, "no spare connection"),
            }
        });
    }
}
