//! A connection before its answer: one `Open` or `Resume`, one chance.

use std::time::Duration;

use bytes::BytesMut;
use postern_proto::gateway::frame::{self, Decoder, FrameError, FrameKind, Piece};
use postern_proto::gateway::message::{Denied, Granted, Open};
use postern_proto::gateway::resume::Resume;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::Budget;
use super::driver::{Driver, PipeError};

/// How much one read takes in before the grant.
const READ: usize = 16 * 1024;
/// After a denial: what is read and dropped so that the answer is not lost in a reset.
const DISCARD: usize = 128 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// How long a peer may take where nothing else bounds it.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    /// For the TLS handshake.
    pub(crate) handshake: Duration,
    /// A spare connection, for its `Open`.
    pub(crate) spare: Duration,
    /// An `Open` from its first byte, and any write of ours before the grant.
    pub(crate) prompt: Duration,
    /// Our `Close`, for the peer's own.
    pub(crate) farewell: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            spare: Duration::from_secs(5 * 60),
            prompt: Duration::from_secs(10),
            farewell: Duration::from_secs(10),
        }
    }
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A pipe.
    Open(Open),
    /// To continue one.
    Resume(Resume),
}

/// Why there was no `Open`.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    /// The peer went away, or ended a spare connection in order.
    #[error("the client left before it asked for anything")]
    Left,
    /// Nothing, or not all of it, came in time.
    #[error("no request within the time allowed")]
    Late,
    /// Not a frame that may come here.
    #[error("{0:?} frame before Open")]
    Unexpected(FrameKind),
    /// Not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The body is not what its type says.
    #[error("malformed {0:?}: {1}")]
    Malformed(FrameKind, serde_json::Error),
}

/// An authenticated connection whose client has not been answered.
#[derive(Debug)]
pub(crate) struct Opening<S> {
    stream: S,
    decoder: Decoder,
    received: BytesMut,
    patience: Patience,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opening<S> {
    pub(crate) fn new(stream: S, patience: Patience) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            received: BytesMut::new(),
            patience,
        }
    }

    /// Waits for the request, answering pings. Early data that came with it stays unread.
    pub(crate) async fn asked(&mut self) -> Result<Asked, OpenError> {
        let spare_until = Instant::now() + self.patience.spare;
        let mut frame_until = None;
        loop {
            match self.decoder.next(&mut self.received)? {
                Some(Piece::Frame(kind @ FrameKind::Open, body)) => {
                    return serde_json::from_slice(&body)
                        .map(Asked::Open)
                        .map_err(|error| OpenError::Malformed(kind, error));
                }
                Some(Piece::Frame(kind @ FrameKind::Resume, body)) => {
                    return serde_json::from_slice(&body)
                        .map(Asked::Resume)
                        .map_err(|error| OpenError::Malformed(kind, error));
                }
                Some(Piece::Frame(FrameKind::Ping, body)) if body.len() == 8 => {
                    frame_until = None;
                    let pong = frame::control(FrameKind::Pong, &body);
                    self.write(&pong.unwrap_or_default()).await?;
                }
                Some(Piece::Frame(kind, _)) => return Err(OpenError::Unexpected(kind)),
                Some(Piece::Data(_)) => return Err(OpenError::Unexpected(FrameKind::Data)),
                None => {
                    let until = if self.received.is_empty() {
                        // A spare holds no buffer while it waits.
                        self.received = BytesMut::new();
                        spare_until
                    } else {
                        *frame_until.get_or_insert_with(|| Instant::now() + self.patience.prompt)
                    };
                    self.fill(until).await?;
                }
            }
        }
    }

    /// Answers no and drops whatever else the client sent, unread by anybody.
    pub(crate) async fn deny(mut self, denied: &Denied) {
        // A message that does not fit or cannot be delivered changes nothing: it is over.
        let body = serde_json::to_vec(denied).unwrap_or_default();
        let Some(frame) = frame::control(FrameKind::Denied, &body) else {
            return;
        };
        if self.write(&frame).await.is_err() {
            return;
        }
        let farewell = async {
            self.stream.shutdown().await?;
            // Closing a socket with unread bytes resets the connection, and the reset may
            // overtake the answer: take what is on its way, within bounds.
            let mut left = DISCARD;
            while left > 0 {
                self.received.clear();
                self.received.reserve(READ);
                let length = self.stream.read_buf(&mut self.received).await?;
                if length == 0 {
                    break;
                }
                left = left.saturating_sub(length);
            }
            std::io::Result::Ok(())
        };
        // The time limit and errors end the same way: the connection is dropped.
        timeout(DISCARD_TIME, farewell).await.ok();
    }

    /// Answers yes. The caller has made the grant's event durable. `ceiling` and `budget` bound
    /// the bytes kept for a peer that has not acknowledged them.
    pub(crate) async fn grant(
        mut self,
        granted: &Granted,
        ceiling: usize,
        budget: Budget,
    ) -> Result<Driver<S>, PipeError> {
        let body = serde_json::to_vec(granted).unwrap_or_default();
        let frame = frame::control(FrameKind::Granted, &body)
            .ok_or_else(|| PipeError::Lost("the answer does not fit a frame".into()))?;
        self.write(&frame)
            .await
            .map_err(|error| PipeError::Lost(error.to_string().into()))?;
        Ok(Driver::new(
            self.stream,
            self.decoder,
            self.received,
            ceiling,
            budget,
        ))
    }

    /// The connection with what was read and not looked at, for the pipe that it continues.
    pub(crate) fn into_parts(self) -> (S, Decoder, BytesMut) {
        (self.stream, self.decoder, self.received)
    }

    async fn fill(&mut self, until: Instant) -> Result<(), OpenError> {
        // Waiting without a buffer is not possible through AsyncRead; one byte is enough to wait
        // with, and TLS has decrypted the rest by then.
        if self.received.capacity() == 0 {
            let mut first = [0];
            match timeout_at(until, self.stream.read(&mut first)).await {
                Err(_) => return Err(OpenError::Late),
                Ok(Ok(1)) => self.received.extend_from_slice(&first),
                Ok(_) => return Err(OpenError::Left),
            }
            return Ok(());
        }
        self.received.reserve(READ);
        let mut space = bytes::BufMut::limit(&mut self.received, READ);
        match timeout_at(until, self.stream.read_buf(&mut space)).await {
            Err(_) => Err(OpenError::Late),
            Ok(Ok(0) | Err(_)) => Err(OpenError::Left),
            Ok(Ok(_)) => Ok(()),
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), OpenError> {
        let write = async {
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        match timeout(self.patience.prompt, write).await {
            Err(_) => Err(OpenError::Late),
            Ok(Err(_)) => Err(OpenError::Left),
            Ok(Ok(())) => Ok(()),
        }
    }
}
