//! Couples a granted pipe with a byte stream, in one task and without a lock: the target's socket
//! for tunnels, the duplex that the SSH server reads for `ssh`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postern_proto::gateway::buffers;
use postern_proto::gateway::frame::{self, DATA_LIMIT, HEADER};
use postern_proto::gateway::message::Close;
use postern_proto::gateway::pipe::Event;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::driver::{Driver, PipeError};
use super::scan::SshScan;

/// Reads below this are copied out of their buffer, so that a peer that does not acknowledge
/// small pieces cannot pin large buffers.
const COPY_BELOW: usize = 16 * 1024;
/// Reads that one direction gets before it is the other's turn.
const TURN: usize = 4;
/// Steps that one poll takes before it lets other pipes of the thread go on.
const STEPS: usize = 16;

/// Bytes that were relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// From the client.
    pub(crate) up: u64,
    /// To the client.
    pub(crate) down: u64,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Finish {
    /// Both directions are done, or the server behind the duplex is.
    Done,
    /// The client sent `Close`.
    Closed(Close),
    /// The target's connection broke.
    Target(io::Error),
    /// The pipe broke.
    Pipe(PipeError),
    /// A tunnel began to carry SSH.
    Ssh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// The client's end of file is here; the target does not know yet.
    Ending,
    Done,
}

/// A granted pipe and what it is connected to.
pub(crate) struct Relay<S, T> {
    driver: Driver<S>,
    target: T,
    /// Bytes for the target that it has not taken.
    chunk: Bytes,
    up: Way,
    down: Way,
    counts: Counts,
    /// Looks for SSH in the first bytes of either direction of a tunnel: up, down.
    scans: Option<[SshScan; 2]>,
    /// Over when the target side is done, whatever the client still sends: a server ended.
    server: bool,
    broken: Option<io::Error>,
}

