//! Bulk streams: digest, count and the first MiB instead of everything.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// Bytes of each stream that are kept whole.
pub const KEPT: u64 = 1024 * 1024;
/// Bytes after which an interim digest is written, so that a crash leaves one.
const INTERIM: u64 = 16 * 1024 * 1024;

/// A direction of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// To the client.
    Output,
    /// To the client, on stderr.
    Error,
    /// From the client.
    Input,
}

impl Stream {
    /// The codes of its lines: for text, for base64.
    pub fn codes(self) -> (&'static str, &'static str) {
        match self {
            Self::Output => ("o", "O"),
            Self::Error => ("e", "E"),
            Self::Input => ("i", "I"),
        }
    }
}

/// What stands for the bytes that were not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkDigest {
    /// Of which stream.
    pub stream: Stream,
    /// Bytes from its start.
    pub bytes: u64,
    /// SHA-256 over them, hex.
    pub sha256: String,
}

/// The running digests of a recording's streams.
#[derive(Default)]
pub(super) struct Bulk {
    output: Option<Running>,
    error: Option<Running>,
    input: Option<Running>,
}

struct Running {
    context: Context,
    bytes: u64,
}

impl Bulk {
    /// Counts `bytes`; answers with the part to keep and a digest when one is due.
    pub(super) fn take<'a>(
        &mut self,
        stream: Stream,
        bytes: &'a [u8],
    ) -> (&'a [u8], Option<BulkDigest>) {
        let running = self.slot(stream).get_or_insert_with(|| Running {
            context: Context::new(&SHA256),
            bytes: 0,
        });
        let room = usize::try_from(KEPT.saturating_sub(running.bytes)).unwrap_or(usize::MAX);
        let kept = bytes.get(..room).unwrap_or(bytes);
        running.context.update(bytes);
        let before = running.bytes / INTERIM;
        running.bytes += bytes.len() as u64;
        let due = running.bytes / INTERIM != before;
        let digest = due.then(|| running.digest(stream));
        (kept, digest)
    }

    /// The digests of all streams that carried something.
    pub(super) fn finish(mut self) -> Vec<BulkDigest> {
        [Stream::Output, Stream::Error, Stream::Input]
            .into_iter()
            .filter_map(|stream| Some(self.slot(stream).as_ref()?.digest(stream)))
            .collect()
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<Running> {
        match stream {
            Stream::Output => &mut self.output,
            Stream::Error => &mut self.error,
            Stream::Input => &mut self.input,
        }
    }
}

impl Running {
    fn digest(&self, stream: Stream) -> BulkDigest {
        BulkDigest {
            stream,
            bytes: self.bytes,
            sha256: hex::encode(self.context.clone().finish()),
        }
    }
}
