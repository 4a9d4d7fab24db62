//! Frames on one connection: a poll core that relays drive. Owns the connection, the pipe machine
//! and the heartbeat; knows nothing of what the bytes mean.

use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use postern_proto::gateway::frame::{self, Decoder, FrameKind, Piece};
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
/// A ping goes out after this time without anything from the agent,
const PING: Duration = Duration::from_secs(5);
/// or sooner, when it has not taken all our bytes. An agent that waits for its target gives signs
/// of life every 2 s.
const URGENT: Duration = Duration::from_secs(3);
/// Without an answer for so long, another connection is sought beside this one.
const SUSPECT: Duration = Duration::from_secs(4);
/// The network is gone after this time without anything from the agent: with another connection
/// to be had, and without.
const GONE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
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

    /// Drives the heartbeat and delayed acknowledgements; registers the next wake-up. Ready when
    /// something is due that can go out: call [`Wire::poll_transmit`] again. `reading` tells
    /// whether the caller listens to the agent.
    ///
    /// Output that is stuck has registered its own wake-up. Nothing can go out before, so nothing
    /// is due: a caller that were told otherwise would go round and round without ever giving
    /// the runtime a chance to move the output.
    pub(crate) fn poll_timers(
        &mut self,
        cx: &mut Context<'_>,
        reading: bool,
    ) -> Poll<Result<(), PipeError>> {
        if self.is_detached() {
            return Poll::Pending;
        }
        let stuck = self.writing.has_remaining() || self.unflushed;
        if stuck && (self.line.is_none() || !reading) {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            let ack = self.machine.poll_timeout().filter(|_| !stuck);
            if ack.is_some_and(|due| due <= now) {
                return Poll::Ready(Ok(()));
            }
            let sign = self.sign_due(reading, stuck);
            if sign.is_some_and(|due| due <= now) {
                return Poll::Ready(self.give_sign(cx, reading, now));
            }
            let Some(next) = ack.into_iter().chain(sign).min() else {
                return Poll::Pending;
            };
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

    /// When the heartbeat has something to do.
    fn sign_due(&self, reading: bool, stuck: bool) -> Option<Instant> {
        let taken = self.machine.is_acknowledged();
        match (reading, self.pinged, &self.line) {
            // No question goes out, but an agent whose path is alive is heard without one.
            (true, _, Some(line)) if stuck && line.is_calm() => Some(self.heard + URGENT + SUSPECT),
            (true, _, Some(_)) if stuck => Some(self.heard + URGENT + SUSPECT + GONE),
            // Nobody hears an answer, so none is asked for; the agent still wants to hear us.
            (false, _, _) => Some(self.signed + PING),
            (true, None, _) => Some(self.heard + if taken { PING } else { URGENT }),
            (true, Some(pinged), Some(line)) if line.is_calm() => {
                Some(self.heard.max(pinged) + SUSPECT)
            }
            (true, Some(pinged), Some(_)) => Some(self.heard.max(pinged) + GONE),
            // An agent that has taken all our bytes listens, and answers. One that has not may
            // wait for its target for as long as that likes: only the kernel can tell then.
            (true, Some(pinged), None) if taken => {
                Some((self.heard + SILENCE).max(pinged + (SILENCE - PING)))
            }
            // One question at a time: a stalled agent would find a flood of them.
            (true, Some(_), None) => None,
        }
    }

    fn give_sign(
        &mut self,
        cx: &mut Context<'_>,
        reading: bool,
        now: Instant,
    ) -> Result<(), PipeError> {
        if !reading {
            self.signed = now;
            self.writing = frame::control(FrameKind::Pong, &[0; 8]).unwrap_or_default();
            return Ok(());
        }
        let stuck = self.writing.has_remaining() || self.unflushed;
        match &mut self.line {
            _ if self.pinged.is_none() && !stuck => self.ping(),
            Some(line) if line.is_calm() => {
                line.seek(self.heard);
                cx.waker().wake_by_ref();
            }
            Some(_) => return self.lose(cx, PipeError::Silent(GONE.as_secs())),
            None => return Err(PipeError::Silent(SILENCE.as_secs())),
        }
        Ok(())
    }

    fn ping(&mut self) {
        self.pings += 1;
        self.pinged = Some(Instant::now());
        self.machine.send_ping(self.pings);
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use postern_proto::gateway::pipe::Pipe;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn data(body: &[u8]) -> Bytes {
        let mut buffer = BytesMut::zeroed(frame::HEADER);
        buffer.extend_from_slice(body);
        frame::data(buffer).unwrap()
    }

    /// A wire whose output is stuck behind a peer that does not read, with bytes taken whose
    /// acknowledgement is overdue.
    async fn stuck() -> (Wire<DuplexStream>, DuplexStream) {
        let (near, mut far) = duplex(64);
        let mut wire = Wire::new(near, Bytes::from(vec![0; 1000]));
        far.write_all(&data(b"hello")).await.unwrap();
        let event = std::future::poll_fn(|cx| wire.poll_event(cx))
            .await
            .unwrap();
        assert_eq!(event, Event::Data(Bytes::from_static(b"hello")));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        wire.machine_mut().consume(5, long_ago);
        (wire, far)
    }

    #[tokio::test]
    async fn what_is_due_while_output_is_stuck_waits_and_does_not_spin() {
        let (mut wire, mut far) = stuck().await;
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wire.poll_transmit(&mut cx).is_pending());
        for reading in [true, false] {
            assert!(wire.poll_timers(&mut cx, reading).is_pending(), "it spins");
        }
        // Once the peer reads, all goes out, the acknowledgement too.
        let mut got = vec![0; 1000];
        let (sent, read) = tokio::join!(
            std::future::poll_fn(|cx| wire.poll_transmit(cx)),
            far.read_exact(&mut got)
        );
        sent.unwrap();
        read.unwrap();
        let mut ack = [0; 12];
        far.read_exact(&mut ack).await.unwrap();
        assert_eq!(ack, [FrameKind::Ack as u8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5]);
    }

    #[tokio::test]
    async fn a_stalled_agent_is_asked_once_and_not_given_up_while_it_holds_our_bytes() {
        let (near, _far) = duplex(1 << 20);
        let mut wire = Wire::new(near, Bytes::new());
        wire.heard = Instant::now()
            .checked_sub(Duration::from_secs(600))
            .unwrap();
        wire.machine_mut().send(data(b"taken by nobody"));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wire.poll_transmit(&mut cx).is_ready());
        assert!(wire.poll_timers(&mut cx, true).is_ready(), "one question");
        assert!(wire.poll_transmit(&mut cx).is_ready());
        wire.pinged = Some(wire.heard);
        assert!(wire.poll_timers(&mut cx, true).is_pending());
        assert_eq!(wire.pings, 1);
        // The same silence of an agent that holds nothing of ours is a lost network.
        wire.machine = Pipe::new(CEILING);
        let lost = wire.poll_timers(&mut cx, true);
        assert!(
            matches!(lost, Poll::Ready(Err(PipeError::Silent(_)))),
            "{lost:?}"
        );
    }

    #[tokio::test]
    async fn who_does_not_listen_gives_signs_of_life_that_want_no_answer() {
        let (near, mut far) = duplex(1 << 20);
        let mut wire = Wire::new(near, Bytes::new());
        wire.signed = Instant::now().checked_sub(PING).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wire.poll_timers(&mut cx, false).is_ready());
        assert!(wire.poll_transmit(&mut cx).is_ready());
        assert!(wire.poll_timers(&mut cx, false).is_pending());
        let mut frame = [0; 12];
        far.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[0], FrameKind::Pong as u8);
    }
}
