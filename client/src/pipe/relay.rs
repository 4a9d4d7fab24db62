//! Copying between a wire and something local: a socket, a terminal, an SSH client.
//!
//! One task, no copies of its own: local bytes are read behind the room for a frame header and
//! written to TLS from there; received bytes go out of the buffer they arrived in. Each direction
//! stops at its own full end: the next local read waits until TLS took the last frame and the
//! agent left room; the next read from TLS waits until the local side took the last bytes. Only
//! when the agent's acknowledgements are needed to go on sending does it read ahead, up to the
//! most that an agent may send without ours, so that two full directions never wait for each
//! other.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use postern_proto::gateway::buffers;
use postern_proto::gateway::frame::{self, DATA_LIMIT, HEADER};
use postern_proto::gateway::message::{Close, CloseReason};
use postern_proto::gateway::pipe::Event;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{CEILING, PipeError, Wire};

/// How long after both directions ended, or after we gave up, the agent may take to say `Close`.
const CLOSING: Duration = Duration::from_secs(10);
/// Rounds before other tasks get a turn.
const STEPS: usize = 64;
/// Free bytes below which the buffer for local reads is renewed.
const SPARE: usize = 8 * 1024;

/// How a relay ended.
#[derive(Debug)]
pub struct Outcome {
    /// The agent's `Close`.
    pub close: Close,
    /// Bytes from the local side.
    pub up: u64,
    /// Bytes to the local side.
    pub down: u64,
}

/// Copies until the agent says `Close`, over as many connections as it takes. A local side that fails is told to the agent as a client
/// that gave up. Cancel by dropping, then [`Wire::farewell`].
pub async fn relay<S, L>(wire: &mut Wire<S>, local: &mut L) -> Result<Outcome, PipeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    L: AsyncRead + AsyncWrite + Unpin,
{
    let mut relay = Relay {
        wire,
        local,
        reading: BytesMut::new(),
        up: Up::Open,
        down: VecDeque::new(),
        held: 0,
        down_end: DownEnd::Open,
        unflushed: false,
        closing: None,
        failed: None,
        closed: None,
    };
    poll_fn(|cx| relay.poll(cx)).await
}

#[derive(PartialEq)]
enum Up {
    Open,
    Done,
}

#[derive(PartialEq)]
enum DownEnd {
    Open,
    // The agent sent its last byte; the local side is told once it has all.
    Due,
    Told,
}

struct Relay<'a, S, L> {
    wire: &'a mut Wire<S>,
    local: &'a mut L,
    reading: BytesMut,
    up: Up,
    down: VecDeque<Bytes>,
    held: usize,
    down_end: DownEnd,
    unflushed: bool,
    closing: Option<Pin<Box<tokio::time::Sleep>>>,
    failed: Option<io::Error>,
    closed: Option<Close>,
}

