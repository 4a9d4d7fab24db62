//! The task: waits for both ends, for decisions and for evidence, and moves what can be moved.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::StreamExt as _;
use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};

use super::channels::Way;
use super::end::End;
use super::lane::{Batch, Flight, READ_BUSY, READ_QUIET, land};
use super::{Decided, Relay, ordered};
use crate::evidence::EvidenceError;
use crate::session::Ending;
use crate::ssh::SshEnd;

/// Nothing to do for so long: buffers are given back.
const QUIET: Duration = Duration::from_secs(2);

/// For a target to finish an exchange of keys. A user's end may be away longer (its pipe is kept
/// then), and costs no more than an idle session.
const EXCHANGE: Duration = Duration::from_secs(120);

/// What the task woke up for.
enum Event {
    Read(Way, io::Result<usize>),
    Wrote(Way, io::Result<()>),
    Landed(Way, Flight),
    Decided(Decided),
    /// Evidence was written that nothing waits for.
    Stored(Result<(), EvidenceError>),
    Ordered(Ending),
    /// Something that people at a terminal should know.
    Noticed(Option<Arc<str>>),
    Quiet,
    Late,
}

impl Relay {
    /// Relays until the session is over.
    pub(super) async fn run<S, T>(mut self, user: S, target: T) -> SshEnd
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut user_read, mut user_write) = tokio::io::split(user);
        let (mut target_read, mut target_write) = tokio::io::split(target);
        let mut ending = self.session.ending();
        let mut notice = self.session.notice();
        let mut quiet = pin!(tokio::time::sleep(QUIET));
        let mut quiet_armed = true;
        let mut active = Instant::now();
        let end = loop {
            if let Err(end) = self.advance() {
                break end;
            }
            let late = self.exchange_deadline();
            let event = {
                let Self {
                    user,
                    target,
                    up,
                    down,
                    decisions,
                    closing,
                    logging,
                    ..
                } = &mut self;
                let may_read_user = !up.ended && user.may_read();
                let may_read_target = !down.ended && target.may_read();
                let (user_size, target_size) = (user.read, target.read);
                let (user_in, user_out) = user.transport.buffers();
                let (target_in, target_out) = target.transport.buffers();
                let may_write_user = !user_out.is_empty() || user.unflushed;
                if target.deaf {
                    target_out.clear();
                }
                let may_write_target = !target.deaf && (!target_out.is_empty() || target.unflushed);
                tokio::select! {
                    order = ordered(&mut ending) => Event::Ordered(order),
                    Ok(()) = notice.changed() => Event::Noticed(notice.borrow_and_update().clone()),
                    flight = land(&mut up.flight) => Event::Landed(Way::Up, flight),
                    flight = land(&mut down.flight) => Event::Landed(Way::Down, flight),
                    Some(decided) = decisions.next() => Event::Decided(decided),
                    Some(closed) = closing.next() => Event::Stored(closed),
                    Some(logged) = logging.next() => Event::Stored(logged),
                    done = write(&mut user_write, user_out, &mut user.unflushed),
                        if may_write_user => Event::Wrote(Way::Down, done),
                    done = write(&mut target_write, target_out, &mut target.unflushed),
                        if may_write_target => Event::Wrote(Way::Up, done),
                    done = read(&mut user_read, user_in, user_size),
                        if may_read_user => Event::Read(Way::Up, done),
                    done = read(&mut target_read, target_in, target_size),
                        if may_read_target => Event::Read(Way::Down, done),
                    () = quiet.as_mut(), if quiet_armed => Event::Quiet,
                    () = until(late) => Event::Late,
                }
            };
            if let Event::Quiet = event {
                // The timer is moved when it fires, not at every event.
                match active + QUIET {
                    due if due > Instant::now() => quiet.as_mut().reset(due),
                    _ => {
                        quiet_armed = false;
                        self.give_back();
                    }
                }
                continue;
            }
            active = Instant::now();
            if !quiet_armed {
                quiet_armed = true;
                quiet.as_mut().reset(active + QUIET);
            }
            if let Err(end) = self.on_event(event) {
                break end;
            }
        };
        let end = self
            .say_farewell(end, &mut user_read, &mut user_write, &mut target_write)
            .await;
        self.complete(end).await
    }

    fn on_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Read(way, done) => {
                self.on_read(way, done);
                Ok(())
            }
            Event::Wrote(_, Ok(())) => Ok(()),
            Event::Wrote(Way::Up, Err(error)) => {
                // What it said before, such as an exit status, is still read; that ends soon.
                self.down.failure = Some(error.to_string());
                self.target.deaf = true;
                Ok(())
            }
            Event::Wrote(Way::Down, Err(error)) => {
                self.up.failure = Some(error.to_string());
                Err(self.gone(Way::Up))
            }
            Event::Landed(way, flight) => self.on_landed(way, flight),
            Event::Decided(decided) => self.on_decided(decided),
            Event::Stored(stored) => Ok(stored?),
            Event::Ordered(order) => Err(End::new(order.reason, order.message)),
            Event::Noticed(words) => {
                self.notify(words.as_deref().unwrap_or_default());
                Ok(())
            }
            Event::Late => Err(End::new(
                CloseReason::Target,
                format!("{} did not finish an exchange of keys", self.target_name),
            )),
            Event::Quiet => Ok(()),
        }
    }

    fn on_read(&mut self, way: Way, done: io::Result<usize>) {
        let side = match way {
            Way::Up => &mut self.user,
            Way::Down => &mut self.target,
        };
        match done {
            Ok(length) if length > 0 => {
                if length >= side.read {
                    side.read = READ_BUSY;
                }
            }
            // What arrived before is still handled.
            ended => {
                let lane = self.lane(way);
                lane.ended = true;
                if let Err(error) = ended {
                    lane.failure = Some(error.to_string());
                }
            }
        }
    }

    fn exchange_deadline(&mut self) -> Option<Instant> {
        if !self.target.transport.exchanging() {
            self.exchange = None;
        } else if self.exchange.is_none() {
            self.exchange = Some(Instant::now() + EXCHANGE);
        }
        self.exchange
    }

    fn give_back(&mut self) {
        for side in [&mut self.user, &mut self.target] {
            side.transport.shrink();
            side.read = READ_QUIET;
        }
        for lane in [&mut self.up, &mut self.down] {
            if lane.flight.is_none() {
                lane.recorded = Vec::new();
                lane.batch = Batch::default();
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn read<R: AsyncRead + Unpin>(
    stream: &mut R,
    input: &mut BytesMut,
    size: usize,
) -> io::Result<usize> {
    input.reserve(size);
    stream.read_buf(input).await
}

/// Writes some of `output`; flushes the stream once all of it is written.
async fn write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    output: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if output.is_empty() {
        stream.flush().await?;
        *unflushed = false;
    } else {
        if stream.write_buf(output).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *unflushed = true;
    }
    Ok(())
}
