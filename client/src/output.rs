//! What people and programs see: the answer on stdout, everything else on stderr. Nothing else
//! in this package prints.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{GlobalArgs, OutputForm};
use crate::error::Error;

/// Decided once: text or JSON, verbose or not, colour or not.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// `--json`.
    pub json: bool,
    /// `-v`.
    pub verbose: bool,
    /// Colour on stderr: a terminal, and no NO_COLOR.
    colour: bool,
}

impl Printer {
    /// Decides from the flags and the terminal.
    pub fn new(global: &GlobalArgs) -> Self {
        Self {
            json: global.json || global.output == Some(OutputForm::Json),
            verbose: global.verbose > 0,
            colour: io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    /// JSON without anything else: for failures before the flags are known, and for tests.
    pub fn plain_json() -> Self {
        Self {
            json: true,
            verbose: false,
            colour: false,
        }
    }

    /// One line of the answer, to stdout. Text from outside may be in it: it cannot add a line.
    pub fn answer(&self, text: impl AsRef<str>) -> Result<(), Error> {
        write_stdout(format!("{}\n", neutral(text.as_ref())).as_bytes())
    }

    /// The answer as one JSON document on one line, to stdout.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value)
            .map_err(|error| Error::bug(format!("the answer is no JSON: {error}")))?;
        let mut text = ascii_controls(&text).into_owned();
        text.push('\n');
        write_stdout(text.as_bytes())
    }

    /// Rows below headings, to stdout, in columns. Cells are neutralised.
    pub fn table(&self, headings: &[&str], rows: &[Vec<String>]) -> Result<(), Error> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(|cell| neutral(cell).into_owned()));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        write_stdout(text.as_bytes())
    }

    /// Bytes as they are, to stdout: scripts, recordings that are played.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Error> {
        write_stdout(bytes)
    }

    /// Something to know, to stderr. Silent in JSON, where stderr carries errors alone.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.json {
            write_stderr(&format!("{}\n", neutral(text.as_ref())));
        }
    }

    /// Something to know only with `-v`, to stderr.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose {
            write_stderr(&format!("{}\n", neutral(text.as_ref())));
        }
    }

    /// Something that is probably wrong, to stderr.
    pub fn warning(&self, text: impl AsRef<str>) {
        let label = self.paint("warning:", "33");
        write_stderr(&format!("{label} {}\n", neutral(text.as_ref())));
    }

    /// A failure, to stderr; `with_kind` where the exit code does not tell it.
    pub fn error(&self, error: &Error, with_kind: bool) {
        if self.json {
            let text = error.to_json(with_kind).to_string();
            write_stderr(&format!("{}\n", ascii_controls(&text)));
            return;
        }
        let label = if with_kind {
            format!("error ({}):", error.kind)
        } else {
            "error:".to_owned()
        };
        let mut text = format!("{} {}\n", self.paint(&label, "31"), neutral(&error.message));
        if let Some(hint) = &error.hint {
            text.push_str(&format!(
                "{} {}\n",
                self.paint("hint:", "36"),
                neutral(hint)
            ));
        }
        write_stderr(&text);
    }

    fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour {
            format!("\u{1b}[1;{colour}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A time in seconds since 1970 as people and programs read it: RFC 3339, UTC.
pub fn moment(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| seconds.to_string())
}

/// How long it is until a time in seconds since 1970: `11 h 59 min left`, or `over`.
pub fn lasting(until: i64) -> String {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let minutes = (until - now) / 60;
    match minutes {
        ..0 => "over".to_owned(),
        0 if until <= now => "over".to_owned(),
        0 => "less than a minute left".to_owned(),
        1..60 => format!("{minutes} min left"),
        _ => format!("{} h {} min left", minutes / 60, minutes % 60),
    }
}

/// Text from outside, made harmless on a terminal: control characters and those that reorder
/// text are shown as escapes, so that nobody can forge a line or a hint.
pub fn neutral(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_command) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_command(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// JSON escapes C0 alone; C1 and the rest would still reach the terminal.
fn ascii_controls(json: &str) -> Cow<'_, str> {
    if !json.chars().any(is_command) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_command(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Whether a terminal may act on the character instead of showing it.
fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Turns our own log lines on: `-v` debug, `-vv` trace, on stderr. Other crates stay silent: at
/// these levels some print request bodies, and those hold codes and keys.
pub(crate) fn start_log(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let ours = Targets::new()
        .with_target("postern", level)
        .with_target("postern_proto", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(ours)
        .try_init();
}

fn write_stdout(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::failed(format!("the answer could not be written: {error}")))
}

/// stderr is the last place to tell anything: a failure there has nowhere to go.
fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_forge_a_line() {
        assert_eq!(
            neutral("web\u{1b}[2J\nhint: rm\u{9b}1m\u{202e}x"),
            "web\\u{1b}[2J\\u{a}hint: rm\\u{9b}1m\\u{202e}x"
        );
        assert_eq!(neutral("größe 1 µs"), "größe 1 µs");
    }

    #[test]
    fn json_hides_what_a_terminal_would_obey() {
        let json = serde_json::to_string("a\u{9b}b\u{e0001}").unwrap();
        let shown = ascii_controls(&json);
        assert_eq!(shown, "\"a\\u009bb\\udb40\\udc01\"");
        assert_eq!(
            serde_json::from_str::<String>(&shown).unwrap(),
            "a\u{9b}b\u{e0001}"
        );
    }
}
