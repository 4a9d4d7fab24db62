//! Puts the parts together: what all connections of an agent share.
//!
//! The core (server, pipes, sessions, tunnels, HTTP) knows the other parts by the questions in
//! [`Rules`] and [`Doors`] alone.

use std::net::SocketAddr;
use std::sync::Arc;

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
use crate::session::{Lifetimes, Registry, Resumable, StepUps};
use crate::socket::Socket;
use crate::strangers::Strangers;
use crate::tls::BoundedInput;

/// Serves one enrolment; the stream's input stays bounded.
pub(crate) type EnrollServe = Arc<
    dyn Fn(TlsStream<BoundedInput<Socket>>, SocketAddr) -> BoxFuture<'static, EnrollEnd>
        + Send
        + Sync,
>;

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
        let drain = CancellationToken::new();
        Arc::new(Self {
            evidence,
            rules,
            doors,
            limits,
            resumable: Resumable::new(lifetimes.detach, drain.clone()),
            lifetimes,
            patience,
            sessions: Registry::default(),
            step_ups: StepUps::default(),
            strangers: Strangers::default(),
            tasks: TaskTracker::new(),
            drain,
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

    /// Housekeeping.
    pub(crate) fn each_minute(self: &Arc<Self>) {
        self.limits.sweep(Instant::now());
        let core = Arc::clone(self);
        self.tasks
            .spawn(async move { core.strangers.report(&core.evidence).await });
    }
}
