//! One connection between something local and the target: over a stream of a multiplexed session,
//! or with a session of its own.
//!
//! The protocol has no half-close. A local program that ends its sending side and still waits for
//! the answer gets the answer, but the target is not told of that end: the only thing to tell it
//! is the end of the whole connection, which would cut the answer off. That is done once the
//! target has been silent for a while, as a program that is gone altogether looks the same.

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::basic::Whole;
use super::mux::{Deaf, Stream};
use super::session::{Reader, Writer};
use crate::error::Error;
use crate::evidence::{Flow, Record};

/// Bytes taken from the local side at once.
const READ: usize = 32 * 1024;

/// A connection to the target.
pub(super) enum Far {
    /// A stream among others.
    Stream(Stream),
    /// A session of its own.
    Whole(Whole),
}

/// What moved on all connections.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Bytes to the target.
    pub(super) up: AtomicU64,
    /// Bytes from the target.
    pub(super) down: AtomicU64,
}

/// Where the evidence of a connection is. Nothing is relayed without one.
#[derive(Clone, Copy)]
pub(super) enum Witness<'a> {
    /// Here: every byte is counted before it moves.
    Flow(&'a Flow),
    /// Above: what the client shows is recorded there.
    Above(&'a Record),
    #[cfg(test)]
    Nobody,
}

/// Counts what is about to move on one connection.
pub(super) struct Meter<'a> {
    total: &'a Moved,
    witness: Witness<'a>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: &'a Moved, witness: Witness<'a>) -> Self {
        Self { total, witness }
    }

    fn count(&self, up: usize, down: usize) -> Result<(), Ending> {
        let (up, down) = (up as u64, down as u64);
        match self.witness {
            Witness::Flow(flow) => flow
                .moved(up, down)
                .map_err(|error| Ending::Over(error.into()))?,
            Witness::Above(record) => {
                tracing::trace!(session = %record.id(), up, down, "below a recorded client");
            }
            #[cfg(test)]
            Witness::Nobody => {}
        }
        self.total.up.fetch_add(up, Ordering::Relaxed);
        self.total.down.fetch_add(down, Ordering::Relaxed);
        Ok(())
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The target closed it, and all that it sent was handed on. Telling the local side of the end
    /// is the caller's.
    Closed,
    /// The local side ended, and the target said nothing more.
    Left,
    /// The local side failed.
    Local(io::Error),
    /// The session below is over, or its evidence failed.
    Over(Error),
}

/// Copies both ways until the connection is over. `silence`: how long the target is waited for
/// after the local side ended.
pub(super) async fn relay<R, W>(
    far: &mut Far,
    from: R,
    to: W,
    meter: &Meter<'_>,
    silence: impl Fn() -> Duration,
) -> Ending
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (source, sink) = far.split();
    let ended = CancellationToken::new();
    let patience = async {
        ended.cancelled().await;
        silence()
    };
    let up = up(from, sink, meter, &ended);
    let down = down(source, to, meter, patience);
    tokio::pin!(up, down);
    tokio::select! {
        ending = &mut up => ending,
        ending = &mut down => ending,
    }
}

/// Returns only when the local side or the evidence fails.
async fn up<R: AsyncRead + Unpin>(
    mut from: R,
    sink: Sink<'_>,
    meter: &Meter<'_>,
    ended: &CancellationToken,
) -> Ending {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let length = match from.read_buf(&mut buffer).await {
            Ok(0) => {
                ended.cancel();
                return pending().await;
            }
            Ok(length) => length,
            Err(error) => return Ending::Local(error),
        };
        if let Err(failed) = meter.count(length, 0) {
            return failed;
        }
        if sink.write(buffer.split().freeze()).await.is_err() {
            // The other direction has the reason.
            return pending().await;
        }
    }
}

async fn down<W: AsyncWrite + Unpin>(
    mut source: Source<'_>,
    mut to: W,
    meter: &Meter<'_>,
    patience: impl Future<Output = Duration>,
) -> Ending {
    tokio::pin!(patience);
    let mut silence = None;
    loop {
        let read = tokio::select! {
            read = source.read() => read,
            patience = &mut patience, if silence.is_none() => {
                silence = Some(patience);
                continue;
            }
            // Begins anew with whatever arrives.
            () = after(silence) => return Ending::Left,
        };
        let bytes = match read {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ending::Closed,
            Err(over) => return Ending::Over(over),
        };
        if let Err(failed) = meter.count(0, bytes.len()) {
            return failed;
        }
        if let Err(error) = hand_on(&mut to, &bytes).await {
            return Ending::Local(error);
        }
    }
}

async fn hand_on<W: AsyncWrite + Unpin>(to: &mut W, bytes: &Bytes) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

async fn after(silence: Option<Duration>) {
    match silence {
        Some(silence) => tokio::time::sleep(silence).await,
        None => pending().await,
    }
}

impl Far {
    fn split(&mut self) -> (Source<'_>, Sink<'_>) {
        match self {
            Self::Stream(stream) => (Source::Stream(stream), Sink::Stream(stream)),
            Self::Whole(whole) => {
                let (writer, reader, is_refused) = whole.parts();
                (Source::Whole(reader, is_refused), Sink::Whole(writer))
            }
        }
    }

    /// Whether the destination refused the connection, once it has ended.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::Stream(stream) => stream.is_refused(),
            Self::Whole(whole) => whole.is_refused(),
        }
    }
}

enum Source<'a> {
    Stream(&'a Stream),
    Whole(&'a mut Reader, &'a mut bool),
}

enum Sink<'a> {
    Stream(&'a Stream),
    Whole(&'a Writer),
}

impl Source<'_> {
    async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Stream(stream) => stream.read().await,
            Self::Whole(reader, is_refused) => super::basic::read(reader, is_refused).await,
        }
    }
}

impl Sink<'_> {
    async fn write(&self, bytes: Bytes) -> Result<(), Deaf> {
        match self {
            Self::Stream(stream) => stream.write(&bytes).await,
            Self::Whole(writer) => writer.write(bytes).await.map_err(|_| Deaf),
        }
    }
}
