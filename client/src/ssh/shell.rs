//! The session channel: a shell or a command, its streams, signals and status.

mod job;
mod signal;

use std::collections::VecDeque;
use std::future::pending;
use std::io;

use bytes::BytesMut;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::SshError;
use super::agent::Lender;
use super::client::Inbound;
use super::escape;
use super::link::Link;
use super::status::StatusLine;
use super::terminal::Size;
use super::typist::Typist;
use crate::evidence::{EvidenceError, Record};

pub use job::{Control, Job, Status, Streams, TerminalRequest};

use signal::{named, signal_text};

/// Bytes taken from the local input at once.
const READ: usize = 32 * 1024;

/// Runs `job` and waits for its end. `control` may close at any time. Where the evidence is ours,
/// everything is recorded before it is shown.
pub async fn run<I, O, E>(
    link: &mut Link,
    job: Job,
    streams: Streams<'_, I, O, E>,
    control: mpsc::Receiver<Control>,
    record: Option<Record>,
) -> Result<Status, SshError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let channel = link.session().await?;
    let (reader, writer) = channel.split();
    let expected = start(&writer, &job).await.map_err(protocol)?;
    let Streams {
        input,
        output,
        error,
        typed,
        raw,
    } = streams;
    let (help, helped) = mpsc::channel(1);
    let status = typed.then(|| StatusLine::new(link.away()));
    let typist = typed.then(|| Typist::new(link.away(), help, raw));
    let shown = Shown {
        output,
        error,
        record: record.clone(),
    };
    let listen = listen(reader, expected, shown, helped, status);
    let lender = job.lend_agent.map(Lender::new);
    tokio::select! {
        ended = listen => ended,
        left = feed(input, &writer, typist, record.as_ref()) => left,
        left = obey(control, &writer, record.as_ref()) => left,
        never = lend(link.inbound(), lender) => never,
    }
}

/// What a reply is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Agent,
    Terminal,
    Start,
}

/// Sends all requests in one go; the replies come in the same order.
async fn start(writer: &ChannelWriteHalf<Msg>, job: &Job) -> Result<VecDeque<Asked>, russh::Error> {
    let mut asked = VecDeque::new();
    for (name, value) in &job.environment {
        writer.set_env(false, name, value).await?;
    }
    if job.lend_agent.is_some() {
        writer.agent_forward(true).await?;
        asked.push_back(Asked::Agent);
    }
    if let Some(TerminalRequest { kind, size, modes }) = &job.terminal {
        let Size {
            columns,
            rows,
            width,
            height,
        } = *size;
        writer
            .request_pty(true, kind, columns, rows, width, height, modes)
            .await?;
        asked.push_back(Asked::Terminal);
    }
    match &job.command {
        Some(line) => writer.exec(true, line.as_str()).await?,
        None => writer.request_shell(true).await?,
    }
    asked.push_back(Asked::Start);
    Ok(asked)
}

