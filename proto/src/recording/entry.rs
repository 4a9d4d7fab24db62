//! What a recording holds.

use bytes::Bytes;

use crate::audit::event::FileOperation;

/// What a recording holds; decides its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A terminal.
    Terminal {
        /// Columns at the start.
        columns: u32,
        /// Rows at the start.
        rows: u32,
        /// `TERM` as the client sent it.
        term: String,
        /// The command, when one runs in it.
        command: Option<String>,
    },
    /// A command or subsystem without a terminal.
    Streams {
        /// The command line or subsystem.
        command: String,
    },
    /// Timed byte counts of a TCP stream.
    Flow {
        /// Where it goes.
        destination: String,
    },
}

/// One thing that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// To the client.
    Output(Bytes),
    /// To the client, on stderr.
    Error(Bytes),
    /// From the client (kept when policy asks, and for streams).
    Input(Bytes),
    /// The terminal's new size.
    Resize {
        /// Columns.
        columns: u32,
        /// Rows.
        rows: u32,
    },
    /// The command's end: status, or signal name.
    Exit(Result<u32, String>),
    /// Bytes that a TCP stream moved since the last entry.
    Flow {
        /// From the client.
        up: u64,
        /// To the client.
        down: u64,
    },
    /// A file operation.
    File(FileOperation),
    /// Something that the reader must know: a gap, a limit.
    Note(String),
}

impl Entry {
    /// Bytes of content that this entry holds in memory.
    pub fn weight(&self) -> usize {
        match self {
            Self::Output(bytes) | Self::Error(bytes) | Self::Input(bytes) => bytes.len(),
            Self::Note(text) => text.len(),
            Self::File(operation) => {
                operation.path.len() + operation.to.as_deref().map_or(0, str::len)
            }
            Self::Resize { .. } | Self::Exit(_) | Self::Flow { .. } => 0,
        }
    }
}
