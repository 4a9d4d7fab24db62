//! The hold of a pipe's task on its connections.
//!
//! A pipe is one task from its grant to the answer to its `Close`. Its connection is a thing that
//! it gets, loses and gets again: all that touches the old one happens in that task, so nothing
//! can arrive on it once the new one is there.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use postern_proto::audit::event::Fact;
use postern_proto::gateway::message::Witness;
use postern_proto::gateway::pipe::Violation;
use postern_proto::gateway::resume::{Custody, Resume, ResumeFault};
use postern_proto::names::SessionId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Peer, PipeNumber, Session};
use crate::end::End;
use crate::limits::{LimitReached, Parked, Place};
use crate::pipe::{Driver, Finish, Heard, Opening, PipeError};
use crate::refusal::Refusal;
use crate::tls::Connection;

/// Takeovers that wait for the pipe's task: a further one is told to try again.
const WAITING: usize = 1;

/// The pipes of an agent that may be resumed. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Resumable {
    slots: Arc<Mutex<HashMap<(SessionId, PipeNumber), Arc<Slot>>>>,
    /// How long a pipe may be without a connection.
    detach: Duration,
    /// Cancelled when none is waited for any more.
    drain: CancellationToken,
}

/// What is known of a pipe outside its task.
pub(crate) struct Slot {
    session: Arc<Session>,
    pipe: PipeNumber,
    custody: Mutex<Custody>,
    // Boxed: the channel keeps room for many.
    takeovers: mpsc::Sender<Box<Takeover>>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}/{})", self.session.id, self.pipe)
    }
}

impl Slot {
    /// The session that the pipe belongs to.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Its number there.
    pub(crate) fn pipe(&self) -> PipeNumber {
        self.pipe
    }

    /// Whether `peer` holds the pipe's secret. Each attempt counts once.
    pub(crate) fn prove(&self, resume: &Resume, peer: &Peer) -> Result<(), ResumeFault> {
        self.custody().take(resume, &peer.exporter)
    }

    /// Gives a connection to the pipe's task; back when it takes none.
    pub(crate) fn hand_over(
        &self,
        takeover: Box<Takeover>,
    ) -> Result<(), (Box<Takeover>, Refusal)> {
        self.takeovers
            .try_send(takeover)
            .map_err(|error| match error {
                TrySendError::Closed(takeover) => (takeover, Refusal::Resume("the pipe is over")),
                TrySendError::Full(takeover) => (takeover, LimitReached::Resumes.into()),
            })
    }

