//! Frames on one connection: a poll core that relays drive. Owns the connection, the pipe machine
//! and the heartbeat; knows nothing of what the bytes mean.

use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use postern_proto::gateway::frame::{Decoder, Piece};
use postern_proto::gateway::message::{Close, CloseReason};
use postern_proto::gateway::pipe::{Event, Pipe};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Sleep;

use super::{CEILING, PipeError};

/// Bytes taken from TLS before they are looked at: four records.
const READ: usize = 64 * 1024;
/// Free space below which the read buffer is renewed: one record.
const SPARE: usize = 16 * 1024;
/// A ping goes out after this time without anything from the agent.
const PING: Duration = Duration::from_secs(15);
/// The network is gone after this time without anything from the agent.
const SILENCE: Duration = Duration::from_secs(60);
/// For the farewell: our `Close`, and the end of TLS.
const FAREWELL: Duration = Duration::from_secs(2);

/// One end of a pipe on its connection.
pub struct Wire<S> {
    stream: S,
    machine: Pipe,
    decoder: Decoder,
    received: BytesMut,
    writing: Bytes,
    // Whether something was written after the last flush.
    unflushed: bool,
    // Armed for a time at or before the next deadline; recomputed when it fires.
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
    heard: Instant,
    pinged: Option<Instant>,
    pings: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A pipe that begins on `stream`; `opening` goes out first.
    pub(crate) fn new(stream: S, opening: Bytes) -> Self {
        Self {
            stream,
            machine: Pipe::new(CEILING),
            decoder: Decoder::default(),
            received: BytesMut::new(),
            writing: opening,
            unflushed: false,
            timer: None,
            armed: None,
            heard: Instant::now(),
            pinged: None,
            pings: 0,
        }
    }

    /// The machine: counters, room, end of file.
    pub fn machine(&self) -> &Pipe {
        &self.machine
    }

    /// The machine, to send on.
    pub(crate) fn machine_mut(&mut self) -> &mut Pipe {
        &mut self.machine
    }

    /// Says something before the machine does: the agent's part, which tests play.
    #[cfg(test)]
    pub(crate) fn say(&mut self, frame: Bytes) {
        assert!(!self.writing.has_remaining());
        self.writing = frame;
    }

    /// Writes all that the machine has to say. Ready when it is written and flushed.
    pub(crate) fn poll_transmit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        loop {
            if self.writing.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.writing))
                    .map_err(PipeError::Lost)?;
                if written == 0 {
                    return Poll::Ready(Err(PipeError::Lost(io::ErrorKind::WriteZero.into())));
                }
                self.writing.advance(written);
                self.unflushed = true;
                continue;
            }
            match self.machine.poll_transmit(Instant::now()) {
                Some(frame) => self.writing = frame,
                None => break,
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(PipeError::Lost)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next thing that the agent says on the running pipe.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, PipeError>> {
        loop {
            let piece = ready!(self.poll_piece(cx))?;
            match self.machine.handle(piece)? {
                Some(Event::Pong(_)) | None => {}
                Some(Event::Closed(close)) => {
                    let received = self.machine.received();
                    if close.reason == CloseReason::Done && close.sent != received {
                        let sent = close.sent;
                        return Poll::Ready(Err(PipeError::Missing { sent, received }));
                    }
                    return Poll::Ready(Ok(Event::Closed(close)));
                }
                Some(event) => return Poll::Ready(Ok(event)),
            }
        }
    }

    /// The next piece, whatever it is.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, PipeError>> {
        loop {
            if let Some(piece) = self.decoder.next(&mut self.received)? {
                return Poll::Ready(Ok(piece));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Drives the heartbeat and delayed acknowledgements; registers the next wake-up. Ready when
    /// a deadline passed: call [`Wire::poll_transmit`] again. `reading` tells whether the caller
    /// reads: silence is no fault of the network while nobody listens.
    pub(crate) fn poll_timers(
        &mut self,
        cx: &mut Context<'_>,
        reading: bool,
    ) -> Poll<Result<(), PipeError>> {
        loop {
            let now = Instant::now();
            if !reading {
                self.heard = self.heard.max(now - PING.min(now - self.heard));
            }
            let heartbeat = self.pinged.unwrap_or(self.heard).max(self.heard) + PING;
            let next = self
                .machine
                .poll_timeout()
                .map_or(heartbeat, |ack| ack.min(heartbeat));
            if next <= now {
                if heartbeat <= now {
                    if reading && now.duration_since(self.heard) >= SILENCE {
                        return Poll::Ready(Err(PipeError::Silent(SILENCE.as_secs())));
                    }
                    self.pings += 1;
                    self.pinged = Some(now);
                    self.machine.send_ping(self.pings);
                }
                return Poll::Ready(Ok(()));
            }
            // A timer that is armed for earlier is left alone: it recomputes when it fires.
            if self.armed.is_none_or(|armed| armed > next) {
                self.armed = Some(next);
                let at = tokio::time::Instant::from_std(next);
                match &mut self.timer {
                    Some(timer) => timer.as_mut().reset(at),
                    None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
                }
            }
            let Some(timer) = &mut self.timer else {
                return Poll::Pending;
            };
            ready!(timer.as_mut().poll(cx));
            self.armed = None;
        }
    }

    /// Says `Close` and ends TLS; what the agent still sends is dropped. Bounded, best effort: the
    /// pipe is over either way.
    pub async fn farewell(mut self, reason: CloseReason) {
        self.machine.send_close(Close {
            reason,
            message: None,
            exit_status: None,
            sent: 0,
            received: 0,
            evidence: None,
        });
        let end = async {
            std::future::poll_fn(|cx| self.poll_transmit(cx))
                .await
                .ok()?;
            self.stream.shutdown().await.ok()
        };
        let _ended = tokio::time::timeout(FAREWELL, end).await;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        if self.received.capacity() - self.received.len() < SPARE {
            self.received.reserve(READ);
        }
        let mut filled = false;
        while self.received.len() < READ && self.received.len() < self.received.capacity() {
            let read = pin!(self.stream.read_buf(&mut self.received)).poll(cx);
            match read {
                Poll::Ready(Ok(0)) if filled => break,
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(PipeError::Lost(io::ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Ok(_)) => filled = true,
                Poll::Ready(Err(_)) if filled => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PipeError::Lost(error))),
                Poll::Pending => break,
            }
        }
        if filled {
            self.heard = Instant::now();
            self.pinged = None;
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}
