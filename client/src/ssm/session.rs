//! [`Session`]: one SSM session, over any number of connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postern_proto::ssm::channel::Opened;
use postern_proto::ssm::payload::{Flag, TerminalSize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::api::Ssm;
use super::driver::{self, Order};
use super::error::SsmError;
use super::unanswered::Unanswered;
use crate::pipe::outage::Away;

/// Writes that wait for the driver.
const ORDERS: usize = 4;
/// Events that wait for their reader. Each is acknowledged when it is put here.
const EVENTS: usize = 32;

/// What to start.
#[derive(Debug, Clone)]
pub struct Start {
    /// Id of a managed node: it is part of a KMS encryption context, so no alias.
    pub target: String,
    /// Name of the SSM document. An account that never kept preferences has no
    /// [`super::document::SHELL`]: then AWS's default is taken.
    pub document: String,
    /// The document's parameters.
    pub parameters: BTreeMap<String, Vec<String>>,
    /// What AWS and CloudTrail keep as the reason, at most 256 characters.
    pub reason: String,
}

/// What happened, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes of the stream; a command's standard output.
    Data(Bytes),
    /// A command's standard error, where it is kept apart.
    Stderr(Bytes),
    /// A command's exit code.
    Exit(i32),
    /// An error text of the SSM Agent.
    Error(Bytes),
    /// A flag of a port session.
    Flag(Flag),
    /// The last event.
    Ended(End),
}

/// How a session ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// `None`: normally, or since we ended it.
    pub why: Option<SsmError>,
    /// Whether data is known to be missing.
    pub is_incomplete: bool,
}

/// A session that is open. Dropping it, or its reader, ends it at AWS too, in the background;
/// [`Ssm::settle`] waits for that.
#[derive(Debug)]
pub struct Session {
    writer: Writer,
    reader: Reader,
}

/// The half that sends. Clones share it.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

/// The half that receives.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    events: mpsc::Receiver<Event>,
}

/// Room for one write.
#[derive(Debug)]
pub struct Permit<'a> {
    permit: mpsc::Permit<'a, Order>,
}

/// What is known since the start, or told by the driver at any time.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) request_id: Option<String>,
    pub(super) document: String,
    pub(super) opened: Opened,
    pub(super) away: watch::Receiver<Away>,
    pub(super) payload: Arc<AtomicUsize>,
    pub(super) unanswered: Arc<Unanswered>,
    /// Cancelled: the session is to end, whatever waits to be written.
    pub(super) stop: CancellationToken,
    /// How the end at AWS went, once it is over.
    pub(super) ended: watch::Receiver<Option<Result<(), SsmError>>>,
}

impl Session {
    /// Starts a session and waits until data may be written. Bounded: the target has the time
    /// limits of the handshake, AWS those of its calls.
    ///
    /// Dropped before it answers, it still ends at AWS what it started there.
    pub async fn start(ssm: &Arc<Ssm>, start: Start) -> Result<Self, SsmError> {
        let (orders, obey) = mpsc::channel(ORDERS);
        let (tell, events) = mpsc::channel(EVENTS);
        let (answer, opened) = oneshot::channel();
        driver::spawn(
            ssm,
            start,
            driver::Ends {
                orders: obey,
                events: tell,
                opened: answer,
            },
        );
        let shared = opened.await.map_err(|_| SsmError::Stopped)??;
        Ok(Self {
            writer: Writer {
                shared: Arc::clone(&shared),
                orders,
            },
            reader: Reader { shared, events },
        })
    }

    /// AWS's id of the session.
    pub fn id(&self) -> &str {
        self.writer.id()
    }

    /// AWS's id of the StartSession request, for CloudTrail.
    pub fn request_id(&self) -> Option<&str> {
        self.writer.shared.request_id.as_deref()
    }

    /// The document that runs.
    pub fn document(&self) -> &str {
        &self.writer.shared.document
    }

    /// What kind it is, and what the SSM Agent says of itself.
    pub fn opened(&self) -> &Opened {
        self.writer.opened()
    }

