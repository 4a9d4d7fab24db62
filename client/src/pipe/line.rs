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
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use postern_proto::gateway::frame::HEADER;
    use postern_proto::gateway::message::CloseReason;
    use postern_proto::gateway::resume::Custody;
    use postern_proto::names::SessionId;
    use tokio::io::{DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::*;
    use crate::pipe::{Outcome, Wire, relay};

    const SECRET: [u8; 32] = [5; 32];
    const SOON: Duration = Duration::from_secs(20);

    /// Hands out one end of in-memory connections, after as many failures as asked for.
    struct Dialer {
        agent: mpsc::Sender<(DuplexStream, [u8; 32])>,
        failures: Mutex<usize>,
        renewals: Mutex<usize>,
    }

    impl Redial<DuplexStream> for Dialer {
        fn dial(&self) -> BoxFuture<'static, Result<Dialled<DuplexStream>, String>> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Box::pin(async { Err("no route".to_owned()) });
            }
            let agent = self.agent.clone();
            Box::pin(async move {
                let (stream, far) = duplex(1 << 20);
                let exporter = [7; 32];
                agent.send((far, exporter)).await.unwrap();
                Ok(Dialled { stream, exporter })
            })
        }

        fn renew(&self) -> BoxFuture<'static, Result<(), String>> {
            *self.renewals.lock().unwrap() += 1;
            Box::pin(async { Ok(()) })
        }
    }

    struct Story {
        dialer: Arc<Dialer>,
        dialled: mpsc::Receiver<(DuplexStream, [u8; 32])>,
        /// The agent's end of the first connection.
        first: DuplexStream,
        local: DuplexStream,
        outages: Outages,
        relayed: tokio::task::JoinHandle<Result<Outcome, PipeError>>,
    }

    fn begin(failures: usize) -> Story {
        let session = SessionId::from_parts(1, 1);
        let (sender, dialled) = mpsc::channel(8);
        let dialer = Arc::new(Dialer {
            agent: sender,
            failures: Mutex::new(failures),
            renewals: Mutex::new(0),
        });
        let outages = Outages::new();
        let (near, first) = duplex(1 << 20);
        let (local, mut far) = duplex(1 << 20);
        let redial: Arc<dyn Redial<DuplexStream>> = dialer.clone();
        let claim = Claim::new(&SECRET, session, 0);
        let mut wire = Wire::new(near, Bytes::new());
        wire.set_line(Line::new(redial, claim, SOON, outages.clone()));
        let relayed = tokio::spawn(async move { relay(&mut wire, &mut far).await });
        Story {
            dialer,
            dialled,
            first,
            local,
            outages,
            relayed,
        }
    }

    fn data(body: &[u8]) -> Bytes {
        let mut buffer = BytesMut::zeroed(HEADER);
        buffer.extend_from_slice(body);
        frame::data(buffer).unwrap()
    }

    async fn say<T: serde::Serialize>(stream: &mut DuplexStream, kind: FrameKind, body: &T) {
        let body = serde_json::to_vec(body).unwrap();
        let frame = frame::control(kind, &body).unwrap();
        stream.write_all(&frame).await.unwrap();
    }

    /// The next frame with its header.
    async fn hear(stream: &mut DuplexStream) -> (u8, Vec<u8>) {
        let read = async {
            let mut header = [0; HEADER];
            stream.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
            let mut body = vec![0; length as usize];
            stream.read_exact(&mut body).await.unwrap();
            (header[0], body)
        };
        tokio::time::timeout(SOON, read).await.expect("a frame")
    }

    async fn heard_data(stream: &mut DuplexStream) -> Vec<u8> {
        loop {
            let (kind, body) = hear(stream).await;
            if kind == FrameKind::Data as u8 {
                return body;
            }
        }
    }

    #[tokio::test]
    async fn a_cut_connection_is_replaced_and_what_was_lost_is_sent_again() {
        let mut story = begin(3);
        story.local.write_all(b"hello").await.unwrap();
        assert_eq!(heard_data(&mut story.first).await, b"hello");
        story.first.write_all(&data(b"world")).await.unwrap();
        let mut world = [0; 5];
        story.local.read_exact(&mut world).await.unwrap();
        let mut away = story.outages.watch();
        drop(story.first);
        story.local.write_all(b" again").await.unwrap();

        // Three attempts fail before this one.
        let (mut second, exporter) = story.dialled.recv().await.unwrap();
        assert!(away.borrow_and_update().since.is_some());
        let (kind, body) = hear(&mut second).await;
        assert_eq!(kind, FrameKind::Resume as u8);
        let resume: Resume = serde_json::from_slice(&body).unwrap();
        assert_eq!(resume.received, 5);
        let mut custody = Custody::new(&SECRET, resume.session, 0);
        custody.take(&resume, &exporter).unwrap();
        // Of what was sent, two bytes had arrived.
        say(&mut second, FrameKind::Resumed, &Resumed { received: 2 }).await;
        let mut got = heard_data(&mut second).await;
        while got.len() < 9 {
            got.extend(heard_data(&mut second).await);
        }
        assert_eq!(got, b"llo again");
        away.wait_for(|away| away.since.is_none()).await.unwrap();

        let close = postern_proto::gateway::message::Close {
            reason: CloseReason::Done,
            message: None,
            exit_status: Some(7),
            sent: 8,
            received: 11,
            evidence: None,
        };
        second.write_all(&data(b"bye")).await.unwrap();
        say(&mut second, FrameKind::Close, &close).await;
        let outcome = tokio::time::timeout(SOON, story.relayed).await;
        let outcome = outcome.unwrap().unwrap().unwrap();
        assert_eq!((outcome.up, outcome.down), (11, 8));
        assert_eq!(outcome.close.exit_status, Some(7));
    }

    #[tokio::test]
    async fn a_no_of_the_agent_is_final_and_a_refused_certificate_is_renewed() {
        let mut story = begin(0);
        drop(story.first);
        for code in [DenyCode::Certificate, DenyCode::Limit, DenyCode::Policy] {
            let (mut stream, _) = story.dialled.recv().await.unwrap();
            hear(&mut stream).await;
            let denied = Denied {
                code,
                message: "no such session".to_owned(),
                hint: None,
                session: None,
                open_hash: None,
                candidates: vec![],
            };
            say(&mut stream, FrameKind::Denied, &denied).await;
        }
        let outcome = tokio::time::timeout(SOON, story.relayed).await;
        let refused = outcome.unwrap().unwrap().unwrap_err();
        assert!(matches!(refused, PipeError::Refused(_)), "{refused}");
        assert_eq!(*story.dialer.renewals.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn an_outage_longer_than_the_agents_patience_is_the_end() {
        let (sender, _dialled) = mpsc::channel(1);
        let dialer = Arc::new(Dialer {
            agent: sender,
            failures: Mutex::new(usize::MAX),
            renewals: Mutex::new(0),
        });
        let claim = Claim::new(&SECRET, SessionId::from_parts(1, 1), 0);
        let mut line = Line::new(dialer, claim, Duration::from_secs(1), Outages::new());
        line.seek(Instant::now());
        let end = std::future::poll_fn(|cx| line.poll(cx));
        let end = tokio::time::timeout(SOON, end).await.unwrap();
        assert!(matches!(end, Err(PipeError::Away(1))));
    }
}
