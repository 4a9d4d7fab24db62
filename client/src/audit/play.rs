//! A recording on the terminal.

use std::io::{self, Read, Write};
use std::time::Duration;

use age::x25519::Identity;
use postern_proto::recording::play::Played;
use postern_proto::recording::{Ending, Entry, Opened, PlayError, Player};

use crate::error::Error;
use crate::output::neutral;

/// What puts a terminal back after output that was cut anywhere: soft reset, attributes off,
/// cursor shown, main screen, no bracketed paste or mouse reports.
const RESTORE: &[u8] = b"\x1b[!p\x1b[0m\x1b[?25h\x1b[?1049l\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\r\n";

/// How to play.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Times the recorded speed; 0 does not wait.
    pub speed: f64,
    /// Whether the output is a terminal that may be commanded.
    pub terminal: bool,
}

/// Plays to `out`; `wait` sleeps. A terminal's output goes to a terminal as it is. Everything else
/// has its escapes shown instead of sent. Returns a note for the person, where one is due.
pub fn play<R: Read>(
    recording: R,
    identities: &[Identity],
    pace: Pace,
    out: &mut impl Write,
    mut wait: impl FnMut(Duration),
) -> Result<Option<String>, Error> {
    let mut player = Player::new(recording, identities).map_err(unplayable)?;
    let as_it_was = pace.terminal && player.header().postern.kind == "terminal";
    let mut now = 0;
    while let Some(line) = player.next_line().map_err(unplayable)? {
        if pace.speed > 0.0 {
            let pause = line.at_ms.saturating_sub(now) as f64 / 1000.0 / pace.speed;
            // A pause that no clock can hold is no pause of a session.
            if let Ok(pause) = Duration::try_from_secs_f64(pause) {
                wait(pause);
            }
        }
        now = line.at_ms;
        show(&line.what, as_it_was, out).map_err(unwritable)?;
    }
    if as_it_was {
        out.write_all(RESTORE).map_err(unwritable)?;
    }
    out.flush().map_err(unwritable)?;
    Ok(match player.ending() {
        Some(Ending::Interrupted { .. }) => {
            Some("the recording has no end: it was interrupted, or cut (`postern audit verify` tells which)".to_owned())
        }
        _ => None,
    })
}

/// Writes the plain lines of asciicast v3 to `out`, for other players.
pub fn raw<R: Read>(
    recording: R,
    identities: &[Identity],
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut opened =
        Opened::new(recording, identities).map_err(|error| unplayable(error.into()))?;
    while let Some(record) = opened
        .next_record()
        .map_err(|error| unplayable(error.into()))?
    {
        out.write_all(&record).map_err(unwritable)?;
    }
    out.flush().map_err(unwritable)
}

fn show(played: &Played, as_it_was: bool, out: &mut impl Write) -> io::Result<()> {
    match played {
        Played::Entry(Entry::Output(bytes)) if as_it_was => {
            out.write_all(bytes)?;
            out.flush()
        }
        // What a person typed is in the output as far as it was shown.
        Played::Entry(Entry::Input(_) | Entry::Resize { .. }) if as_it_was => Ok(()),
        Played::Entry(Entry::Output(bytes)) => text("", bytes, out),
        Played::Entry(Entry::Error(bytes)) => text("stderr: ", bytes, out),
        Played::Entry(Entry::Input(bytes)) => text("stdin: ", bytes, out),
        Played::Entry(Entry::Resize { columns, rows }) => writeln!(out, "[{columns} by {rows}]"),
        Played::Entry(Entry::Exit(Ok(status))) => writeln!(out, "\r\n[exit status {status}]"),
        Played::Entry(Entry::Exit(Err(signal))) => {
            writeln!(out, "\r\n[killed by {}]", neutral(signal))
        }
        Played::Entry(Entry::Flow { up, down }) => writeln!(out, "[{up} bytes up, {down} down]"),
        Played::Entry(Entry::File(operation)) => writeln!(
            out,
            "[file {} {} {} bytes]",
            neutral(&operation.operation),
            neutral(&operation.path),
            operation.size
        ),
        Played::Entry(Entry::Note(note)) => writeln!(out, "\r\n[{}]", neutral(note)),
        Played::Digest(digest) => writeln!(
            out,
            "[{}]",
            neutral(&serde_json::to_string(digest).unwrap_or_default())
        ),
        Played::Unknown { code, .. } => writeln!(out, "[{}: of a later version]", neutral(code)),
    }
}

/// Lines with everything neutralised that a terminal would obey.
fn text(label: &str, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for line in text.split_inclusive('\n') {
        match line.strip_suffix('\n') {
            Some(line) => writeln!(
                out,
                "{label}{}",
                neutral(line.strip_suffix('\r').unwrap_or(line))
            )?,
            None => write!(out, "{label}{}", neutral(line))?,
        }
    }
    out.flush()
}

fn unplayable(error: PlayError) -> Error {
    let hint = match &error {
        PlayError::Open(postern_proto::recording::OpenError::Identity) => {
            "--identity FILE names the age identity of an auditor that the agent knew then"
        }
        _ => "`postern audit verify` says what is wrong with it",
    };
    Error::failed(format!("the recording cannot be played: {error}")).hint(hint)
}

fn unwritable(error: io::Error) -> Error {
    Error::failed(format!("the output failed: {error}"))
}
