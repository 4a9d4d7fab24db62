//! Moves the frames of a granted pipe: the pure machine of `postern_proto`, a stream and a clock.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postern_proto::gateway::frame::{Decoder, FrameError};
use postern_proto::gateway::message::Close;
use postern_proto::gateway::pipe::{Event, Pipe, Violation};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::Budget;
use super::buffers::{self, READ};
use super::timer::Timer;

/// Silence after which the peer is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Silence after which the network is taken for lost.
const LOST_AFTER: Duration = Duration::from_secs(90);
/// How long the peer may be silent while our `Close` waits for its own.
const CLOSE_SILENCE: Duration = Duration::from_secs(10);
/// How long that may take in all.
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

/// One end of a granted pipe. All `poll_*` functions belong to one task.
#[derive(Debug)]
pub(crate) struct Driver<S> {
    stream: S,
    decoder: Decoder,
    received: BytesMut,
    pipe: Pipe,
    ceiling: usize,
    budget: Budget,
    /// The part of the current frame that the stream has not taken.
    output: Bytes,
    unflushed: bool,
    heard: Instant,
    pinged: Option<Instant>,
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
            stream,
            decoder,
            received,
            pipe: Pipe::new(ceiling),
            ceiling,
            budget,
            output: Bytes::new(),
            unflushed: false,
            heard: Instant::now(),
            pinged: None,
            timer: Timer::default(),
        }
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
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Writes all that the pipe has to say. Ready when the stream has taken and flushed it.
    pub(super) fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Result<(), PipeError>> {
        loop {
            while !self.output.is_empty() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
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
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
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
        if !listening {
            self.heard = Instant::now();
            self.pinged = None;
        }
        let ping_at = self.pinged.unwrap_or(self.heard) + PING_AFTER;
        let ack_at = self.pipe.poll_timeout().map(Instant::from_std);
        let deadline = ack_at.map_or(ping_at, |ack_at| ack_at.min(ping_at));
        ready!(self.timer.poll(Some(deadline), cx));
        let now = Instant::now();
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

    /// Ends the pipe: sends `close` behind everything sent before and keeps the connection until
    /// the peer has answered with its own, gone away, or fallen silent. `answered`: the peer's
    /// `Close` is here already.
    pub(crate) async fn close(mut self, close: Close, answered: bool) {
        self.pipe.send_close(close);
        let until = Instant::now() + CLOSE_TIME;
        // Whatever goes wrong from here on, the pipe is over and its events are written.
        timeout_at(until, self.farewell(answered)).await.ok();
    }

    async fn farewell(&mut self, mut answered: bool) -> Result<(), PipeError> {
        loop {
            let step = std::future::poll_fn(|cx| {
                let now = Instant::now();
                if let Poll::Ready(done) = self.poll_transmit(cx, now)
                    && (done.is_err() || answered)
                {
                    return Poll::Ready(done.map(|()| None));
                }
                if answered {
                    return Poll::Pending;
                }
                self.poll_event(cx).map_ok(Some)
            });
            let Ok(step) = timeout(CLOSE_SILENCE, step).await else {
                return Ok(());
            };
            match step? {
                None => break,
                Some(Event::Closed(_)) => answered = true,
                // Dropped: nobody is left to take it.
                Some(Event::Data(bytes)) => self.consume(bytes.len(), Instant::now()),
                Some(Event::Eof | Event::Pong(_)) => {}
            }
        }
        self.stream.shutdown().await?;
        Ok(())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        if self.received.capacity() < READ {
            let mut buffer = buffers::take();
            buffer.extend_from_slice(&self.received);
            self.received = buffer;
        }
        self.received.reserve(READ);
        let mut filled = false;
        // TLS hands out a record at a time; one write to the target should take several.
        while self.received.len() < READ {
            let read = self.stream.read_buf(&mut self.received);
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
            return Poll::Ready(Ok(()));
        }
        if self.received.is_empty() {
            buffers::give(std::mem::take(&mut self.received));
        }
        Poll::Pending
    }
}
