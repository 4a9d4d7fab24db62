//! A shell or a command of the SSM Agent, on local streams.

use std::future::pending;
use std::io;

use bytes::{Bytes, BytesMut};
use postern_proto::ssm::payload::TerminalSize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use crate::evidence::Record;
use crate::pipe::outage::Away;
use crate::ssh::escape;
use crate::ssh::shell::{Control, Streams, told};
use crate::ssh::status::StatusLine;
use crate::ssh::terminal::Size;
use crate::ssh::typist::Typist;

use super::error::SsmError;
use super::exit_status::Watch;
use super::session::{Event, Reader, Session, Writer};

/// Bytes taken from the local input at once.
const READ: usize = 32 * 1024;
/// What a terminal makes of Ctrl-C, Ctrl-\ and Ctrl-D.
const INTERRUPT: &[u8] = b"\x03";
const QUIT: &[u8] = b"\x1c";
const END_OF_FILE: &[u8] = b"\x04";

/// What runs on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// A shell or a command on a terminal of this size.
    Terminal(Size),
    /// A command without one. It gets no input: the SSM Agent discards it, but for Ctrl-C and
    /// Ctrl-\ anywhere in it.
    Command,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// With this exit code.
    Exited(i32),
    /// The protocol carried no exit code.
    Unknown,
    /// The person, or a signal to us, ended the session.
    Left,
}

/// Serves an open session until it ends. `control` may close at any time; `watch` waits for the
/// exit status in the output. Everything is recorded before it is shown.
pub async fn run<I, O, E>(
    session: Session,
    job: Job,
    streams: Streams<'_, I, O, E>,
    control: mpsc::Receiver<Control>,
    watch: Option<Watch>,
    record: Option<Record>,
) -> Result<Status, SsmError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let (writer, reader) = session.split();
    if let Job::Terminal(size) = job {
        // A command may be over already: `listen` has what it said.
        let _over = writer.resize(cells(size)).await;
    }
    let Streams {
        input,
        output,
        error,
        typed,
        raw,
    } = streams;
    let (help, helped) = mpsc::channel(1);
    let line = typed.then(|| StatusLine::new(writer.away()));
    let typist = typed.then(|| Typist::new(writer.away(), help, raw));
    let screen = Screen {
        output,
        error,
        record: record.clone(),
        watch,
    };
    tokio::select! {
        ended = listen(reader, screen, helped, line) => ended,
        left = feed(input, &writer, typist, job) => left,
        left = obey(control, &writer, record.as_ref()) => left,
        failed = failed(record.as_ref()) => Err(failed),
        failed = note_gaps(record.as_ref(), writer.away()) => Err(failed),
    }
}

