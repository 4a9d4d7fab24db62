//! Frames on one connection: a poll core that relays drive. Owns the connection, the pipe machine
//! and the heartbeat; knows nothing of what the bytes mean.

mod heartbeat;

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

use super::line::{Line, Turn};
use super::{CEILING, PipeError};

/// Bytes taken from TLS before they are looked at: four records.
const READ: usize = 64 * 1024;
/// Free space below which the read buffer is renewed: one record.
const SPARE: usize = 16 * 1024;
/// For the farewell: our `Close`, and the end of TLS.
const FAREWELL: Duration = Duration::from_secs(2);

/// One end of a pipe on its connection, or between two.
pub struct Wire<S> {
    // `None` while there is no connection: nothing arrives then, and what is sent is kept.
    stream: Option<S>,
    line: Option<Line<S>>,
    // The agent said `Close`.
    over: bool,
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
    // A question that is not answered yet; a sign of life that needs no answer.
    pinged: Option<Instant>,
    signed: Instant,
    pings: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire<S> {
    /// A pipe that begins on `stream`; `opening` goes out first.
    pub(crate) fn new(stream: S, opening: Bytes) -> Self {
        Self {
            stream: Some(stream),
            line: None,
            over: false,
            machine: Pipe::new(CEILING),
            decoder: Decoder::default(),
            received: BytesMut::new(),
            writing: opening,
            unflushed: false,
            timer: None,
            armed: None,
            heard: Instant::now(),
            pinged: None,
            signed: Instant::now(),
            pings: 0,
        }
    }

    /// From now on a lost connection is replaced.
    pub(crate) fn set_line(&mut self, line: Line<S>) {
        self.line = Some(line);
    }

    /// Whether there is no connection at this moment.
    pub(crate) fn is_detached(&self) -> bool {
        self.stream.is_none()
    }

    /// Seeks another connection while that is needed. Ready when there is news; an error is final.
    pub(crate) fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        loop {
            let Some(line) = &mut self.line else {
                return Poll::Pending;
            };
            match ready!(line.poll(cx))? {
                Turn::Ask(dialled) => {
                    self.detach();
                    let received = self.machine.received();
                    if let Some(line) = &mut self.line {
                        line.ask(dialled, received);
                    }
                }
                Turn::Back(back) => {
                    self.machine.resume(back.theirs)?;
                    self.stream = Some(back.stream);
                    self.decoder = back.decoder;
                    self.received = back.received;
                    self.heard = Instant::now();
                    self.pinged = None;
                    // The agent learns that we have its answer.
                    self.ping();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// The connection is gone, with what was on it.
    fn detach(&mut self) {
        self.stream = None;
        self.decoder = Decoder::default();
        self.received = BytesMut::new();
        self.writing = Bytes::new();
        self.unflushed = false;
        self.machine.cut();
    }

    /// The connection failed: for good, or until the next.
    fn lose(&mut self, cx: &mut Context<'_>, error: PipeError) -> Result<(), PipeError> {
        if self.over {
            self.detach();
            return Ok(());
        }
        if self.line.is_none() {
            return Err(error);
        }
        tracing::debug!(%error, "a new connection is sought");
        self.detach();
        if let Some(line) = &mut self.line {
            line.seek(self.heard);
        }
        // Nobody has polled the line yet.
        cx.waker().wake_by_ref();
        Ok(())
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
        match ready!(self.poll_write_all(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(self.lose(cx, PipeError::Lost(error))),
        }
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(()));
        };
        loop {
            if self.writing.has_remaining() {
                let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.writing))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
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
            ready!(Pin::new(stream).poll_flush(cx))?;
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
                    self.over = true;
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

    /// Says `Close` and ends TLS; what the agent still sends is dropped. Bounded, best effort: the
    /// pipe is over either way.
    pub async fn farewell(mut self, reason: CloseReason) {
        self.line = None;
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
            let stream = self.stream.as_mut()?;
            stream.shutdown().await.ok()?;
            if self.over {
                return Some(()); // it said its last word
            }
            // The agent is heard out: a socket closed over unread bytes is reset, and to the agent
            // a reset looks like a lost network, whatever was said before it.
            let mut rest = vec![0; READ];
            while stream.read(&mut rest).await.ok()? > 0 {}
            Some(())
        };
        let _ended = tokio::time::timeout(FAREWELL, end).await;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        match ready!(self.poll_read(cx)) {
            Ok(()) => {}
            Err(error) => {
                self.lose(cx, PipeError::Lost(error))?;
                return Poll::Pending;
            }
        }
        self.heard = Instant::now();
        self.pinged = None;
        if let Some(line) = &mut self.line {
            line.calm();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        if self.received.capacity() - self.received.len() < SPARE {
            self.received.reserve(READ);
        }
        let mut filled = false;
        while self.received.len() < READ && self.received.len() < self.received.capacity() {
            let read = pin!(stream.read_buf(&mut self.received)).poll(cx);
            match read {
                // What came before the end is handed on first; the end shows again.
                Poll::Ready(Ok(0) | Err(_)) if filled => break,
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Poll::Ready(Ok(_)) => filled = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if filled {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}