/// Where what the target sends is shown.
struct Shown<O, E> {
    output: O,
    error: E,
    record: Option<Record>,
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Shown<O, E> {
    async fn output(&mut self, data: &[u8]) -> Result<(), SshError> {
        if let Some(record) = &self.record {
            record.output(data).await.map_err(evidence)?;
        }
        let written = self.output.write_all(data).await;
        written.map_err(|e| local("the standard output failed", e))
    }

    async fn error(&mut self, data: &[u8]) -> Result<(), SshError> {
        if let Some(record) = &self.record {
            record.stderr(data).await.map_err(evidence)?;
        }
        let written = self.error.write_all(data).await;
        written.map_err(|e| local("the standard error failed", e))
    }

    /// Words of ours, which nobody needs to record.
    async fn tell(&mut self, text: &[u8]) -> Result<(), SshError> {
        let written = self.error.write_all(text).await;
        written.map_err(|e| local("the terminal failed", e))
    }

    /// Waits until everything can be seen.
    async fn flush(&mut self) -> Result<(), SshError> {
        let flushed = self.output.flush().await;
        flushed.map_err(|e| local("the standard output failed", e))?;
        let flushed = self.error.flush().await;
        flushed.map_err(|e| local("the standard error failed", e))
    }
}

/// Takes what the target sends, until the channel ends. Waits for nothing but its own outputs, so
/// that russh never waits for anything else.
async fn listen<O, E>(
    mut reader: ChannelReadHalf,
    mut asked: VecDeque<Asked>,
    mut shown: Shown<O, E>,
    mut help: mpsc::Receiver<()>,
    mut away: Option<StatusLine>,
) -> Result<Status, SshError>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let mut status = None;
    loop {
        let message = tokio::select! {
            biased;
            Some(()) = help.recv() => {
                shown.tell(escape::HELP).await?;
                continue;
            }
            message = reader.wait() => message,
            line = told(&mut away) => {
                shown.tell(&line).await?;
                continue;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                shown.output(&data).await?;
                if let Some(away) = &mut away {
                    away.saw(&data);
                }
            }
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => shown.error(&data).await?,
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                status = Some(Status::Exited(exit_status))
            }
            Some(ChannelMsg::ExitSignal {
                signal_name,
                error_message,
                ..
            }) => {
                status = Some(Status::Killed {
                    signal: signal_text(&signal_name).to_owned(),
                    message: error_message,
                });
            }
            Some(ChannelMsg::Success) => {
                asked.pop_front();
            }
            Some(ChannelMsg::Failure) => shown.tell(refused(asked.pop_front())?).await?,
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    shown.flush().await?;
    status.ok_or_else(|| SshError::Protocol("the session ended without an exit status".to_owned()))
}

/// What the status line says next; nothing for ever where there is none.
pub(crate) async fn told(status: &mut Option<StatusLine>) -> Vec<u8> {
    match status {
        Some(status) => status.next().await,
        None => pending().await,
    }
}

/// A refused start is an error; a refused extra is told and lived without, as `ssh` does.
fn refused(asked: Option<Asked>) -> Result<&'static [u8], SshError> {
    match asked {
        Some(Asked::Start) | None => Err(SshError::Refused {
            what: "the shell or command".to_owned(),
            reason: "the target does not run it".to_owned(),
        }),
        Some(Asked::Terminal) => Ok(b"warning: the target gives no terminal\r\n"),
        Some(Asked::Agent) => {
            Ok(b"warning: the SSH agent is not lent: policy or the target refuses it\r\n")
        }
    }
}

/// Sends the local input; returns only when the person leaves.
async fn feed<I: AsyncRead + Unpin>(
    mut input: I,
    writer: &ChannelWriteHalf<Msg>,
    mut typist: Option<Typist<'_>>,
    record: Option<&Record>,
) -> Result<Status, SshError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let read = input.read_buf(&mut buffer).await;
        let length = read.map_err(|e| local("the standard input failed", e))?;
        if length == 0 {
            // A target that is gone needs no end of file; `listen` tells why.
            let _gone = writer.eof().await;
            return pending().await;
        }
        let typed = buffer.split().freeze();
        let bytes = match &mut typist {
            None => typed,
            Some(typist) => match typist.take(&typed) {
                Some(bytes) => bytes,
                None => return Ok(Status::Left),
            },
        };
        if let Some(record) = record {
            record.input(&bytes).await.map_err(evidence)?;
        }
        if writer.data_bytes(bytes).await.is_err() {
            return pending().await;
        }
    }
}

/// Passes sizes and signals on; returns only when the session is to end.
async fn obey(
    mut control: mpsc::Receiver<Control>,
    writer: &ChannelWriteHalf<Msg>,
    record: Option<&Record>,
) -> Result<Status, SshError> {
    while let Some(order) = control.recv().await {
        let sent = match order {
            Control::Resize(Size {
                columns,
                rows,
                width,
                height,
            }) => {
                if let Some(record) = record {
                    record.resize(columns, rows).await.map_err(evidence)?;
                }
                writer.window_change(columns, rows, width, height).await
            }
            Control::Signal(name) => writer.signal(named(name)).await,
            Control::End => return Ok(Status::Left),
        };
        if sent.is_err() {
            break;
        }
    }
    pending().await
}

/// Serves what the agent opens towards us; never returns.
async fn lend(
    offers: Option<mpsc::Receiver<Inbound>>,
    lender: Option<Lender>,
) -> Result<Status, SshError> {
    if let (Some(mut offers), Some(mut lender)) = (offers, lender) {
        while let Some(offer) = offers.recv().await {
            // Dropping an offer refuses it.
            if let Inbound::Agent(channel, reply) = offer {
                lender.lend(channel, reply).await;
            }
        }
    }
    pending().await
}

fn local(what: &'static str, source: io::Error) -> SshError {
    SshError::Local { what, source }
}

fn evidence(error: EvidenceError) -> SshError {
    SshError::Carrier(error.into())
}

fn protocol(error: russh::Error) -> SshError {
    SshError::Protocol(error.to_string())
}
