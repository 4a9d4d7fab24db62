//! One SSH session channel of the lab's own host: its requests, then a shell or a command with or
//! without a terminal.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// What the client asked for before the shell or command.
#[derive(Default)]
struct Wishes {
    terminal: Option<(String, pty_process::Size)>,
    environment: HashMap<String, String>,
}

/// Serves a channel to its end.
pub(super) async fn serve(channel: Channel<Msg>) -> Result<()> {
    let (mut input, output) = channel.split();
    let mut wishes = Wishes::default();
    let command = loop {
        match input.wait().await {
            Some(ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                ..
            }) => {
                wishes.terminal = Some((term, size(col_width, row_height)));
            }
            Some(ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            }) => {
                wishes.environment.insert(variable_name, variable_value);
            }
            Some(ChannelMsg::RequestShell { .. }) => break None,
            Some(ChannelMsg::Exec { command, .. }) => break Some(OsString::from_vec(command)),
            Some(_) => {}
            None => return Ok(()),
        }
    };
    let status = match wishes.terminal.take() {
        Some((term, size)) => on_terminal(&mut input, &output, command, wishes, &term, size).await,
        None => on_pipes(&mut input, &output, command, wishes).await,
    }?;
    output.exit_status(code(status)).await?;
    output.eof().await?;
    output.close().await?;
    Ok(())
}

/// Sends back what arrives, whatever was asked for, to the end of it.
pub(super) async fn echo(channel: Channel<Msg>) -> Result<()> {
    let (mut input, output) = channel.split();
    loop {
        match input.wait().await {
            Some(ChannelMsg::Data { data }) => output.data(&data[..]).await?,
            None | Some(ChannelMsg::Eof | ChannelMsg::Close) => break,
            Some(_) => {}
        }
    }
    output.exit_status(0).await?;
    output.eof().await?;
    output.close().await?;
    Ok(())
}

async fn on_terminal(
    input: &mut ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    command: Option<OsString>,
    wishes: Wishes,
    term: &str,
    size: pty_process::Size,
) -> Result<ExitStatus> {
    let (pty, slave) = pty_process::open()?;
    pty.resize(size)?;
    let mut child = pty_process::Command::new(shell())
        .args(arguments(command))
        .envs(wishes.environment)
        .env("TERM", term)
        .kill_on_drop(true)
        .spawn(slave)?;
    let (mut reader, mut writer) = pty.into_split();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                // A terminal whose last user is gone reads as an I/O error on Linux.
                Ok(0) | Err(_) => break,
                Ok(length) => output.data(buffer.get(..length).unwrap_or_default()).await?,
            },
            message = input.wait() => match message {
                Some(ChannelMsg::Data { data }) => writer.write_all(&data).await?,
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    writer.resize(self::size(col_width, row_height))?;
                }
                // The client is gone: dropping the child hangs up.
                None | Some(ChannelMsg::Close) => break,
                Some(_) => {}
            },
        }
    }
    drop((reader, writer));
    Ok(child.wait().await?)
}

async fn on_pipes(
    input: &mut ChannelReadHalf,
    output: &ChannelWriteHalf<Msg>,
    command: Option<OsString>,
    wishes: Wishes,
) -> Result<ExitStatus> {
    let mut child = tokio::process::Command::new(shell())
        .args(arguments(command))
        .envs(wishes.environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().context("the child's stdout")?;
    let stderr = child.stderr.take().context("the child's stderr")?;
    let mut stdin = child.stdin.take();
    let feed = async {
        loop {
            match input.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    // A command that reads no more is not a failure of the channel.
                    if let Some(pipe) = stdin.as_mut()
                        && pipe.write_all(&data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some(ChannelMsg::Eof) => stdin = None,
                None | Some(ChannelMsg::Close) => return,
                Some(_) => {}
            }
        }
    };
    let run = async {
        tokio::try_join!(relay(stdout, output, None), relay(stderr, output, Some(1)))?;
        Ok::<_, anyhow::Error>(child.wait().await?)
    };
    let mut run = std::pin::pin!(run);
    tokio::select! {
        status = &mut run => status,
        () = feed => run.await,
    }
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    to: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        match extended {
            _ if bytes.is_empty() => return Ok(()),
            None => to.data(bytes).await?,
            Some(code) => to.extended_data(code, bytes).await?,
        }
    }
}

fn shell() -> OsString {
    std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())
}

fn arguments(command: Option<OsString>) -> Vec<OsString> {
    command.map_or_else(Vec::new, |line| vec!["-c".into(), line])
}

fn size(columns: u32, rows: u32) -> pty_process::Size {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    pty_process::Size::new(clamp(rows), clamp(columns))
}

/// What a shell would report: 128 and the signal's number for a killed child.
fn code(status: ExitStatus) -> u32 {
    let signal = || status.signal().map(|signal| 128 + signal);
    status
        .code()
        .or_else(signal)
        .and_then(|code| u32::try_from(code).ok())
        .unwrap_or(255)
}
