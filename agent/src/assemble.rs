//! Puts the parts together: what all connections of an agent share.
//!
//! The core (server, pipes, sessions, tunnels, HTTP) knows the other parts by the questions in
//! [`Rules`] and [`Doors`] alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doors::Doors;
use crate::evidence::Evidence;
use crate::identity::EnrollEnd;
use crate::limits::Limits;
use crate::pipe::Patience;
use crate::rules::Rules;
use crate::session::{Registry, Resumable, Session, StepUps};
use crate::socket::Socket;
use crate::strangers::Strangers;
use crate::tls::BoundedInput;

/// Serves one enrolment; the stream's input stays bounded.
pub(crate) type EnrollServe = Arc<
    dyn Fn(TlsStream<BoundedInput<Socket>>, SocketAddr) -> BoxFuture<'static, EnrollEnd>
        + Send
        + Sync,
>;

/// Lifetimes.
#[derive(Debug, Clone)]
pub(crate) struct Lifetimes {
    /// Of a grant.
    pub(crate) grant: Duration,
    /// How long a pipe that lost its connection waits for the next; and a session that cost a
    /// code for a further pipe.
    pub(crate) detach: Duration,
    /// The same for other tunnels: opening anew costs nobody anything.
    pub(crate) linger: Duration,
}

/// What all connections of an agent share.
pub(crate) struct Core {
    pub(crate) evidence: Evidence,
    pub(crate) rules: Rules,
    pub(crate) doors: Doors,
    pub(crate) limits: Limits,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) patience: Patience,
    pub(crate) sessions: Registry,
    pub(crate) resumable: Resumable,
    pub(crate) step_ups: StepUps,
    pub(crate) strangers: Strangers,
    /// Everything that runs for a connection or a session.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when nothing new may open.
    pub(crate) drain: CancellationToken,
}

impl Core {
    pub(crate) fn new(
        evidence: Evidence,
        rules: Rules,
        doors: Doors,
        limits: Limits,
        lifetimes: Lifetimes,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new(Self {
            evidence,
            rules,
            doors,
            limits,
            lifetimes,
            patience,
            sessions: Registry::default(),
            resumable: Resumable::default(),
            step_ups: StepUps::default(),
            strangers: Strangers::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
        })
    }

    /// Why no session may start now, or enrolment is closed: for `/readyz`.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.drain.is_cancelled() {
            troubles.push("shutting down".to_owned());
        }
        if let Err(error) = self.evidence.admit() {
            troubles.push(format!("evidence: {error}"));
        }
        troubles.extend(self.doors.troubles.iter().filter_map(|trouble| trouble()));
        troubles
    }

    /// How long `session` may be without a pipe.
    pub(crate) fn linger(&self, session: &Session) -> Duration {
        session.linger(&self.lifetimes)
    }

    /// Housekeeping.
    pub(crate) fn each_minute(self: &Arc<Self>) {
        self.limits.sweep(Instant::now());
        let core = Arc::clone(self);
        self.tasks
            .spawn(async move { core.strangers.report(&core.evidence).await });
    }
}
