//! Reading the encrypted file: streams, and tells interrupted from altered.

use std::io::{self, Read};

use age::x25519::Identity;
use aws_lc_rs::aead::{Aad, LessSafeKey};
use thiserror::Error;

use super::name::RecordingName;
use super::seal::{
    DataKey, FINAL, MAGIC, MORE, NAME_LIMIT, RECORD_LIMIT, TAG, WRAPPED_LIMIT, binding,
    header_hash, nonce,
};
use crate::wire::Writer;

/// Why a recording could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It does not begin like a recording, or ends within its header.
    #[error("not a recording, or cut within its header")]
    Header,
    /// None of the identities is one of its recipients.
    #[error("no identity at hand opens it")]
    Identity,
    /// The wrapped key is damaged.
    #[error("its wrapped key is damaged")]
    Key,
}

/// Why a record could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A record is not what was written in that place of this recording.
    #[error("record {record} at byte {offset} was altered")]
    Altered {
        /// The record, from 0.
        record: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// There are bytes after the final record.
    #[error("bytes were added after the end, at byte {offset}")]
    Added {
        /// Where they begin.
        offset: u64,
    },
}

/// How a recording ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its final record.
    Complete,
    /// Without one: the agent died, or the file was cut. The log's length tells which.
    Interrupted {
        /// Bytes of a last record that is not whole.
        torn: u64,
    },
}

/// A recording that is being read.
pub struct Opened<R> {
    input: R,
    name: RecordingName,
    header: [u8; 32],
    cipher: LessSafeKey,
    number: u64,
    offset: u64,
    ending: Option<Ending>,
}

/// Reads the name in a recording's header; needs no identity.
pub fn header_name(input: &mut impl Read) -> Result<RecordingName, OpenError> {
    Ok(read_header(input)?.name)
}

impl<R: Read> Opened<R> {
    /// Reads the header and unwraps the data key with the first identity that fits.
    pub fn new(mut input: R, identities: &[Identity]) -> Result<Self, OpenError> {
        let header = read_header(&mut input)?;
        let key = unwrap(&header.wrapped, identities)?;
        Ok(Self {
            input,
            name: header.name,
            header: header.hash,
            cipher: key.cipher().map_err(|_| OpenError::Key)?,
            number: 0,
            offset: header.length,
            ending: None,
        })
    }

    /// The name in the header. That it is the file's name is for the caller to check.
    pub fn name(&self) -> RecordingName {
        self.name
    }

    /// The next record's content; `None` at the end, whose kind [`Self::ending`] tells.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        let mut head = [0; 5];
        let got = read_up_to(&mut self.input, &mut head)?;
        if got < head.len() {
            self.ending = Some(Ending::Interrupted { torn: got as u64 });
            return Ok(None);
        }
        let [flag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if !matches!(flag, MORE | FINAL) || !(TAG..=RECORD_LIMIT + TAG).contains(&length) {
            return Err(self.altered());
        }
        let mut body = vec![0; length];
        let got = read_up_to(&mut self.input, &mut body)?;
        if got < length {
            let torn = (head.len() + got) as u64;
            self.ending = Some(Ending::Interrupted { torn });
            return Ok(None);
        }
        let binding = binding(&self.header, self.number, flag);
        let plain =
            match self
                .cipher
                .open_in_place(nonce(self.number), Aad::from(binding), &mut body)
            {
                Ok(plain) => plain.len(),
                Err(_) => return Err(self.altered()),
            };
        body.truncate(plain);
        self.number += 1;
        self.offset += (head.len() + length) as u64;
        if flag == FINAL {
            self.ending = Some(Ending::Complete);
            if read_up_to(&mut self.input, &mut [0])? != 0 {
                return Err(ReadError::Added {
                    offset: self.offset,
                });
            }
        }
        Ok(Some(body))
    }

    /// How it ended, once [`Self::next_record`] said so.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    fn altered(&self) -> ReadError {
        ReadError::Altered {
            record: self.number,
            offset: self.offset,
        }
    }
}

struct Header {
    name: RecordingName,
    wrapped: Vec<u8>,
    hash: [u8; 32],
    length: u64,
}

fn read_header(input: &mut impl Read) -> Result<Header, OpenError> {
    let mut magic = [0; 8];
    if read_up_to(input, &mut magic)? < magic.len() || &magic != MAGIC {
        return Err(OpenError::Header);
    }
    let name = read_vec(input, NAME_LIMIT)?;
    let wrapped = read_vec(input, WRAPPED_LIMIT)?;
    let bytes = Writer::new()
        .raw(MAGIC)
        .vec32(&name)
        .vec32(&wrapped)
        .finish();
    let name = std::str::from_utf8(&name).map_err(|_| OpenError::Header)?;
    Ok(Header {
        name: name.parse().map_err(|_| OpenError::Header)?,
        wrapped,
        hash: header_hash(&bytes),
        length: bytes.len() as u64,
    })
}

fn read_vec(input: &mut impl Read, limit: usize) -> Result<Vec<u8>, OpenError> {
    let mut length = [0; 4];
    if read_up_to(input, &mut length)? < length.len() {
        return Err(OpenError::Header);
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(OpenError::Header);
    }
    let mut bytes = vec![0; length];
    if read_up_to(input, &mut bytes)? < length {
        return Err(OpenError::Header);
    }
    Ok(bytes)
}

fn unwrap(wrapped: &[u8], identities: &[Identity]) -> Result<DataKey, OpenError> {
    let payload = crate::audit::sealed::open(wrapped, identities).map_err(|error| match error {
        crate::audit::sealed::UnsealError::Identity => OpenError::Identity,
        crate::audit::sealed::UnsealError::Damaged => OpenError::Key,
    })?;
    DataKey::from_payload(&payload).ok_or(OpenError::Key)
}

/// Fills `buffer` as far as the input reaches.
fn read_up_to(input: &mut impl Read, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut total = 0;
    while !buffer.is_empty() {
        match input.read(buffer) {
            Ok(0) => break,
            Ok(read) => {
                total += read;
                buffer = std::mem::take(&mut buffer)
                    .get_mut(read..)
                    .unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}
