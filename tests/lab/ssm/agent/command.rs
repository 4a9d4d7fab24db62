//! A command without a terminal.

use std::io::{Read as _, Seek as _};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::places::Places;
use super::shell::{environment, program};
use super::work::{Emit, Ends, Input, Output};

/// Runs it to its end. With `separate`, stderr and exit code go their own ways; else there is one
/// stream, told when all is over, and no exit code.
pub(super) async fn run(
    mut ends: Ends,
    places: Places,
    line: String,
    separate: bool,
) -> Result<(), String> {
    let failed =
        |error: std::io::Error| format!("Encountered error while starting the command: {error}");
    let mut program = program().into_iter();
    let mut command = Command::new(program.next().unwrap_or_default());
    command
        .args(program)
        .args(["-c", &line])
        .env_clear()
        .envs(environment(&places))
        .current_dir(&places.home)
        .stdin(Stdio::null())
        // Signals are for all that it starts.
        .process_group(0)
        .kill_on_drop(true);
    if separate {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(&child);
        let outcome = tokio::select! {
            outcome = apart(&mut child, &ends.emit) => outcome.map_err(failed),
            () = signals(&group, &mut ends.inputs) => Ok(()),
        };
        group.forget();
        outcome
    } else {
        let mut file = tempfile::tempfile().map_err(failed)?;
        command
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file.try_clone().map_err(failed)?);
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(&child);
        tokio::select! {
            status = child.wait() => { status.map_err(failed)?; }
            () = signals(&group, &mut ends.inputs) => {}
        }
        group.forget();
        file.rewind().map_err(failed)?;
        let mut buffer = vec![0; ends.emit.payload];
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                length => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    ends.emit.data(bytes).await;
                }
            }
        }
    }
}

async fn apart(child: &mut Child, emit: &Emit) -> std::io::Result<()> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    tokio::try_join!(relay(stdout, emit, false), relay(stderr, emit, true))?;
    let status = child.wait().await?;
    emit.send(Output::Exit(code(status))).await;
    Ok(())
}

async fn relay(
    from: Option<impl AsyncRead + Unpin>,
    emit: &Emit,
    is_stderr: bool,
) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; emit.payload];
    loop {
        let length = from.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        match is_stderr {
            _ if bytes.is_empty() => return Ok(()),
            true => emit.stderr(bytes).await,
            false => emit.data(bytes).await,
        }
    }
}

/// Input is thrown away, but for ^C and ^\ anywhere in it.
async fn signals(group: &Group, inputs: &mut mpsc::Receiver<Input>) {
    while let Some(input) = inputs.recv().await {
        let Input::Data(bytes) = input else { continue };
        let signal = bytes.iter().find_map(|byte| match byte {
            0x03 => Some(Signal::INT),
            0x1c => Some(Signal::QUIT),
            _ => None,
        });
        if let Some(signal) = signal {
            group.kill(signal);
        }
    }
    std::future::pending::<()>().await;
}

/// A command and all that it starts. Killed when dropped before it is over.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }

    fn kill(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may have ended just now.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Its number may be somebody else's from now on.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill(Signal::KILL);
    }
}

/// What Go's `ExitCode` says: -1 for a killed process.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}