    /// See [`Writer::write`].
    pub async fn write(&self, bytes: Bytes) -> Result<(), SsmError> {
        self.writer.write(bytes).await
    }

    /// See [`Reader::next_event`].
    pub async fn next_event(&mut self) -> Option<Event> {
        self.reader.next_event().await
    }

    /// See [`Writer::resize`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), SsmError> {
        self.writer.resize(size).await
    }

    /// See [`Writer::flag`].
    pub async fn flag(&self, flag: Flag) -> Result<(), SsmError> {
        self.writer.flag(flag).await
    }

    /// Tells when the network is lost and when it is back.
    pub fn away(&self) -> watch::Receiver<Away> {
        self.writer.away()
    }

    /// See [`Writer::end`].
    pub async fn end(self) -> Result<(), SsmError> {
        self.writer.end().await
    }

    /// Both halves, for two tasks.
    pub fn split(self) -> (Writer, Reader) {
        (self.writer, self.reader)
    }
}

impl Writer {
    /// AWS's id of the session.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// What kind it is, and what the SSM Agent says of itself.
    pub fn opened(&self) -> &Opened {
        &self.shared.opened
    }

    /// Tells when the network is lost and when it is back.
    pub fn away(&self) -> watch::Receiver<Away> {
        self.shared.away.clone()
    }

    /// Bytes that fit one message at present: the best length of a write.
    pub fn payload(&self) -> usize {
        self.shared.payload.load(Ordering::Relaxed)
    }

    /// How long something that was sent has waited while the SSM Agent said nothing at all, though
    /// the connection to AWS is there. Zero while nothing waits.
    pub(super) fn unanswered(&self) -> Duration {
        self.shared.unanswered.elapsed()
    }

    /// Sends bytes of the stream. Waits while the window is full, so it is bounded; an error says
    /// that the session is over: the reader has the reason. Cancelled, it sent nothing.
    pub async fn write(&self, bytes: Bytes) -> Result<(), SsmError> {
        self.reserve().await?.send(bytes);
        Ok(())
    }

    /// Waits for room for one write: for who wants to decide late what to send. A few writes fit
    /// in before the window counts.
    pub async fn reserve(&self) -> Result<Permit<'_>, SsmError> {
        let permit = self.orders.reserve().await.map_err(|_| SsmError::Stopped)?;
        Ok(Permit { permit })
    }

    /// Tells the size of the terminal, behind what was written.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), SsmError> {
        self.order(Order::Resize(size)).await
    }

    /// Sends a flag of a port session, behind what was written.
    pub async fn flag(&self, flag: Flag) -> Result<(), SsmError> {
        self.order(Order::Flag(flag)).await
    }

    /// Waits until everything written so far was acknowledged by the SSM Agent.
    pub async fn settled(&self) -> Result<(), SsmError> {
        let (done, settled) = oneshot::channel();
        self.order(Order::Settle(done)).await?;
        settled.await.map_err(|_| SsmError::Stopped)
    }

    /// Ends the session here and at AWS, within a deadline. An error says that AWS may keep it
    /// until its idle timeout. What was not acknowledged may be lost: see [`Self::settled`].
    pub async fn end(&self) -> Result<(), SsmError> {
        self.shared.stop.cancel();
        let mut ended = self.shared.ended.clone();
        let told = ended.wait_for(Option::is_some).await;
        told.ok().and_then(|told| told.clone()).unwrap_or(Ok(()))
    }

    async fn order(&self, order: Order) -> Result<(), SsmError> {
        self.orders.send(order).await.map_err(|_| SsmError::Stopped)
    }
}

impl Permit<'_> {
    /// Sends bytes of the stream.
    pub fn send(self, bytes: Bytes) {
        self.permit.send(Order::Write(bytes));
    }
}

impl Reader {
    /// AWS's id of the session.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// What happened next; nothing after [`Event::Ended`]. Not reading is what holds the SSM
    /// Agent back. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
