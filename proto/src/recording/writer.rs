//! One recording as it is written: entries become lines, lines are sealed, and what reached the
//! file is counted and hashed. The file itself is the caller's.

use aws_lc_rs::digest::{Context, SHA256};

use super::cast::Encoder;
use super::entry::{Entry, Kind};
use super::name::RecordingName;
use super::seal::{DataKey, SealError, Sealer};
use crate::audit::event::RecordingDigest;

/// What of a recording's content is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Whether a terminal's input is kept. It holds passwords.
    pub input: bool,
    /// Whether streams are kept as digest, counts and first MiB.
    pub bulk: bool,
}

/// The state of one recording that is open.
pub struct RecordingWriter {
    name: RecordingName,
    encoder: Encoder,
    sealer: Sealer,
    hash: Context,
    length: u64,
}

impl RecordingWriter {
    /// Begins one; answers with the first bytes of its file. `wrapped` is the key as an age file
    /// to the auditors.
    pub fn start(
        name: RecordingName,
        kind: &Kind,
        unix_seconds: i64,
        keep: Keep,
        key: &DataKey,
        wrapped: &[u8],
    ) -> Result<(Self, Vec<u8>), SealError> {
        let (mut sealer, mut sealed) = Sealer::start(name, key, wrapped)?;
        let (encoder, first) = Encoder::start(name, kind, unix_seconds, keep.input, keep.bulk);
        sealer.seal(&first, false, &mut sealed)?;
        let writer = Self {
            name,
            encoder,
            sealer,
            hash: Context::new(&SHA256),
            length: 0,
        };
        Ok((writer, sealed))
    }

    /// Appends an entry's lines to `plain`. `at_ms` counts from the start of the recording.
    pub fn entry(&mut self, at_ms: u64, entry: &Entry, plain: &mut Vec<u8>) {
        self.encoder.entry(at_ms, entry, plain);
    }

    /// Appends what stands at the end to `plain`.
    pub fn finish(&mut self, at_ms: u64, plain: &mut Vec<u8>) {
        self.encoder.finish(at_ms, plain);
    }

    /// Seals lines, the last ones with the final flag, and appends what is to be written to
    /// `sealed`.
    pub fn seal(
        &mut self,
        plain: &[u8],
        last: bool,
        sealed: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        self.sealer.seal(plain, last, sealed)
    }

    /// These bytes reached the file.
    pub fn wrote(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// Bytes that reached the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The running hash of the bytes that reached the file, for a digest made later.
    pub fn hash(&self) -> Context {
        self.hash.clone()
    }

    /// What reached the file so far; `complete` when it is the end.
    pub fn digest(&self, complete: bool) -> RecordingDigest {
        RecordingDigest {
            name: self.name.to_string(),
            length: self.length,
            sha256: hex::encode(self.hash.clone().finish()),
            complete,
        }
    }
}
