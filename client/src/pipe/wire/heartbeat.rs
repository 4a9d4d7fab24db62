//! The heartbeat of a wire: what is due when nobody says anything, and when the network counts as
//! gone.

use std::future::Future as _;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Buf as _;
use postern_proto::gateway::frame::{self, FrameKind};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Wire;
use crate::pipe::PipeError;

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

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire<S> {
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

    pub(super) fn ping(&mut self) {
        self.pings += 1;
        self.pinged = Some(Instant::now());
        self.machine.send_ping(self.pings);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::{Bytes, BytesMut};
    use postern_proto::gateway::pipe::{Event, Pipe};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::pipe::CEILING;

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
