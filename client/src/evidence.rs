//! Evidence of the SSM route, written by this client: a claim, whose independent fact is
//! CloudTrail (DESIGN.md sections 7 and 8).
//!
//! ```text
//! open ─▶ log entry durable, recording begun ─▶ Record ─▶ write() ─▶ relay
//!                                                  └─ claims ─▶ the agent's store, where one is
//! ```
//!
//! A session is opened at AWS, then here, then used: without a record there is no session. What
//! passes is handed to the record first and relayed once that returned.

mod disk;
mod hand_over;
mod key;
mod lock;
mod log;
mod open;
mod recipients;
mod recording;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::SystemTime;

use bytes::Bytes;
pub use postern_proto::audit::event::SsmSession;
use postern_proto::audit::event::{Channel, Fact};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{LoginUser, SessionId, TargetId};
use postern_proto::recording::Entry;
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::context::Context;
use crate::error::Error as UserError;
use crate::identity::sts::Caller;
use hand_over::HandOver;
#[cfg(test)]
pub(crate) use key::forget_for_test;
pub(crate) use store::{forget, local_stores, own_identity};
use writer::{Counts, Order};

/// Bytes that may wait for the disk.
const ROOM: usize = 1024 * 1024;

/// Why evidence could not be written: the session ends, or does not begin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// The store cannot be opened.
    #[error("the evidence store {folder} cannot be used: {cause}")]
    Unusable {
        /// The store's folder.
        folder: String,
        /// Why.
        cause: String,
    },
    /// It could not be written. Final for the session.
    #[error("the evidence could not be written: {0}")]
    Failed(Arc<str>),
}

impl EvidenceError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unusable { .. } | Self::Failed(_) => {
                "check owner, rights and free space of the folder (POSTERN_EVIDENCE names another)"
            }
        }
    }
}

impl From<EvidenceError> for UserError {
    fn from(error: EvidenceError) -> Self {
        Self::failed(error.to_string()).hint(error.hint())
    }
}

/// What is claimed of a session when it begins.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The managed node's id.
    pub target: TargetId,
    /// Its name for people.
    pub name: String,
    /// Who AWS says that calls: [`crate::identity::Kept::caller`].
    pub caller: Caller,
    /// When MFA was given, in seconds since 1970: [`crate::identity::Kept::mfa_at`].
    pub mfa_at: i64,
    /// The first SSM session that carries it; further ones come with [`Record::ssm_session`].
    pub ssm: SsmSession,
    /// What it carries.
    pub carries: Carries,
}

/// What a session carries; decides how it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carries {
    /// A shell that the SSM Agent runs, on a terminal.
    Shell {
        /// Columns at the start.
        columns: u32,
        /// Rows at the start.
        rows: u32,
        /// `TERM`.
        term: String,
    },
    /// A command that the SSM Agent runs.
    Command {
        /// Its line.
        line: String,
        /// Columns and rows, when it runs on a terminal.
        terminal: Option<(u32, u32)>,
    },
    /// Our own SSH client over an SSM port session: recorded as what the client shows.
    Ssh {
        /// The login user.
        user: LoginUser,
        /// The command's line; a shell without one.
        line: Option<String>,
        /// Columns, rows and `TERM`, when it has a terminal.
        terminal: Option<(u32, u32, String)>,
    },
    /// TCP to a port: byte counts alone are recorded.
    Tunnel {
        /// The host behind the target; the target itself when absent.
        host: Option<String>,
        /// The port.
        port: u16,
    },
}

/// The client's evidence.
pub struct Evidence;

