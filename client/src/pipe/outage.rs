//! Whether the network is there, over all pipes to one agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::output::Printer;

/// An outage that is over sooner is nobody's business.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// What does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lost {
    /// The way to the agent, or to AWS.
    #[default]
    Network,
    /// The target alone: AWS is there, and says that it is not.
    Target,
}

/// What is known of the network at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Away {
    /// When something was last heard, while pipes seek a new connection.
    pub since: Option<Instant>,
    /// What is lost since then.
    pub lost: Lost,
    /// Why the last attempt failed.
    pub why: String,
}

/// Counts the pipes that seek a connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Outages(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Mutex<Counts>,
    away: watch::Sender<Away>,
}

#[derive(Debug, Default)]
struct Counts {
    pipes: usize,
    last: Option<Instant>,
}

/// One pipe that seeks; over when dropped.
#[derive(Debug)]
pub(crate) struct Outage {
    outages: Outages,
    since: Instant,
}

impl Outages {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            counts: Mutex::default(),
            away: watch::Sender::new(Away::default()),
        }))
    }

    /// A pipe heard nothing since `heard`.
    pub(crate) fn begin(&self, lost: Lost, heard: Instant) -> Outage {
        self.counts().pipes += 1;
        self.0.away.send_modify(|away| {
            away.lost = lost;
            away.since = Some(away.since.map_or(heard, |since| since.min(heard)));
        });
        Outage {
            outages: self.clone(),
            since: heard,
        }
    }

    /// Why there is no connection yet.
    pub(crate) fn explain(&self, why: &str) {
        self.0.away.send_if_modified(|away| {
            let news = away.why != why;
            if news {
                away.why = why.to_owned();
            }
            news
        });
    }

    /// Tells of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Away> {
        self.0.away.subscribe()
    }

    /// Whether no pipe lost its connection since `then`: others may not have noticed yet.
    pub(crate) fn none_since(&self, then: Instant) -> bool {
        let counts = self.counts();
        counts.pipes == 0 && counts.last.is_none_or(|last| last < then)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    /// When the pipe last heard something.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Why it has no connection yet.
    pub(crate) fn explain(&self, why: &str) {
        self.outages.explain(why);
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let mut counts = self.outages.counts();
        counts.pipes = counts.pipes.saturating_sub(1);
        counts.last = Some(Instant::now());
        let over = counts.pipes == 0;
        drop(counts);
        if over {
            self.outages.0.away.send_replace(Away::default());
        }
    }
}

/// Tells of outages that last, on stderr, for as long as it is polled.
pub async fn tell(mut away: watch::Receiver<Away>, printer: Printer) {
    loop {
        let lost = away.wait_for(|away| away.since.is_some()).await;
        let Some(since) = lost.ok().and_then(|away| away.since) else {
            return std::future::pending().await;
        };
        let back = async { away.wait_for(|away| away.since.is_none()).await.is_ok() };
        let told = tokio::time::timeout_at((since + WORTH_TELLING).into(), back).await;
        if told.is_ok() {
            continue;
        }
        let Away { lost, why, .. } = away.borrow().clone();
        let why = if why.is_empty() { "no answer" } else { &why };
        printer.note(match lost {
            Lost::Network => format!("the network is lost ({why}); trying again"),
            Lost::Target => format!("the target is away ({why}); waiting for it"),
        });
        let back = away.wait_for(|away| away.since.is_none()).await.is_ok();
        if !back {
            return std::future::pending().await;
        }
        let seconds = since.elapsed().as_secs();
        printer.note(match lost {
            Lost::Network => format!("the network is back after {seconds} s"),
            Lost::Target => format!("the target is back after {seconds} s"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_away_while_any_pipe_seeks() {
        let outages = Outages::new();
        let (start, away) = (Instant::now(), outages.watch());
        assert!(outages.none_since(start));
        let one = outages.begin(Lost::Network, start + Duration::from_secs(1));
        let two = outages.begin(Lost::Network, start);
        assert_eq!(away.borrow().since, Some(start));
        drop(two);
        one.explain("no route");
        assert!(away.borrow().since.is_some());
        assert_eq!(away.borrow().why, "no route");
        drop(one);
        assert_eq!(*away.borrow(), Away::default());
        assert!(!outages.none_since(start));
        assert!(outages.none_since(Instant::now() + Duration::from_secs(1)));
    }
}
