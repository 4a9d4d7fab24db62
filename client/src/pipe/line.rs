//! A pipe's way back: another connection when its own is lost, or seems to be.
//!
//! ```text
//! Calm ─ silence ─▶ Dialling (the old one still listened to) ─ it speaks ─▶ Calm
//!   └─── lost ────▶ Dialling ─ connected ─▶ Asking ─ Resumed ─▶ Calm
//!                      ▲───── later ───────────┘
//! ```
//!
//! Before `Resume` states what arrived, the old connection is let go: nothing can arrive twice.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use postern_proto::gateway::frame::{self, Decoder, FrameKind, Piece};
use postern_proto::gateway::message::{Denied, DenyCode};
use postern_proto::gateway::resume::{Claim, Resume, Resumed};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::PipeError;
use super::outage::{Lost, Outage, Outages};

/// Between two attempts: the first and the longest, before jitter.
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// For the agent to answer `Resume`.
const ANSWER: Duration = Duration::from_secs(15);

/// An authenticated connection that nothing was said on.
pub(crate) struct Dialled<S> {
    pub(crate) stream: S,
    /// Its TLS exporter.
    pub(crate) exporter: [u8; 32],
}

/// Who dials. Reasons are for people; none is final, since networks heal.
pub(crate) trait Redial<S>: Send + Sync {
    /// A new connection to the same agent.
    fn dial(&self) -> BoxFuture<'static, Result<Dialled<S>, String>>;
    /// A new certificate, since the agent refused the one in use. Asks nobody for a code.
    fn renew(&self) -> BoxFuture<'static, Result<(), String>>;
}

/// A connection that goes on.
pub(super) struct Back<S> {
    pub(super) stream: S,
    pub(super) decoder: Decoder,
    pub(super) received: BytesMut,
    /// Bytes that the agent has got.
    pub(super) theirs: u64,
}

/// What a pipe needs to get another connection.
pub(crate) struct Line<S> {
    redial: Arc<dyn Redial<S>>,
    claim: Claim,
    /// How long the agent keeps the pipe without a connection.
    detach: Duration,
    outages: Outages,
    outage: Option<Outage>,
    state: State<S>,
    backoff: Duration,
}

enum State<S> {
    Calm,
    Dialling(BoxFuture<'static, Result<Dialled<S>, String>>),
    Asking([u8; 32], BoxFuture<'static, Asked<S>>),
}

enum Asked<S> {
    Resumed(Back<S>),
    Denied(Box<Denied>),
    /// The certificate was refused in the handshake, which shows only now.
    Certificate,
    Lost(String),
}

/// What the wire has to do.
pub(super) enum Turn<S> {
    /// Let the old connection go and tell how much arrived: [`Line::ask`].
    Ask(Dialled<S>),
    /// Go on.
    Back(Back<S>),
}

impl<S> Line<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub(crate) fn new(
        redial: Arc<dyn Redial<S>>,
        claim: Claim,
        detach: Duration,
        outages: Outages,
    ) -> Self {
        Self {
            redial,
            claim,
            detach,
            outages,
            outage: None,
            state: State::Calm,
            backoff: BACKOFF,
        }
    }

    /// Whether another connection is being sought.
    pub(super) fn is_calm(&self) -> bool {
        matches!(self.state, State::Calm)
    }

    /// Seeks another connection; the last sign of life was at `heard`.
    pub(super) fn seek(&mut self, heard: Instant) {
        if self.outage.is_none() {
            self.outage = Some(self.outages.begin(Lost::Network, heard));
        }
        if self.is_calm() {
            self.dial(Duration::ZERO, false);
        }
    }

    /// The old connection spoke: it lives.
    pub(super) fn calm(&mut self) {
        if matches!(self.state, State::Dialling(_)) {
            self.state = State::Calm;
            self.outage = None;
            self.backoff = BACKOFF;
        }
    }

    /// Gets on. An error is final.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn<S>, PipeError>> {
        loop {
            match &mut self.state {
                State::Calm => return Poll::Pending,
                State::Dialling(dial) => match ready!(dial.as_mut().poll(cx)) {
                    Ok(dialled) => {
                        self.state = State::Calm;
                        return Poll::Ready(Ok(Turn::Ask(dialled)));
                    }
                    Err(why) => self.again(&why, false)?,
                },
                State::Asking(exporter, asked) => {
                    let asked = ready!(asked.as_mut().poll(cx));
                    let exporter = *exporter;
                    match asked {
                        Asked::Resumed(back) => {
                            self.claim.accepted(&exporter);
                            self.state = State::Calm;
                            self.outage = None;
                            self.backoff = BACKOFF;
                            return Poll::Ready(Ok(Turn::Back(back)));
                        }
                        Asked::Certificate => self.again("the certificate was refused", true)?,
                        Asked::Lost(why) => self.again(&why, false)?,
                        Asked::Denied(denied) => match denied.code {
                            DenyCode::Certificate => self.again(&denied.message, true)?,
                            DenyCode::Limit | DenyCode::Internal => {
                                self.again(&denied.message, false)?;
                            }
                            _ => return Poll::Ready(Err(PipeError::Refused(denied))),
                        },
                    }
                }
            }
        }
    }