impl Evidence {
    /// Claims the session, durably, and begins its recording. Call it after StartSession and
    /// before anything is sent or shown; on an error end the SSM session and tell the person.
    pub async fn open(context: &Context, facts: Facts) -> Result<Record, EvidenceError> {
        let principal = store::principal(&facts.caller)?;
        let (log, note) = store::writable(context).await?;
        if let Some(note) = note {
            context.printer.note(note);
        }
        let log = Arc::new(log);
        let (writer, begun) = {
            let log = Arc::clone(&log);
            let work = move || store::begin(log, facts);
            let begun = tokio::task::spawn_blocking(work).await;
            begun.map_err(|error| EvidenceError::Failed(error.to_string().into()))??
        };
        let (orders, taken) = mpsc::channel();
        std::thread::Builder::new()
            .name("evidence".to_owned())
            .spawn(move || writer.run(taken))
            .map_err(|error| EvidenceError::Failed(error.to_string().into()))?;
        let hand_over = HandOver::start(context, &log, principal, begun.grown);
        Ok(Record(Arc::new(Shared {
            session: begun.session,
            orders,
            room: Arc::new(Semaphore::new(ROOM)),
            counts: begun.counts,
            flows: AtomicU32::new(0),
            failure: begun.failure,
            hand_over,
        })))
    }
}

/// The record of an open session. Clones share it. Every method returns once what it was given is
/// written: relay after that. An error is final, and ends the session.
#[derive(Debug, Clone)]
pub struct Record(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    session: SessionId,
    orders: mpsc::Sender<Order>,
    room: Arc<Semaphore>,
    counts: Arc<Counts>,
    flows: AtomicU32,
    failure: watch::Receiver<Option<Arc<str>>>,
    hand_over: HandOver,
}

impl Record {
    /// The session's id, for `-v` and messages.
    pub fn id(&self) -> SessionId {
        self.0.session
    }

    /// From the target, on its way to stdout.
    pub async fn output(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        self.entry(Entry::Output(Bytes::copy_from_slice(bytes)))
            .await
    }

    /// From the target, on its way to stderr.
    pub async fn stderr(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        self.entry(Entry::Error(Bytes::copy_from_slice(bytes)))
            .await
    }

    /// From the person, on its way to the target. Kept for commands without a terminal; a
    /// terminal's input holds passwords, and stands in its output as far as it was shown.
    pub async fn input(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        self.entry(Entry::Input(Bytes::copy_from_slice(bytes)))
            .await
    }

    /// The terminal's new size.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), EvidenceError> {
        self.entry(Entry::Resize { columns, rows }).await
    }

    /// A connection was accepted: call it before it is carried. `from` says where it came from.
    pub async fn flow_opened(&self, from: &str) -> Result<Flow, EvidenceError> {
        let number = self.0.flows.fetch_add(1, Ordering::Relaxed);
        self.note(&format!("connection {number} opened from {from}"))
            .await?;
        Ok(Flow {
            record: self.clone(),
            number,
            ended: false,
        })
    }

    /// A further SSM session carries this one: durable in the log before it returns.
    pub async fn ssm_session(&self, ssm: SsmSession) -> Result<(), EvidenceError> {
        let (reply, answer) = oneshot::channel();
        let note = format!("SSM session {} carries it too", ssm.id);
        let fact = Fact::SsmSessionOpened { ssm };
        self.send(Order::Event { fact, note, reply })?;
        self.answer(answer).await
    }

    /// Something that a reader must know: a gap, an outage, a resume.
    pub async fn note(&self, text: &str) -> Result<(), EvidenceError> {
        self.entry(Entry::Note(text.to_owned())).await
    }

    /// Resolves when the evidence failed, also while nothing passes: then the session ends.
    pub async fn failed(&self) -> EvidenceError {
        let mut failure = self.0.failure.clone();
        loop {
            if let Some(why) = &*failure.borrow_and_update() {
                return EvidenceError::Failed(Arc::clone(why));
            }
            if failure.changed().await.is_err() {
                // The record was closed in order.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends it: recording and log, durable before it returns. Later calls fail, on every clone.
    /// A record that is dropped without it ends as `Internal`.
    pub async fn close(&self, end: End) -> Result<(), EvidenceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Order::Close { end, reply })?;
        self.answer(answer).await?;
        self.0.hand_over.finish().await;
        Ok(())
    }

    async fn entry(&self, entry: Entry) -> Result<(), EvidenceError> {
        let weight = u32::try_from(entry.weight().clamp(1, ROOM)).unwrap_or(1);
        let room = Arc::clone(&self.0.room)
            .acquire_many_owned(weight)
            .await
            .map_err(|_| self.gone())?;
        let (reply, answer) = oneshot::channel();
        self.send(Order::Entry { entry, reply, room })?;
        self.answer(answer).await
    }

    fn send(&self, order: Order) -> Result<(), EvidenceError> {
        self.0.orders.send(order).map_err(|_| self.gone())
    }

    async fn answer(
        &self,
        answer: oneshot::Receiver<Result<(), EvidenceError>>,
    ) -> Result<(), EvidenceError> {
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(EvidenceError::Failed("the disk does not answer".into())),
        }
    }

    fn gone(&self) -> EvidenceError {
        let why = self.0.failure.borrow().clone();
        EvidenceError::Failed(why.unwrap_or_else(|| "the record is closed".into()))
    }
}

