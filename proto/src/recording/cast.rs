//! asciicast v3: the lines inside a recording.
//!
//! Source: the reference encoder and parser of asciinema 3.1 (`asciicast/v3.rs`). The first line
//! is a header object; each further line is `[interval in seconds, code, text]`. Players ignore
//! codes that they do not know, so ours stand beside the standard ones:
//!
//! | code | text |
//! |---|---|
//! | `o` `i` | output, input (UTF-8) |
//! | `e` | stderr (UTF-8) |
//! | `O` `E` `I` | the same as base64: bytes that are not UTF-8 |
//! | `r` | `COLUMNSxROWS` |
//! | `x`, `X` | exit status, name of the signal that ended it |
//! | `m` | a note, shown as a marker |
//! | `f` | `UP DOWN`: bytes that a TCP stream moved since the last one |
//! | `s` | a file operation, as JSON |
//! | `d` | digest and count of a bulk stream, as JSON ([`super::bulk`]) |
//!
//! Nothing is held back: a chunk that ends within a character is written at once, its broken end
//! as base64, since what was relayed must stand in the file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::bulk::{Bulk, BulkDigest, Stream};
use super::entry::{Entry, Kind};
use super::name::RecordingName;

/// Bytes of one chunk that go into one line; longer ones take several.
const CHUNK: usize = 32 * 1024;
/// The longest line that a reader takes: a chunk in which every byte needs six.
pub const LINE_LIMIT: usize = 512 * 1024;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// 3.
    pub version: u32,
    /// The terminal; 80 by 24 where there is none.
    pub term: Term,
    /// Seconds since 1970.
    pub timestamp: i64,
    /// The command line, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What players ignore.
    pub postern: Ours,
}

/// The terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// Columns at the start.
    pub cols: u32,
    /// Rows at the start.
    pub rows: u32,
    /// `TERM`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// Our part of the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// The recording.
    pub name: RecordingName,
    /// `terminal`, `streams` or `flow`.
    pub kind: String,
    /// Where a flow goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

/// Turns entries into lines.
pub struct Encoder {
    terminal: bool,
    keep_input: bool,
    bulk: Option<Bulk>,
    last_ms: u64,
}

impl Encoder {
    /// For one recording; answers with its header line. A terminal's input is kept only with
    /// `record_input` (it holds passwords); with `bulk` the streams are kept as digest, counts
    /// and their first MiB.
    pub fn start(
        name: RecordingName,
        kind: &Kind,
        unix_seconds: i64,
        record_input: bool,
        bulk: bool,
    ) -> (Self, Vec<u8>) {
        let mut term = Term {
            cols: 80,
            rows: 24,
            kind: None,
        };
        let (text, command, destination) = match kind {
            Kind::Terminal {
                columns,
                rows,
                term: name,
                command,
            } => {
                term = Term {
                    cols: *columns,
                    rows: *rows,
                    kind: (!name.is_empty()).then(|| cut(name)),
                };
                ("terminal", command.as_deref().map(cut), None)
            }
            Kind::Streams { command } => ("streams", Some(cut(command)), None),
            Kind::Flow { destination } => ("flow", None, Some(cut(destination))),
        };
        let header = Header {
            version: 3,
            term,
            timestamp: unix_seconds,
            command,
            postern: Ours {
                name,
                kind: text.to_owned(),
                destination,
            },
        };
        let terminal = matches!(kind, Kind::Terminal { .. });
        let encoder = Self {
            terminal,
            keep_input: !terminal || record_input,
            bulk: (bulk && !terminal).then(Bulk::default),
            last_ms: 0,
        };
        let mut line = json(&header);
        line.push(b'\n');
        (encoder, line)
    }

