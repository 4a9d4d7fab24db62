//! Pipes that go on on a new connection.
//!
//! ```text
//! task of the new connection          task of the pipe
//!   Resume -> who -> proof -> policy
//!   event durable ── Takeover ──────▶ Lifeline: old connection dropped, offset stated, replay
//! ```
//!
//! A pipe is one task from its grant to the answer to its `Close`. Its connection is a thing that
//! it gets, loses and gets again: all that touches the old one happens in that task, so nothing
//! can arrive on it once the new one is there.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use postern_proto::audit::event::{Event, Fact};
use postern_proto::gateway::message::{CloseReason, Witness};
use postern_proto::gateway::pipe::Violation;
use postern_proto::gateway::resume::{Custody, Resume};
use postern_proto::names::SessionId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::serve::{Peer, code_name};
use super::{Ending, PipeNumber, Session};
use crate::assemble::Core;
use crate::end::End;
use crate::evidence::agent_event;
use crate::identity::VerifiedPrincipal;
use crate::limits::{LimitReached, Parked, Place};
use crate::pipe::{Driver, Finish, Heard, Opening, PipeError};
use crate::refusal::Refusal;
use crate::tls::Connection;

/// Takeovers that wait for the pipe's task: a further one is told to try again.
const WAITING: usize = 1;

/// The pipes of an agent that may be resumed. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resumable(Arc<Mutex<HashMap<(SessionId, PipeNumber), Arc<Slot>>>>);

/// What is known of a pipe outside its task.
struct Slot {
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
    fn custody(&self) -> MutexGuard<'_, Custody> {
        // Every change of it is complete in itself.
        self.custody.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Resumable {
    fn slots(&self) -> MutexGuard<'_, HashMap<(SessionId, PipeNumber), Arc<Slot>>> {
        // A map of handles: nothing in it can be half done.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn get(&self, session: SessionId, pipe: PipeNumber) -> Option<Arc<Slot>> {
        self.slots().get(&(session, pipe)).cloned()
    }
}

/// A connection whose client may continue a pipe.
pub(crate) struct Takeover {
    opening: Opening<Connection>,
    place: Place,
    source: SocketAddr,
    /// Bytes that the client has got.
    theirs: u64,
    attempt: u64,
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
    /// How long the pipe may be without a connection.
    detach: Duration,
    drain: CancellationToken,
    /// Since when it is, and until when it may be.
    away: Option<(Instant, Instant)>,
    held: Held,
}

