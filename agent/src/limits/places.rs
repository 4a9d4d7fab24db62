//! What counts, held by whoever is counted; dropping it counts down.

use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{LimitReached, Limits};

/// A connection whose peer is unknown.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(super) connection: Connection,
    pub(super) _unproved: Unproved,
    pub(super) leave: CancellationToken,
}

impl Arrival {
    /// Says when the place is wanted for somebody who comes from elsewhere. Nobody who proved
    /// something has to go.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// The peer proved to be `principal`: it counts as that from now on.
    pub(crate) fn prove(self, principal: &str) -> Result<Place, LimitReached> {
        let limits = self.connection.0.clone();
        let limit = limits.ceilings.pipes_per_principal;
        let mut counts = limits.counts();
        let entry = counts.principal(principal);
        if entry.pipes >= limit {
            return Err(LimitReached::Pipes(limit));
        }
        entry.pipes += 1;
        drop(counts);
        Ok(Place {
            connection: self.connection,
            principal: principal.to_owned(),
        })
    }

    /// The peer wants to enrol: it has longer, but there are fewer places. When all are taken it
    /// waits for one, for so long, and counts as a stranger meanwhile: people who log in at the
    /// same moment are served one after the other.
    pub(crate) async fn enroll(
        self,
        address: IpAddr,
        patience: Duration,
    ) -> Result<Enrolling, LimitReached> {
        let address = network(address);
        let limits = self.connection.0.clone();
        let deadline = Instant::now() + patience;
        loop {
            let mut left = pin!(limits.enrolled.notified());
            // From here on nobody's leaving is missed.
            left.as_mut().enable();
            if let Some((number, leave)) = limits.enroll(address) {
                return Ok(Enrolling {
                    connection: self.connection,
                    number,
                    leave,
                });
            }
            if timeout_at(deadline, left).await.is_err() {
                return Err(LimitReached::Enrollments);
            }
        }
    }
}

/// An authenticated connection.
#[derive(Debug)]
pub(crate) struct Place {
    connection: Connection,
    principal: String,
}

impl Place {
    /// The connection is lost and its pipe is kept. It counts apart, so that whoever has all
    /// places taken can come back for it.
    pub(crate) fn park(self) -> Result<Parked, LimitReached> {
        let limits = self.connection.0.clone();
        let limit = limits.ceilings.pipes_per_principal;
        let mut counts = limits.counts();
        let entry = counts.principal(&self.principal);
        if entry.parked >= limit {
            return Err(LimitReached::Parked(limit));
        }
        entry.parked += 1;
        drop(counts);
        Ok(Parked(limits, self.principal.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.connection.0.counts();
        let entry = counts.principal(&self.principal);
        entry.pipes = entry.pipes.saturating_sub(1);
    }
}

/// A pipe that waits for a new connection.
#[derive(Debug)]
pub(crate) struct Parked(Limits, String);

impl Drop for Parked {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        let entry = counts.principal(&self.1);
        entry.parked = entry.parked.saturating_sub(1);
    }
}

/// An enrolment that runs.
#[derive(Debug)]
pub(crate) struct Enrolling {
    connection: Connection,
    number: u64,
    leave: CancellationToken,
}

impl Enrolling {
    /// Says when the place is wanted for somebody who comes from elsewhere.
    pub(crate) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }
}

impl Drop for Enrolling {
    fn drop(&mut self) {
        let limits = &self.connection.0;
        limits.counts().enrolling.remove(self.number);
        limits.enrolled.notify_waiters();
    }
}

/// A session that is open.
#[derive(Debug)]
pub(crate) struct SessionPlace(pub(super) Limits, pub(super) String);

impl Drop for SessionPlace {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        let entry = counts.principal(&self.1);
        entry.sessions = entry.sessions.saturating_sub(1);
    }
}

/// One of all connections.
#[derive(Debug)]
pub(super) struct Connection(pub(super) Limits);

impl Drop for Connection {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        counts.connections = counts.connections.saturating_sub(1);
    }
}

/// One of those whose peer is unknown.
#[derive(Debug)]
pub(super) struct Unproved(pub(super) Limits, pub(super) u64);

impl Drop for Unproved {
    fn drop(&mut self) {
        self.0.counts().strangers.remove(self.1);
    }
}

/// What counts as one address: an IPv6 host owns its whole /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let prefix = u128::from(v6) & (u128::MAX << 64);
            Ipv6Addr::from(prefix).into()
        }
        v4 => v4,
    }
}
