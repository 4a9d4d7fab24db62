//! Moves the frames of a granted pipe: the pure machine of `postern_proto`, a stream and a clock.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postern_proto::gateway::buffers::{self, READ};
use postern_proto::gateway::frame::{self, DATA_LIMIT, Decoder, FrameError, FrameKind, HEADER};
use postern_proto::gateway::message::Close;
use postern_proto::gateway::pipe::{Event, Pipe, Violation};
use postern_proto::gateway::resume::Resumed;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::Budget;
use super::timer::Timer;

/// Silence after which the peer is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Silence after which the network is taken for lost.
const LOST_AFTER: Duration = Duration::from_secs(90);
/// How often a peer that we do not listen to, since the target is behind, is told that we live.
const SIGN: Duration = Duration::from_secs(2);
/// Once nothing can be written any more: how long what has arrived is still read. A `Close` may lie
/// in it, and the pipe of a peer that said goodbye is not kept.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the peer may take in all to answer our `Close`.
const CLOSE_TIME: Duration = Duration::from_secs(60);

/// Why a pipe broke.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PipeError {
    /// The connection ended without `Close`: a lost network, never an end of file.
    #[error("the network was lost: {0}")]
    Lost(Arc<str>),
    /// The peer sent what is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a frame that the protocol does not allow.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl From<std::io::Error> for PipeError {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string().into())
    }
}

/// Called once, when the first bytes arrive on a new connection.
pub(crate) struct Heard(Box<dyn FnOnce() + Send>);

impl Heard {
    pub(crate) fn new(call: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(call))
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heard")
    }
}

/// One end of a granted pipe. All `poll_*` functions belong to one task. Without a connection
/// nothing arrives and nothing is due; what is sent is kept.
#[derive(Debug)]
pub(crate) struct Driver<S> {
    stream: Option<S>,
    decoder: Decoder,
    received: BytesMut,
    pipe: Pipe,
    ceiling: usize,
    budget: Budget,
    /// The part of the current frame that the stream has not taken.
    output: Bytes,
    unflushed: bool,
    /// Nothing can be written any more: why, and until when what has arrived is still read.
    deaf: Option<(PipeError, Instant)>,
    heard: Instant,
    pinged: Option<Instant>,
    signed: Instant,
    first: Option<Heard>,
    timer: Timer,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(crate) fn new(
        stream: S,
        decoder: Decoder,
        received: BytesMut,
        ceiling: usize,
        budget: Budget,
    ) -> Self {
        Self {
            stream: Some(stream),
            decoder,
            received,
            pipe: Pipe::new(ceiling),
            ceiling,
            budget,
            output: Bytes::new(),
            unflushed: false,
            deaf: None,
            heard: Instant::now(),
            pinged: None,
            signed: Instant::now(),
            first: None,
            timer: Timer::default(),
        }
    }

    /// The connection is lost, or fenced: it is dropped with all that was on it.
    pub(crate) fn detach(&mut self) {
        self.stream = None;
        self.decoder = Decoder::default();
        self.received = BytesMut::new();
        self.output = Bytes::new();
        self.unflushed = false;
        self.deaf = None;
        self.first = None;
        self.pipe.cut();
    }

    /// Whether there is no connection.
    pub(crate) fn is_detached(&self) -> bool {
        self.stream.is_none()
    }

    /// Goes on on a new connection, whose peer has got the first `theirs` bytes. The old one is
    /// fenced before ours are stated; `heard` is called when the peer has said something after it.
    pub(crate) fn attach(
        &mut self,
        (stream, decoder, received): (S, Decoder, BytesMut),
        theirs: u64,
        heard: Heard,
    ) -> Result<(), Violation> {
        self.detach();
        self.pipe.resume(theirs)?;
        let resumed = Resumed {
            received: self.pipe.received(),
        };
        let body = serde_json::to_vec(&resumed).unwrap_or_default();
        self.output = frame::control(FrameKind::Resumed, &body).unwrap_or_default();
        self.stream = Some(stream);
        self.decoder = decoder;
        self.received = received;
        self.heard = Instant::now();
        self.pinged = None;
        self.first = Some(heard);
        Ok(())
    }

    /// How many bytes may be sent before the peer acknowledges some.
    pub(super) fn room(&mut self) -> usize {
        let room = self.pipe.room();
        self.budget.room(self.ceiling - room, room)
    }

    /// Sends a frame made by [`postern_proto::gateway::frame::data`].
    pub(super) fn send(&mut self, frame: Bytes) {
        self.pipe.send(frame);
    }

    pub(super) fn send_eof(&mut self) {
        self.pipe.send_eof();
    }

    /// `length` bytes that came out of [`Event::Data`] were handed on.
    pub(super) fn consume(&mut self, length: usize, now: Instant) {
        self.pipe.consume(length, now.into_std());
    }