impl Lifeline {
    /// `secret` is the one in the pipe's `Granted`; `place` that of its first connection.
    pub(super) fn new(
        core: &Core,
        session: &Arc<Session>,
        pipe: PipeNumber,
        secret: &[u8; 32],
        place: Place,
    ) -> Self {
        let (sender, takeovers) = mpsc::channel(WAITING);
        let slot = Arc::new(Slot {
            session: Arc::clone(session),
            pipe,
            custody: Mutex::new(Custody::new(secret, session.id, pipe)),
            takeovers: sender,
        });
        let resumable = core.resumable.clone();
        let key = (session.id, pipe);
        resumable.slots().insert(key, Arc::clone(&slot));
        Self {
            slot,
            resumable,
            takeovers,
            detach: core.lifetimes.detach,
            drain: core.drain.clone(),
            away: None,
            held: Held::Connected(place),
        }
    }

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
            () = self.drain.cancelled() => Change::Over,
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
        if self.detach.is_zero() || self.drain.is_cancelled() {
            return false;
        }
        if !self.park() {
            return false;
        }
        let session = &self.slot.session;
        driver.detach();
        let now = Instant::now();
        self.away = Some((now, now + self.detach));
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
        let seconds = self.detach.as_secs();
        let why = format!("it was not resumed within {seconds} s");
        End::Pipe(PipeError::Lost(why.into()))
    }

    /// Tells the client how the pipe ended: kept, with what it has not got, until it answers or
    /// the pipe's time without a connection is over. Of an order to end only the reason is kept.
    pub(super) async fn close(
        mut self,
        mut driver: Driver<Connection>,
        end: &End,
        witness: Option<Witness>,
        core: &Core,
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
            let silence = core.patience.farewell;
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
        if self.detach.is_zero() || !self.park() {
            return;
        }
        if self.away.is_none() {
            let now = Instant::now();
            self.away = Some((now, now + self.detach));
        }
        while let Change::Takeover(takeover) = self.change().await {
            let ending = self.slot.session.ending.borrow().clone();
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

/// Hands an authenticated connection to the pipe that it may continue, or says no.
pub(super) async fn resume(
    core: &Arc<Core>,
    peer: &Peer,
    place: Place,
    opening: Opening<Connection>,
    resume: &Resume,
    id: SessionId,
) {
    let slot = match check(core, peer, resume, id).await {
        Ok(slot) => slot,
        Err((id, refusal)) => return opening.deny(&refusal.denied(id)).await,
    };
    let takeover = Box::new(Takeover {
        opening,
        place,
        source: peer.source,
        theirs: resume.received,
        attempt: resume.attempt,
    });
    let (takeover, refusal) = match slot.takeovers.try_send(takeover) {
        Ok(()) => return,
        Err(TrySendError::Closed(takeover)) => (takeover, Refusal::Resume("the pipe is over")),
        Err(TrySendError::Full(takeover)) => (takeover, LimitReached::Resumes.into()),
    };
    let denied = refusal.denied(slot.session.id);
    takeover.opening.deny(&denied).await;
}

/// Everything before the takeover; its event is durable. A refusal has been logged.
async fn check(
    core: &Arc<Core>,
    peer: &Peer,
    resume: &Resume,
    fresh: SessionId,
) -> Result<Arc<Slot>, (SessionId, Refusal)> {
    let who = match (core.rules.verify)(&peer.certificate) {
        Ok(who) => who,
        Err(fault) => {
            core.strangers.note(peer.source.ip(), "certificate");
            return Err((fresh, Refusal::Certificate(fault)));
        }
    };
    let attempt = Attempt {
        core,
        peer,
        who,
        resume,
    };
    let Some(slot) = core.resumable.get(resume.session, resume.pipe) else {
        let refusal = Refusal::Resume("no such pipe");
        tracing::info!(session = %resume.session, pipe = resume.pipe, source = %peer.source,
            principal = %attempt.who.principal().arn, "a resume of a pipe that is not here");
        return Err((fresh, refusal));
    };
    match attempt.run(&slot).await {
        Ok(()) => Ok(slot),
        Err((owned, refusal)) => {
            // Whoever does not own the session learns nothing of it, its id included.
            let id = if owned { slot.session.id } else { fresh };
            attempt.log_refusal(&slot.session, id, &refusal).await;
            Err((id, refusal))
        }
    }
}

/// One `Resume` on its way to a yes or no.
struct Attempt<'a> {
    core: &'a Arc<Core>,
    peer: &'a Peer,
    who: VerifiedPrincipal,
    resume: &'a Resume,
}

impl Attempt<'_> {
    /// A refusal says whether it was told to the session's owner.
    async fn run(&self, slot: &Slot) -> Result<(), (bool, Refusal)> {
        let session = &slot.session;
        self.prove(slot).map_err(|refusal| (false, refusal))?;
        self.allow(session).map_err(|refusal| (true, refusal))?;
        let resumed = Event {
            session: Some(session.id),
            // With the certificate of now.
            actor: Some(self.who.actor()),
            source: Some(self.peer.source.to_string()),
            target: Some(session.target.clone()),
            ..agent_event(Fact::PipeResumed {
                pipe: slot.pipe,
                attempt: self.resume.attempt,
            })
        };
        match self.core.evidence.append(resumed).await {
            Ok(_) => Ok(()),
            Err(error) => Err((true, error.into())),
        }
    }

    /// That it is the owner who asks.
    fn prove(&self, slot: &Slot) -> Result<(), Refusal> {
        let owner = slot.session.grant.request().who.principal();
        if owner != self.who.principal() {
            return Err(Refusal::Resume("the session is somebody else's"));
        }
        let taken = slot.custody().take(self.resume, &self.peer.exporter);
        taken.map_err(|fault| {
            tracing::warn!(session = %slot.session.id, pipe = slot.pipe, %fault, "resume refused");
            Refusal::Resume("wrong proof, or an attempt that is over")
        })
    }

    /// That the owner still may, from here.
    fn allow(&self, session: &Session) -> Result<(), Refusal> {
        if self.core.drain.is_cancelled() {
            return Err(Refusal::Draining);
        }
        if let Some(ending) = session.ending.borrow().clone() {
            return Err(Refusal::Ended(ending));
        }
        self.core.evidence.admit()?;
        let sources = [self.peer.source.ip()];
        if let Some(objection) = session.objection(&self.core.rules, Some(&self.who), &sources) {
            return Err(self.end(session, objection));
        }
        let key = self.who.principal().key();
        self.core.limits.may_resume(&key, Instant::now())?;
        Ok(())
    }

    /// What policy no longer allows ends, and does not wait for a better network.
    fn end(&self, session: &Session, message: String) -> Refusal {
        let ending = Ending {
            reason: CloseReason::Policy,
            message: Some(message),
        };
        session.end(ending.clone());
        Refusal::Ended(ending)
    }

    async fn log_refusal(&self, session: &Session, id: SessionId, refusal: &Refusal) {
        let (code, reason) = (refusal.code(), refusal.reason());
        let principal = self.who.principal();
        metrics::counter!("postern_denied_total", "code" => code_name(code)).increment(1);
        tracing::warn!(session = %session.id, principal = %principal.arn, source = %self.peer.source,
            ?code, reason, "resume refused");
        if !self
            .core
            .limits
            .may_log_denial(&principal.key(), Instant::now())
        {
            return;
        }
        let denied = Event {
            session: Some(id),
            actor: Some(self.who.actor()),
            source: Some(self.peer.source.to_string()),
            target: Some(session.target.clone()),
            ..agent_event(Fact::SessionDenied {
                access: session.access.clone(),
                code,
                policies: refusal.policies().to_vec(),
                reason: format!("resume of session {}: {reason}", session.id),
            })
        };
        if let Err(error) = self.core.evidence.append(denied).await {
            tracing::error!(session = %session.id, %error, "a denial could not be logged");
        }
    }
}