    fn custody(&self) -> MutexGuard<'_, Custody> {
        // Every change of it is complete in itself.
        self.custody.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Resumable {
    /// None yet. A pipe may be without a connection for `detach`, until `drain`.
    pub(crate) fn new(detach: Duration, drain: CancellationToken) -> Self {
        Self {
            slots: Arc::default(),
            detach,
            drain,
        }
    }

    /// A pipe that may be resumed from now on. `secret` is the one in its `Granted`; `place` that
    /// of its first connection.
    pub(crate) fn hold(
        &self,
        session: &Arc<Session>,
        pipe: PipeNumber,
        secret: &[u8; 32],
        place: Place,
    ) -> Lifeline {
        let (sender, takeovers) = mpsc::channel(WAITING);
        let slot = Arc::new(Slot {
            session: Arc::clone(session),
            pipe,
            custody: Mutex::new(Custody::new(secret, session.id, pipe)),
            takeovers: sender,
        });
        let key = (session.id, pipe);
        self.slots().insert(key, Arc::clone(&slot));
        Lifeline {
            slot,
            resumable: self.clone(),
            takeovers,
            away: None,
            held: Held::Connected(place),
        }
    }

    /// A pipe that may be resumed now.
    pub(crate) fn get(&self, session: SessionId, pipe: PipeNumber) -> Option<Arc<Slot>> {
        self.slots().get(&(session, pipe)).cloned()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(SessionId, PipeNumber), Arc<Slot>>> {
        // A map of handles: nothing in it can be half done.
        self.slots.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A connection whose client may continue a pipe.
pub(crate) struct Takeover {
    pub(crate) opening: Opening<Connection>,
    pub(crate) place: Place,
    pub(crate) source: SocketAddr,
    /// Bytes that the client has got.
    pub(crate) theirs: u64,
    pub(crate) attempt: u64,
}

/// What happened to a pipe's connection.
pub(crate) enum Change {
    /// A new one is there.
    Takeover(Box<Takeover>),
    /// None came for as long as the pipe may be without.
    Over,
}

/// What a pipe's place among the connections is at this moment.
enum Held {
    Connected(Place),
    Parked(#[expect(dead_code, reason = "held for its end")] Parked),
    Nothing,
}

/// A pipe's hold on its connections, for its task. While it lives, the pipe can be resumed.
pub(crate) struct Lifeline {
    slot: Arc<Slot>,
    resumable: Resumable,
    takeovers: mpsc::Receiver<Box<Takeover>>,
    /// Since when there is no connection, and until when the pipe may be without.
    away: Option<(Instant, Instant)>,
    held: Held,
}

impl Lifeline {
    /// Waits for a new connection, while there is one too. Cancel-safe.
    pub(crate) async fn change(&mut self) -> Change {
        let Some((_, until)) = self.away else {
            return match self.takeovers.recv().await {
                Some(takeover) => Change::Takeover(takeover),
                None => Change::Over,
            };
        };
        tokio::select! {
            biased;
            () = self.resumable.drain.cancelled() => Change::Over,
            Some(takeover) = self.takeovers.recv() => Change::Takeover(takeover),
            () = sleep_until(until) => Change::Over,
        }
    }

    /// The connection is lost. Whether the pipe is kept without: the connection is dropped then,
    /// and the log and the recordings say so.
    pub(crate) async fn lose<S>(&mut self, driver: &mut Driver<S>, why: &PipeError) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.resumable.detach.is_zero() || self.resumable.drain.is_cancelled() {
            return false;
        }
        if !self.park() {
            return false;
        }
        let session = &self.slot.session;
        driver.detach();
        let now = Instant::now();
        self.away = Some((now, now + self.resumable.detach));
        tracing::info!(session = %session.id, pipe = self.slot.pipe, %why, "detached");
        let detached = Fact::PipeDetached {
            pipe: self.slot.pipe,
            reason: why.to_string(),
        };
        if let Err(error) = session.log(detached).await {
            session.end_for(&error);
        }
        session.note("the network was lost".to_owned()).await;
        true
    }

    /// Goes on on the new connection. Fails when its client states what cannot be.
    pub(crate) async fn attach(
        &mut self,
        driver: &mut Driver<Connection>,
        takeover: Takeover,
    ) -> Result<(), Violation> {
        let Takeover {
            opening,
            place,
            source,
            theirs,
            attempt,
        } = takeover;
        let slot = Arc::clone(&self.slot);
        let heard = Heard::new(move || slot.custody().confirm(attempt));
        driver.attach(opening.into_parts(), theirs, heard)?;
        self.held = Held::Connected(place);
        let away = self.away.take().map(|(since, _)| since.elapsed());
        let session = &self.slot.session;
        session.state.move_pipe(self.slot.pipe, source.ip());
        metrics::counter!("postern_resumes_total").increment(1);
        tracing::info!(session = %session.id, pipe = self.slot.pipe, %source, attempt, ?away, "resumed");
        let note = match away {
            Some(away) => format!(
                "the network is back from {} after {:.1} s",
                source.ip(),
                away.as_secs_f64()
            ),
            None => format!("the connection moved to {}", source.ip()),
        };
        session.note(note).await;
        Ok(())
    }

    /// A relay came to this. `None` when its pipe goes on without a connection.
    pub(crate) async fn outlive<S>(&mut self, driver: &mut Driver<S>, finish: Finish) -> Option<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Finish::Pipe(lost @ PipeError::Lost(_)) = &finish
            && self.lose(driver, lost).await
        {
            return None;
        }
        Some(finish.into())
    }

    /// The end of a pipe that nobody came back for.
    pub(crate) fn expired(&self) -> End {
        let seconds = self.resumable.detach.as_secs();
        let why = format!("it was not resumed within {seconds} s");
        End::Pipe(PipeError::Lost(why.into()))
    }

    /// Tells the client how the pipe ended: kept, with what it has not got, until it answers or
    /// the pipe's time without a connection is over. Of an order to end only the reason is kept.
    /// `silence`: how long an answer may take on one connection.
    pub(crate) async fn close(
        mut self,
        mut driver: Driver<Connection>,
        end: &End,
        witness: Option<Witness>,
        silence: Duration,
    ) {
        let (answered, keeps) = match end {
            // Nobody is there to be told.
            End::Pipe(PipeError::Lost(_)) => return,
            End::Client(_) => (true, false),
            End::Pipe(_) | End::Internal(_) | End::Ordered(_) | End::Ssh => (false, false),
            End::Done | End::Shell(_) | End::Target(_) => (false, true),
        };
        driver.say_close(end.close(witness));
        while keeps || !driver.is_detached() {
            let lost = tokio::select! {
                biased;
                change = self.change() => match change {
                    Change::Over => return,
                    Change::Takeover(takeover) => {
                        if self.attach(&mut driver, *takeover).await.is_err() {
                            return;
                        }
                        continue;
                    }
                },
                said = driver.farewell(answered, silence), if !driver.is_detached() => match said {
                    Err(lost @ PipeError::Lost(_)) => lost,
                    _ => return,
                }
            };
            if !keeps {
                break;
            }
            if !self.lose(&mut driver, &lost).await {
                return;
            }
        }
        drop(driver);
        if matches!(end, End::Ordered(_) | End::Ssh) {
            self.remember().await;
        }
    }

    /// Until the pipe's time is over, whoever comes back for it is told why it ended.
    async fn remember(mut self) {
        if self.resumable.detach.is_zero() || !self.park() {
            return;
        }
        if self.away.is_none() {
            let now = Instant::now();
            self.away = Some((now, now + self.resumable.detach));
        }
        while let Change::Takeover(takeover) = self.change().await {
            let ending = self.slot.session.ordered();
            let refusal = ending.map_or(Refusal::Resume("the pipe is over"), Refusal::Ended);
            let denied = refusal.denied(self.slot.session.id);
            takeover.opening.deny(&denied).await;
        }
    }

    /// Counts as parked from now on. False when too many are.
    fn park(&mut self) -> bool {
        if let Held::Connected(place) = std::mem::replace(&mut self.held, Held::Nothing) {
            match place.park() {
                Ok(parked) => self.held = Held::Parked(parked),
                Err(limit) => {
                    let (session, pipe) = (self.slot.session.id, self.slot.pipe);
                    tracing::info!(%session, pipe, %limit, "not kept");
                    return false;
                }
            }
        }
        true
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        let key = (self.slot.session.id, self.slot.pipe);
        self.resumable.slots().remove(&key);
    }
}