    /// Appends an entry's lines. `at_ms` counts from the start of the recording.
    pub fn entry(&mut self, at_ms: u64, entry: &Entry, out: &mut Vec<u8>) {
        match entry {
            Entry::Output(bytes) => self.stream(at_ms, Stream::Output, bytes, out),
            Entry::Error(bytes) => self.stream(at_ms, Stream::Error, bytes, out),
            Entry::Input(bytes) if self.keep_input => {
                self.stream(at_ms, Stream::Input, bytes, out);
            }
            Entry::Input(_) => {}
            Entry::Resize { columns, rows } => {
                self.line(at_ms, "r", &format!("{columns}x{rows}"), out);
            }
            Entry::Exit(Ok(status)) => self.line(at_ms, "x", &status.to_string(), out),
            Entry::Exit(Err(signal)) => self.line(at_ms, "X", signal, out),
            Entry::Flow { up, down } => self.line(at_ms, "f", &format!("{up} {down}"), out),
            Entry::File(operation) => {
                let text = String::from_utf8(json(operation)).unwrap_or_default();
                self.line(at_ms, "s", &text, out);
            }
            Entry::Note(text) => self.line(at_ms, "m", text, out),
        }
    }

    /// Appends what stands at the end: the digests of bulk streams.
    pub fn finish(&mut self, at_ms: u64, out: &mut Vec<u8>) {
        let digests = self.bulk.take().map(Bulk::finish).unwrap_or_default();
        for digest in digests {
            self.digest(at_ms, &digest, out);
        }
    }

    fn stream(&mut self, at_ms: u64, stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
        let (kept, digest) = match &mut self.bulk {
            None => (bytes, None),
            Some(bulk) => bulk.take(stream, bytes),
        };
        for chunk in kept.chunks(CHUNK) {
            self.chunk(at_ms, stream, chunk, out);
        }
        if let Some(digest) = digest {
            self.digest(at_ms, &digest, out);
        }
    }

    /// Text as text; a broken character at either end apart; anything else whole as base64.
    fn chunk(&mut self, at_ms: u64, stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
        let (text, binary) = stream.codes();
        let head = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80)
            .count();
        let (broken, rest) = bytes.split_at(head);
        let valid = match std::str::from_utf8(rest) {
            Ok(_) => rest.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => 0,
        };
        let (whole, tail) = rest.split_at(valid);
        match std::str::from_utf8(whole) {
            Ok(whole) if !whole.is_empty() => {
                if !broken.is_empty() {
                    self.binary(at_ms, binary, broken, out);
                }
                self.line(at_ms, text, whole, out);
                if !tail.is_empty() {
                    self.binary(at_ms, binary, tail, out);
                }
            }
            _ => self.binary(at_ms, binary, bytes, out),
        }
    }

    fn digest(&mut self, at_ms: u64, digest: &BulkDigest, out: &mut Vec<u8>) {
        let text = String::from_utf8(json(digest)).unwrap_or_default();
        self.line(at_ms, "d", &text, out);
    }

    fn line(&mut self, at_ms: u64, code: &str, text: &str, out: &mut Vec<u8>) {
        self.head(at_ms, code, out);
        if serde_json::to_writer(&mut *out, text).is_err() {
            out.extend_from_slice(b"\"\"");
        }
        out.extend_from_slice(b"]\n");
    }

    /// Base64 holds nothing that JSON escapes: it is written into the line as it is.
    fn binary(&mut self, at_ms: u64, code: &str, bytes: &[u8], out: &mut Vec<u8>) {
        self.head(at_ms, code, out);
        out.push(b'"');
        let start = out.len();
        out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        let place = out.get_mut(start..).unwrap_or_default();
        let length = STANDARD.encode_slice(bytes, place).unwrap_or_default();
        out.truncate(start + length);
        out.extend_from_slice(b"\"]\n");
    }

    /// Intervals are whole milliseconds of one clock, so rounding does not add up.
    fn head(&mut self, at_ms: u64, code: &str, out: &mut Vec<u8>) {
        let interval = at_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(at_ms);
        out.extend_from_slice(
            format!("[{}.{:03},\"{code}\",", interval / 1000, interval % 1000).as_bytes(),
        );
    }

    /// Whether it is a terminal's.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }
}

/// Serializing plain structs into memory cannot fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// What a peer chose is bounded before it enters a line.
fn cut(text: &str) -> String {
    let mut end = text.len().min(CHUNK);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}