/// Where output goes: to the recording, then to the person.
struct Screen<O, E> {
    output: O,
    error: E,
    record: Option<Record>,
    watch: Option<Watch>,
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Screen<O, E> {
    async fn output(&mut self, bytes: &[u8]) -> Result<(), SsmError> {
        let Some(watch) = &mut self.watch else {
            return self.show(bytes).await;
        };
        let mut its = BytesMut::with_capacity(bytes.len());
        watch.feed(bytes, &mut its);
        self.show(&its).await
    }

    async fn show(&mut self, bytes: &[u8]) -> Result<(), SsmError> {
        if let Some(record) = &self.record {
            record.output(bytes).await?;
        }
        let failed = |error: io::Error| local("the standard output failed", &error);
        self.output.write_all(bytes).await.map_err(failed)
    }

    async fn error(&mut self, bytes: &[u8]) -> Result<(), SsmError> {
        if let Some(record) = &self.record {
            record.stderr(bytes).await?;
        }
        self.tell(bytes).await
    }

    /// Something of our own.
    async fn tell(&mut self, bytes: &[u8]) -> Result<(), SsmError> {
        let failed = |error: io::Error| local("the standard error failed", &error);
        self.error.write_all(bytes).await.map_err(failed)
    }

    /// The end of the output, and the status that stood in it.
    async fn finish(&mut self) -> Result<Option<u8>, SsmError> {
        let mut status = None;
        if let Some(watch) = self.watch.take() {
            let (rest, told) = watch.finish();
            status = told;
            self.show(&rest).await?;
        }
        let flushed = self.output.flush().await;
        flushed.map_err(|error| local("the standard output failed", &error))?;
        Ok(status)
    }
}

/// Shows what arrives, until the session is over.
async fn listen<O, E>(
    mut reader: Reader,
    mut screen: Screen<O, E>,
    mut help: mpsc::Receiver<()>,
    mut line: Option<StatusLine>,
) -> Result<Status, SsmError>
where
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
{
    let mut status = Status::Unknown;
    loop {
        let event = tokio::select! {
            event = reader.next_event() => event,
            Some(()) = help.recv() => {
                screen.tell(escape::HELP).await?;
                continue;
            }
            text = told(&mut line) => {
                screen.tell(&text).await?;
                continue;
            }
        };
        match event {
            Some(Event::Data(bytes)) => {
                screen.output(&bytes).await?;
                if let Some(line) = &mut line {
                    line.saw(&bytes);
                }
            }
            Some(Event::Stderr(bytes) | Event::Error(bytes)) => screen.error(&bytes).await?,
            Some(Event::Exit(code)) => status = Status::Exited(code),
            Some(Event::Flag(_)) => {}
            Some(Event::Ended(end)) => {
                if let Some(code) = screen.finish().await? {
                    status = Status::Exited(code.into());
                }
                return match end.why {
                    _ if end.is_incomplete && status != Status::Unknown => {
                        Err(SsmError::Incomplete)
                    }
                    None => Ok(status),
                    // It is the last thing that a command says; how the session went on is not
                    // the command's matter.
                    Some(_) if status != Status::Unknown => Ok(status),
                    Some(why) => Err(why),
                };
            }
            None => return Err(SsmError::Stopped),
        }
    }
}

/// Sends the local input; returns only when the person leaves.
async fn feed<I: AsyncRead + Unpin>(
    mut input: I,
    writer: &Writer,
    mut typist: Option<Typist<'_>>,
    job: Job,
) -> Result<Status, SsmError> {
    if job == Job::Command {
        return pending().await;
    }
    let mut buffer = BytesMut::new();
    let mut last = b'\n';
    loop {
        buffer.reserve(READ);
        let read = input.read_buf(&mut buffer).await;
        let length = read.map_err(|error| local("the standard input failed", &error))?;
        if length == 0 {
            break;
        }
        let typed = buffer.split().freeze();
        let bytes = match &mut typist {
            None => typed,
            Some(typist) => match typist.take(&typed) {
                Some(bytes) => bytes,
                None => return Ok(Status::Left),
            },
        };
        let Some(newest) = bytes.last() else {
            continue;
        };
        last = *newest;
        if writer.write(bytes).await.is_err() {
            // `listen` tells why.
            return pending().await;
        }
    }
    // There is no end of file on the wire: the terminal there makes one of Ctrl-D, on a line of
    // its own. The session goes on until the shell takes it.
    if !matches!(last, b'\n' | b'\r') {
        let _over = writer.write(Bytes::from_static(b"\n")).await;
    }
    let _over = writer.write(Bytes::from_static(END_OF_FILE)).await;
    pending().await
}

/// Passes sizes and signals on; returns only when the session is to end.
async fn obey(
    mut control: mpsc::Receiver<Control>,
    writer: &Writer,
    record: Option<&Record>,
) -> Result<Status, SsmError> {
    while let Some(order) = control.recv().await {
        let sent = match order {
            Control::Resize(size) => {
                if let Some(record) = record {
                    record.resize(size.columns, size.rows).await?;
                }
                writer.resize(cells(size)).await
            }
            Control::Signal("INT") => writer.write(Bytes::from_static(INTERRUPT)).await,
            Control::Signal("QUIT") => writer.write(Bytes::from_static(QUIT)).await,
            // No byte says it.
            Control::Signal(_) | Control::End => return Ok(Status::Left),
        };
        if sent.is_err() {
            break;
        }
    }
    pending().await
}

/// When the evidence fails, also while nothing passes.
async fn failed(record: Option<&Record>) -> SsmError {
    match record {
        Some(record) => record.failed().await.into(),
        None => pending().await,
    }
}

/// Has the recording tell of outages: what stands behind one came late. Returns only an error.
async fn note_gaps(record: Option<&Record>, mut away: watch::Receiver<Away>) -> SsmError {
    let Some(record) = record else {
        return pending().await;
    };
    loop {
        let lost = away.wait_for(|away| away.since.is_some()).await;
        let Some(since) = lost.ok().and_then(|away| away.since) else {
            return pending().await;
        };
        if away.wait_for(|away| away.since.is_none()).await.is_err() {
            return pending().await;
        }
        let text = format!("no connection for {} ms", since.elapsed().as_millis());
        if let Err(error) = record.note(&text).await {
            return error.into();
        }
    }
}

fn cells(size: Size) -> TerminalSize {
    TerminalSize {
        cols: size.columns,
        rows: size.rows,
    }
}

fn local(what: &'static str, error: &io::Error) -> SsmError {
    SsmError::Local {
        what,
        cause: error.to_string(),
    }
}