impl<S, T> Relay<S, T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// For a tunnel: ends when both directions have, or when one begins with SSH.
    pub(crate) fn tunnel(driver: Driver<S>, target: T) -> Self {
        Self {
            scans: Some(Default::default()),
            server: false,
            ..Self::server(driver, target)
        }
    }

    /// For a server behind a duplex: ends when the server has.
    pub(crate) fn server(driver: Driver<S>, target: T) -> Self {
        Self {
            driver,
            target,
            chunk: Bytes::new(),
            up: Way::Open,
            down: Way::Open,
            counts: Counts::default(),
            scans: None,
            server: true,
            broken: None,
        }
    }

    /// Bytes relayed so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The pipe, to lose or get its connection. Without one the target is still served: what it
    /// says is kept, within the pipe's bounds.
    pub(crate) fn driver(&mut self) -> &mut Driver<S> {
        &mut self.driver
    }

    /// The pipe, to be closed. The target's side is dropped.
    pub(crate) fn into_driver(self) -> Driver<S> {
        self.driver
    }

    /// Relays until the end. Cancel-safe: all state is in `self`.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        for _ in 0..STEPS {
            let now = Instant::now();
            let moved_up = match self.step_up(cx, now) {
                Ok(moved) => moved,
                Err(finish) => return Poll::Ready(finish),
            };
            let moved_down = match self.step_down(cx, now) {
                Ok(moved) => moved,
                Err(finish) => return Poll::Ready(finish),
            };
            if moved_up || moved_down {
                continue;
            }
            let flushed = self.driver.poll_transmit(cx, now).is_ready();
            if flushed && self.is_over() {
                return Poll::Ready(match self.broken.take() {
                    Some(error) => Finish::Target(error),
                    None => Finish::Done,
                });
            }
            let listening = flushed && self.chunk.is_empty();
            match self.driver.poll_timers(cx, listening) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Finish::Pipe(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_over(&self) -> bool {
        self.down == Way::Done && (self.server || self.broken.is_some() || self.up == Way::Done)
    }

    /// Client to target. True when something moved.
    fn step_up(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Finish> {
        let mut moved = false;
        for _ in 0..TURN {
            while !self.chunk.is_empty() {
                match Pin::new(&mut self.target).poll_write(cx, &self.chunk) {
                    Poll::Pending => return Ok(moved),
                    Poll::Ready(Ok(written)) if written > 0 => {
                        self.chunk.advance(written);
                        self.counts.up += written as u64;
                        self.driver.consume(written, now);
                        moved = true;
                    }
                    Poll::Ready(result) => {
                        let error = result
                            .err()
                            .unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                        self.break_up(error, now);
                    }
                }
            }
            // An empty slice would still hold its buffer.
            self.chunk = Bytes::new();
            if self.up == Way::Ending {
                match Pin::new(&mut self.target).poll_shutdown(cx) {
                    Poll::Pending => return Ok(moved),
                    // A target that is gone already has nothing to be told.
                    Poll::Ready(_) => self.up = Way::Done,
                }
            }
            match self.driver.poll_event(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Err(error)) => return Err(Finish::Pipe(error)),
                Poll::Ready(Ok(event)) => self.take(event, now)?,
            }
            moved = true;
        }
        Ok(moved)
    }

    fn take(&mut self, event: Event, now: Instant) -> Result<(), Finish> {
        match event {
            Event::Data(bytes) if self.up != Way::Open => {
                // The target takes no more: the client is not held up for it.
                self.driver.consume(bytes.len(), now);
            }
            Event::Data(bytes) => {
                if let Some([scan, _]) = &mut self.scans
                    && scan.finds(&bytes)
                {
                    return Err(Finish::Ssh);
                }
                self.chunk = bytes;
            }
            Event::Eof if self.up == Way::Open => self.up = Way::Ending,
            Event::Eof | Event::Pong(_) => {}
            Event::Closed(close) => return Err(Finish::Closed(close)),
        }
        Ok(())
    }

    /// The target takes no more. What it still sends is relayed.
    fn break_up(&mut self, error: io::Error, now: Instant) {
        self.driver.consume(self.chunk.len(), now);
        self.chunk = Bytes::new();
        self.up = Way::Done;
        self.broken.get_or_insert(error);
    }

    /// Target to client. True when something moved.
    fn step_down(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Finish> {
        let mut moved = false;
        for _ in 0..TURN {
            if self.down != Way::Open {
                break;
            }
            if self.driver.poll_transmit(cx, now).is_pending() {
                break;
            }
            let room = self.driver.room().min(DATA_LIMIT);
            if room == 0 {
                break;
            }
            match self.read_target(cx, room) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(frame))) => {
                    let body = frame.get(HEADER..).unwrap_or_default();
                    if let Some([_, scan]) = &mut self.scans
                        && scan.finds(body)
                    {
                        return Err(Finish::Ssh);
                    }
                    self.counts.down += body.len() as u64;
                    self.driver.send(frame);
                }
                Poll::Ready(Ok(None)) => {
                    self.down = Way::Done;
                    self.driver.send_eof();
                }
                Poll::Ready(Err(error)) => {
                    self.down = Way::Done;
                    self.broken.get_or_insert(error);
                }
            }
            moved = true;
        }
        Ok(moved)
    }

    /// The next frame from the target, or `None` at its end of file.
    fn read_target(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<io::Result<Option<Bytes>>> {
        let mut buffer = buffers::take();
        buffer.put_bytes(0, HEADER);
        let mut space = (&mut buffer).limit(room.min(buffers::READ - HEADER));
        let read = std::pin::pin!(self.target.read_buf(&mut space)).poll(cx);
        match read {
            Poll::Ready(Ok(length)) if length >= COPY_BELOW => Poll::Ready(Ok(frame::data(buffer))),
            Poll::Ready(Ok(_)) => {
                // `None` for an empty body: the end of file.
                let frame = frame::data(BytesMut::from(&buffer[..]));
                buffers::give(buffer);
                Poll::Ready(Ok(frame))
            }
            Poll::Ready(Err(error)) => {
                buffers::give(buffer);
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                buffers::give(buffer);
                Poll::Pending
            }
        }
    }
}
