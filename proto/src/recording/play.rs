//! Reading a recording back: lines, with their time.

use std::io::Read;

use age::x25519::Identity;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use thiserror::Error;

use super::bulk::BulkDigest;
use super::cast::{Header, LINE_LIMIT};
use super::entry::Entry;
use super::open::{Ending, OpenError, Opened, ReadError};

/// Why a recording cannot be played on.
#[derive(Debug, Error)]
pub enum PlayError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read, or was altered.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was sealed is not asciicast: written by something else.
    #[error("line {line} is not asciicast v3")]
    Line {
        /// Its number, from 1.
        line: u64,
    },
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Milliseconds since the start of the recording.
    pub at_ms: u64,
    /// What it holds.
    pub what: Played,
}

/// What a line holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Played {
    /// What the agent was handed.
    Entry(Entry),
    /// A bulk stream's digest.
    Digest(BulkDigest),
    /// A code of a later version.
    Unknown {
        /// The code.
        code: String,
        /// The text.
        text: String,
    },
}

/// Plays a recording: decrypts and parses as it goes.
pub struct Player<R> {
    opened: Opened<R>,
    header: Header,
    buffer: Vec<u8>,
    parsed: usize,
    line: u64,
    at_ms: u64,
}

impl<R: Read> Player<R> {
    /// Opens it with the first identity that fits and reads its header line. A recording that
    /// was interrupted before its first record has no header line and is an error.
    pub fn new(input: R, identities: &[Identity]) -> Result<Self, PlayError> {
        let mut opened = Opened::new(input, identities)?;
        let mut buffer = Vec::new();
        let mut parsed = 0;
        let line =
            next_line(&mut opened, &mut buffer, &mut parsed)?.ok_or(PlayError::Line { line: 1 })?;
        let header: Header =
            serde_json::from_slice(&line).map_err(|_| PlayError::Line { line: 1 })?;
        if header.version != 3 || header.postern.name != opened.name() {
            return Err(PlayError::Line { line: 1 });
        }
        Ok(Self {
            opened,
            header,
            buffer,
            parsed,
            line: 1,
            at_ms: 0,
        })
    }

    /// The header line.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next line; `None` at the end, whose kind [`Self::ending`] tells.
    pub fn next_line(&mut self) -> Result<Option<Line>, PlayError> {
        loop {
            let line = next_line(&mut self.opened, &mut self.buffer, &mut self.parsed)?;
            let Some(line) = line else { return Ok(None) };
            self.line += 1;
            // Comments and blank lines are part of asciicast v3.
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let broken = PlayError::Line { line: self.line };
            let Ok((interval, code, text)) = serde_json::from_slice::<(f64, String, String)>(&line)
            else {
                return Err(broken);
            };
            if !(0.0..1e10).contains(&interval) {
                return Err(broken);
            }
            self.at_ms = self
                .at_ms
                .saturating_add((interval * 1000.0).round() as u64);
            let what = played(code, text).ok_or(broken)?;
            return Ok(Some(Line {
                at_ms: self.at_ms,
                what,
            }));
        }
    }

    /// How it ended, once [`Self::next_line`] said so.
    pub fn ending(&self) -> Option<Ending> {
        self.opened.ending()
    }
}

fn played(code: String, text: String) -> Option<Played> {
    let bytes = |text: &str| STANDARD.decode(text).ok().map(Bytes::from);
    Some(Played::Entry(match code.as_str() {
        "o" => Entry::Output(text.into()),
        "e" => Entry::Error(text.into()),
        "i" => Entry::Input(text.into()),
        "O" => Entry::Output(bytes(&text)?),
        "E" => Entry::Error(bytes(&text)?),
        "I" => Entry::Input(bytes(&text)?),
        "r" => {
            let (columns, rows) = text.split_once('x')?;
            Entry::Resize {
                columns: columns.parse().ok()?,
                rows: rows.parse().ok()?,
            }
        }
        "x" => Entry::Exit(Ok(text.parse().ok()?)),
        "X" => Entry::Exit(Err(text)),
        "f" => {
            let (up, down) = text.split_once(' ')?;
            Entry::Flow {
                up: up.parse().ok()?,
                down: down.parse().ok()?,
            }
        }
        "s" => Entry::File(serde_json::from_str(&text).ok()?),
        "m" => Entry::Note(text),
        "d" => return Some(Played::Digest(serde_json::from_str(&text).ok()?)),
        _ => return Some(Played::Unknown { code, text }),
    }))
}

/// The next line without its line feed. An interrupted recording may end within one: that part
/// is dropped, since its record was never reported written.
fn next_line<R: Read>(
    opened: &mut Opened<R>,
    buffer: &mut Vec<u8>,
    parsed: &mut usize,
) -> Result<Option<Vec<u8>>, PlayError> {
    loop {
        let left = buffer.get(*parsed..).unwrap_or_default();
        if let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            let line = left.get(..end).unwrap_or_default().to_vec();
            *parsed += end + 1;
            return Ok(Some(line));
        }
        if left.len() > LINE_LIMIT {
            return Err(PlayError::Line { line: 0 });
        }
        buffer.drain(..*parsed);
        *parsed = 0;
        match opened.next_record()? {
            Some(record) => buffer.extend_from_slice(&record),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