/// Longer than a disk takes that works: locks of other processes are waited for meanwhile.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why: `Done`, `Client` (gave up), `Target` (went away), `Evidence`, `Protocol`, …
    pub reason: CloseReason,
    /// More about it.
    pub message: Option<String>,
    /// Exit status, where the protocol carried one.
    pub exit_status: Option<u32>,
}

impl End {
    /// Nobody said how.
    fn dropped() -> Self {
        Self {
            reason: CloseReason::Internal,
            message: Some("the record was dropped".to_owned()),
            exit_status: None,
        }
    }
}

/// One connection of a tunnel. Dropped without [`Flow::close`] it counts as broken.
#[derive(Debug)]
pub struct Flow {
    record: Record,
    number: u32,
    ended: bool,
}

impl Flow {
    /// Counts bytes that are about to be relayed: up to the target, down from it. Cheap; written
    /// within a second. Errors once the evidence failed.
    pub fn moved(&self, up: u64, down: u64) -> Result<(), EvidenceError> {
        let shared = &self.record.0;
        if shared.failure.borrow().is_some() {
            return Err(self.record.gone());
        }
        shared.counts.up.fetch_add(up, Ordering::Relaxed);
        shared.counts.down.fetch_add(down, Ordering::Relaxed);
        Ok(())
    }

    /// The connection ended; `why` when it did not end in order.
    pub async fn close(mut self, why: Option<&str>) -> Result<(), EvidenceError> {
        self.ended = true;
        self.record.note(&self.end(why)).await
    }

    fn end(&self, why: Option<&str>) -> String {
        match why {
            None => format!("connection {} closed", self.number),
            Some(why) => format!("connection {} broke: {why}", self.number),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Nobody waits for it; a record whose room is full is failing anyway.
        let room = Arc::clone(&self.record.0.room).try_acquire_many_owned(1);
        if let Ok(room) = room {
            let entry = Entry::Note(self.end(Some("it was dropped")));
            let (reply, _) = oneshot::channel();
            drop(self.record.send(Order::Entry { entry, reply, room }));
        }
    }
}

/// What a session's first channel is, in the log.
fn channel(carries: &Carries) -> Option<Channel> {
    let command = |line: &str, terminal| Channel::Command {
        line: line.to_owned(),
        terminal,
    };
    match carries {
        Carries::Shell { .. } => Some(Channel::Shell { terminal: true }),
        Carries::Command { line, terminal } => Some(command(line, terminal.is_some())),
        Carries::Ssh { line, terminal, .. } => Some(match line {
            Some(line) => command(line, terminal.is_some()),
            None => Channel::Shell {
                terminal: terminal.is_some(),
            },
        }),
        Carries::Tunnel { .. } => None,
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}