impl<S, L> Relay<'_, S, L>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    L: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, PipeError>> {
        for _ in 0..STEPS {
            if let Poll::Ready(news) = self.wire.poll_line(cx) {
                news?;
            }
            let (taken, blocked) = self.poll_local_write(cx);
            if let Some(close) = self
                .closed
                .take_if(|_| self.down.is_empty() && !self.unflushed)
            {
                return Poll::Ready(Ok(Outcome {
                    close,
                    up: self.wire.machine().sent(),
                    down: self.wire.machine().received(),
                }));
            }
            let heard = self.poll_wire(cx, blocked)?;
            // After listening: what was heard may want an answer, and nothing else may come.
            let sent = self.poll_up(cx)?;
            if sent || taken || heard {
                continue;
            }
            if self.wire.is_detached() && self.failed.is_none() {
                // The agent keeps its `Close` for us.
                self.closing = None;
            } else if self.wire.machine().is_done() && self.down_end == DownEnd::Told {
                self.expect_close();
            }
            if let Some(closing) = &mut self.closing
                && closing.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(match self.failed.take() {
                    Some(error) => PipeError::Local(error),
                    None => PipeError::Unanswered(CLOSING.as_secs()),
                }));
            }
            match self.wire.poll_timers(cx, !blocked) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Poll::Pending,
            }
        }
        // Other tasks of this thread get their turn, and the runtime looks at the sockets.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is due, then takes from the local side. True when it took something.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<bool, PipeError> {
        let clear = match self.wire.poll_transmit(cx) {
            Poll::Ready(result) => {
                result?;
                true
            }
            Poll::Pending => false,
        };
        let room = self.wire.machine().room();
        if self.up == Up::Done || !clear || room == 0 {
            return Ok(false);
        }
        if self.reading.capacity() < HEADER + SPARE {
            self.reading = buffers::take();
        }
        self.reading.resize(HEADER, 0);
        let most = DATA_LIMIT.min(room).min(self.reading.capacity() - HEADER);
        let read = pin!(self.local.read_buf(&mut (&mut self.reading).limit(most))).poll(cx);
        match read {
            Poll::Pending => {
                // What is left of one that was read into is for the next bytes.
                if self.reading.capacity() >= buffers::READ {
                    buffers::give(std::mem::take(&mut self.reading));
                }
                Ok(false)
            }
            Poll::Ready(Ok(0)) => {
                self.up = Up::Done;
                self.wire.machine_mut().send_eof();
                Ok(true)
            }
            Poll::Ready(Ok(_)) => {
                if let Some(frame) = frame::data(self.reading.split()) {
                    self.wire.machine_mut().send(frame);
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => {
                self.give_up(error);
                Ok(true)
            }
        }
    }

    /// Gives received bytes to the local side. Returns whether it took some, and whether some are
    /// left that it does not take.
    fn poll_local_write(&mut self, cx: &mut Context<'_>) -> (bool, bool) {
        let mut progress = false;
        while let Some(first) = self.down.front_mut() {
            match Pin::new(&mut *self.local).poll_write(cx, first) {
                Poll::Pending => return (progress, true),
                Poll::Ready(Ok(written)) if written > 0 => {
                    progress = true;
                    self.unflushed = true;
                    self.held -= written;
                    self.wire.machine_mut().consume(written, Instant::now());
                    first.advance(written);
                    if !first.has_remaining() {
                        self.down.pop_front();
                    }
                }
                Poll::Ready(Ok(_)) => {
                    self.give_up(io::ErrorKind::WriteZero.into());
                    return (true, false);
                }
                Poll::Ready(Err(error)) => {
                    self.give_up(error);
                    return (true, false);
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut *self.local).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.give_up(error),
            }
        }
        if self.down_end == DownEnd::Due && !self.unflushed {
            match Pin::new(&mut *self.local).poll_shutdown(cx) {
                Poll::Pending => {}
                // A local side that is gone already needs no telling.
                Poll::Ready(_) => {
                    self.down_end = DownEnd::Told;
                    progress = true;
                }
            }
        }
        (progress, false)
    }

    /// Listens to the agent, unless the local side is behind and nothing depends on it. True when
    /// something came.
    fn poll_wire(&mut self, cx: &mut Context<'_>, blocked: bool) -> Result<bool, PipeError> {
        let starved = self.wire.machine().room() == 0;
        if self.closed.is_some() || (blocked && !(starved && self.held < CEILING)) {
            return Ok(false);
        }
        let Poll::Ready(event) = self.wire.poll_event(cx) else {
            return Ok(false);
        };
        match event? {
            Event::Data(bytes) if self.failed.is_some() => {
                self.wire.machine_mut().consume(bytes.len(), Instant::now());
            }
            Event::Data(bytes) => {
                self.held += bytes.len();
                self.down.push_back(bytes);
            }
            Event::Eof if self.down_end == DownEnd::Open => self.down_end = DownEnd::Due,
            Event::Closed(close) => {
                self.up = Up::Done;
                self.closed = Some(close);
            }
            Event::Eof | Event::Pong(_) => {}
        }
        Ok(true)
    }

    /// The local side is gone: the agent is told, and what it still sends is dropped.
    fn give_up(&mut self, error: io::Error) {
        if self.failed.is_some() {
            return;
        }
        tracing::debug!(%error, "the local side is gone");
        self.failed = Some(error);
        self.up = Up::Done;
        self.down_end = DownEnd::Told;
        self.unflushed = false;
        let held = std::mem::take(&mut self.held);
        self.down.clear();
        self.wire.machine_mut().consume(held, Instant::now());
        self.wire.machine_mut().send_close(Close {
            reason: CloseReason::Client,
            message: None,
            exit_status: None,
            sent: 0,
            received: 0,
            evidence: None,
        });
        self.expect_close();
    }

    fn expect_close(&mut self) {
        if self.closing.is_none() {
            self.closing = Some(Box::pin(tokio::time::sleep(CLOSING)));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postern_proto::gateway::frame::FrameKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_ping_is_answered_though_nothing_else_happens() {
        let (near, mut agent) = duplex(1 << 20);
        let (_local, mut far) = duplex(1 << 20);
        let mut wire = Wire::new(near, Bytes::new());
        agent
            .write_all(&frame::control(FrameKind::Ping, b"12345678").unwrap())
            .await
            .unwrap();
        let mut pong = [0; 12];
        let answered = async {
            tokio::select! {
                _ = relay(&mut wire, &mut far) => panic!("it ended"),
                read = agent.read_exact(&mut pong) => read.unwrap(),
            }
        };
        tokio::time::timeout(Duration::from_secs(5), answered)
            .await
            .expect("no answer");
        assert_eq!(&pong, b"\x08\0\0\x0812345678");
    }
}
