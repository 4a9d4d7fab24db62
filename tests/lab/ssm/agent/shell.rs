//! A shell, or one command, on a real terminal.

use std::time::Duration;

use postern_proto::ssm::payload::TerminalSize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::places::Places;
use super::work::{Emit, Ends, Input};

/// How long output of a shell that has ended is still read: somebody else may hold its terminal.
const LINGER: Duration = Duration::from_millis(500);
const SHELL: &str = "/bin/sh";
/// `SIGINT` and `SIGQUIT` in the mask of `/proc/self/status`.
const INTERRUPTS: u64 = 0b110;

/// Runs a shell, or `command` in one, to its end.
pub(super) async fn run(
    mut ends: Ends,
    places: Places,
    command: Option<String>,
    prompt_delay: Duration,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("Unable to start pty: {error}");
    let (pty, slave) = pty_process::open().map_err(|error| failed(&error))?;
    let arguments = command.map_or_else(Vec::new, |line| vec!["-c".to_owned(), line]);
    let mut program = program().into_iter();
    let mut child = pty_process::Command::new(program.next().unwrap_or_default())
        .args(program)
        .args(arguments)
        .env_clear()
        .envs(environment(&places))
        .current_dir(&places.home)
        .kill_on_drop(true)
        .spawn(slave)
        .map_err(|error| failed(&error))?;
    let (reader, writer) = pty.into_split();
    let shown = show(reader, &ends.emit, prompt_delay);
    let over = async {
        let _ = child.wait().await;
        tokio::time::sleep(prompt_delay + LINGER).await;
    };
    tokio::select! {
        biased;
        () = shown => {}
        () = over => {}
        () = feed(writer, &mut ends.inputs) => {}
    }
    Ok(())
}

/// The shell. A lab in the background of a script inherits that interrupts are ignored, and a shell
/// keeps to what it inherits: there `env` gives them back.
pub(super) fn program() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if ignored.unwrap_or(0) & INTERRUPTS == 0 {
        vec![SHELL]
    } else {
        vec!["env", "--default-signal=INT,QUIT", SHELL]
    }
}

/// What the shells of an instance find in their environment.
pub(super) fn environment(places: &Places) -> [(String, String); 6] {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    let home = places.home.display().to_string();
    let variables = [
        ("PATH", path),
        ("HOME", home),
        ("USER", "ssm-user".to_owned()),
        ("SHELL", SHELL.to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value))
}

/// The terminal's output to the client, cut where characters end.
async fn show(mut reader: pty_process::OwnedReadPty, emit: &Emit, prompt_delay: Duration) {
    // SSM Agent session/shell/shell.go, writePump.
    tokio::time::sleep(prompt_delay).await;
    let mut buffer = vec![0; emit.payload];
    let mut held = 0;
    loop {
        let space = buffer.get_mut(held..).unwrap_or_default();
        // A terminal whose last user is gone reads as an I/O error on Linux.
        let Ok(length @ 1..) = reader.read(space).await else {
            return emit.data(buffer.get(..held).unwrap_or_default()).await;
        };
        let filled = held + length;
        let whole = whole_characters(buffer.get(..filled).unwrap_or_default());
        emit.data(buffer.get(..whole).unwrap_or_default()).await;
        buffer.copy_within(whole..filled, 0);
        held = filled - whole;
    }
}

/// How much of this does not end within a character. Bytes that are none pass.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

/// The client's input to the terminal. Never ends before the terminal does.
async fn feed(mut writer: pty_process::OwnedWritePty, inputs: &mut mpsc::Receiver<Input>) {
    while let Some(input) = inputs.recv().await {
        let done = match input {
            Input::Data(bytes) => writer.write_all(&bytes).await.map_err(|_| ()),
            Input::Size(size) => writer.resize(clamped(size)).map_err(|_| ()),
            Input::Disconnect => Ok(()),
        };
        if done.is_err() {
            break;
        }
    }
    std::future::pending::<()>().await;
}

fn clamped(size: TerminalSize) -> pty_process::Size {
    let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    pty_process::Size::new(clamp(size.rows), clamp(size.cols))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_between_characters_and_binary_passes() {
        assert_eq!(whole_characters("aé".as_bytes()), 3);
        assert_eq!(whole_characters(b"a\xc3"), 1);
        assert_eq!(whole_characters(b"a\xff\xfe"), 3);
        assert_eq!(whole_characters(b"\xe2\x82"), 2);
        assert_eq!(whole_characters(b""), 0);
    }
}