    /// What arrives next. Reads only when everything received before was asked for, so a caller
    /// that does not ask stops the peer.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, PipeError>> {
        loop {
            while let Some(piece) = self.decoder.next(&mut self.received)? {
                if let Some(event) = self.pipe.handle(piece)? {
                    return Poll::Ready(Ok(event));
                }
            }
            if let Err(error) = ready!(self.poll_fill(cx)) {
                // What was first is the reason.
                let first = self.deaf.take().map_or(error, |(first, _)| first);
                return Poll::Ready(Err(first));
            }
        }
    }

    /// Writes all that the pipe has to say. Ready when the stream has taken and flushed it. A
    /// connection that takes no more is not lost before what has arrived on it is read: see
    /// [`Self::poll_event`] and [`Self::poll_timers`].
    pub(super) fn poll_transmit(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        if self.deaf.is_some() {
            return Poll::Pending;
        }
        if let Err(error) = ready!(self.poll_write(cx, now)) {
            tracing::debug!(%error, "nothing can be written any more");
            self.deaf = Some((error, now + LAST_WORDS));
            // Who reads is asked again at once.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Result<(), PipeError>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        loop {
            while !self.output.is_empty() {
                let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.output))?;
                if written == 0 {
                    return Poll::Ready(Err(PipeError::Lost("the connection is closed".into())));
                }
                self.output.advance(written);
                self.unflushed = true;
            }
            // An empty slice would still hold its buffer.
            self.output = Bytes::new();
            match self.pipe.poll_transmit(now.into_std()) {
                Some(frame) => self.output = frame,
                None => break,
            }
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps the pipe's deadlines: acknowledgements, signs of life. `listening` is false while the
    /// owner does not ask for events or output is stuck: silence means nothing then. Ready when
    /// there is something to transmit.
    pub(super) fn poll_timers(
        &mut self,
        cx: &mut Context<'_>,
        listening: bool,
    ) -> Poll<Result<(), PipeError>> {
        if self.is_detached() {
            return Poll::Pending;
        }
        if let Some((error, until)) = &self.deaf {
            ready!(self.timer.poll(Some(*until), cx));
            return Poll::Ready(Err(error.clone()));
        }
        if !listening {
            self.heard = Instant::now();
            self.pinged = None;
        }
        // Output that is stuck is sign enough once it moves.
        let clear = self.output.is_empty() && !self.unflushed;
        let sign_at = (!listening && clear).then(|| self.signed + SIGN);
        let ping_at = self.pinged.unwrap_or(self.heard) + PING_AFTER;
        let ack_at = self.pipe.poll_timeout().map(Instant::from_std);
        let deadline = [ack_at, sign_at]
            .into_iter()
            .flatten()
            .fold(ping_at, Ord::min);
        ready!(self.timer.poll(Some(deadline), cx));
        let now = Instant::now();
        if sign_at.is_some_and(|sign_at| now >= sign_at) {
            self.signed = now;
            self.pipe.send_sign();
        }
        if now >= ping_at {
            if now >= self.heard + LOST_AFTER {
                let silence: Arc<str> = format!("silent for {} s", LOST_AFTER.as_secs()).into();
                return Poll::Ready(Err(PipeError::Lost(silence)));
            }
            self.pinged = Some(now);
            self.pipe.send_ping(0);
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the pipe: `close` goes out behind everything sent before, again on every connection
    /// until the peer has answered it.
    pub(crate) fn say_close(&mut self, close: Close) {
        self.pipe.send_close(close);
    }

    /// Keeps the connection until the peer has got our `Close` and answered with its own.
    /// `answered`: that is here already. Lost when the peer goes away or is silent for `silence`.
    /// Cancel-safe.
    pub(crate) async fn farewell(
        &mut self,
        answered: bool,
        silence: Duration,
    ) -> Result<(), PipeError> {
        let until = Instant::now() + CLOSE_TIME;
        let said = timeout_at(until, self.see_off(answered, silence)).await;
        said.unwrap_or_else(|_| Err(PipeError::Lost("no answer to Close".into())))
    }

    async fn see_off(&mut self, mut answered: bool, silence: Duration) -> Result<(), PipeError> {
        loop {
            let step = std::future::poll_fn(|cx| {
                let sent = self.poll_transmit(cx, Instant::now()).is_ready();
                if !answered {
                    return self.poll_event(cx).map_ok(Some);
                }
                // Somebody who said goodbye and takes no more has all that he wants.
                if sent || self.deaf.is_some() {
                    return Poll::Ready(Ok(None));
                }
                Poll::Pending
            });
            let step = timeout(silence, step)
                .await
                .map_err(|_| PipeError::Lost("no answer to Close".into()))?;
            match step? {
                None => break,
                Some(Event::Closed(_)) => answered = true,
                // Dropped: nobody is left to take it.
                Some(Event::Data(bytes)) => self.consume(bytes.len(), Instant::now()),
                Some(Event::Eof | Event::Pong(_)) => {}
            }
        }
        // The peer has answered, and may be gone.
        if let (Some(stream), None) = (&mut self.stream, &self.deaf) {
            drop(stream.shutdown().await);
        }
        Ok(())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        if self.received.capacity() < READ {
            let mut buffer = buffers::take();
            buffer.extend_from_slice(&self.received);
            self.received = buffer;
        }
        self.received.reserve(READ);
        let mut filled = false;
        // TLS hands out a record at a time; one write to the target should take a whole frame.
        while self.received.len() < HEADER + DATA_LIMIT {
            let read = stream.read_buf(&mut self.received);
            match std::pin::pin!(read).poll(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(length)) if length > 0 => filled = true,
                // What came before the end is handed on first; the end shows again.
                Poll::Ready(_) if filled => break,
                Poll::Ready(Ok(_)) => {
                    return Poll::Ready(Err(PipeError::Lost(
                        "the connection ended without Close".into(),
                    )));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
        if filled {
            self.heard = Instant::now();
            self.pinged = None;
            if let Some(Heard(call)) = self.first.take() {
                call();
            }
            return Poll::Ready(Ok(()));
        }
        if self.received.is_empty() {
            buffers::give(std::mem::take(&mut self.received));
        }
        Poll::Pending
    }
}