    /// Asks the agent on a new connection to go on; `received` bytes are here.
    pub(super) fn ask(&mut self, dialled: Dialled<S>, received: u64) {
        let Dialled { stream, exporter } = dialled;
        let resume = self.claim.resume(&exporter, received);
        self.state = State::Asking(exporter, Box::pin(ask(stream, resume)));
    }

    fn again(&mut self, why: &str, renew: bool) -> Result<(), PipeError> {
        tracing::debug!(why, "no new connection yet");
        if let Some(outage) = &self.outage {
            outage.explain(why);
            if outage.since().elapsed() >= self.detach {
                return Err(PipeError::Away(self.detach.as_secs()));
            }
        }
        // Half of it at least: clients that lost the same network do not come back as one.
        let mut jitter = [0];
        let part = match aws_lc_rs::rand::fill(&mut jitter) {
            Ok(()) => f64::from(jitter[0]) / 255.0,
            Err(_) => 1.0,
        };
        let wait = self.backoff.mul_f64(0.5 + part / 2.0);
        self.backoff = (self.backoff * 2).min(LONGEST);
        self.dial(wait, renew);
        Ok(())
    }

    fn dial(&mut self, wait: Duration, renew: bool) {
        let redial = Arc::clone(&self.redial);
        self.state = State::Dialling(Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            if renew {
                redial.renew().await?;
            }
            redial.dial().await
        }));
    }
}

async fn ask<S>(stream: S, resume: Resume) -> Asked<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = tokio::time::timeout(ANSWER, exchange(stream, resume)).await;
    match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) if crate::transport::refuses_certificate(&error) => Asked::Certificate,
        Ok(Err(error)) => Asked::Lost(error.to_string()),
        Err(_) => Asked::Lost("no answer".to_owned()),
    }
}

async fn exchange<S>(mut stream: S, resume: Resume) -> io::Result<Asked<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let body = serde_json::to_vec(&resume)?;
    let frame = frame::control(FrameKind::Resume, &body)
        .ok_or_else(|| io::Error::other("the request is too long"))?;
    let written = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    // What is read tells more about a refusal than a failed write.
    let written = written.await;
    let (mut decoder, mut received) = (Decoder::default(), BytesMut::new());
    loop {
        let piece = decoder.next(&mut received).map_err(io::Error::other)?;
        match piece {
            Some(Piece::Frame(FrameKind::Resumed, body)) => {
                let resumed: Resumed = serde_json::from_slice(&body)?;
                return Ok(Asked::Resumed(Back {
                    stream,
                    decoder,
                    received,
                    theirs: resumed.received,
                }));
            }
            Some(Piece::Frame(FrameKind::Denied, body)) => {
                return Ok(Asked::Denied(Box::new(serde_json::from_slice(&body)?)));
            }
            Some(_) => {
                return Err(io::Error::other(
                    "another frame than the answer to `Resume`",
                ));
            }
            None => {}
        }
        if stream.read_buf(&mut received).await? == 0 {
            written?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests;
