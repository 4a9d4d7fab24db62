//! Reading along in SFTP (draft-ietf-secsh-filexfer-02, version 3, which OpenSSH speaks, and its
//! extensions): which files were read, written and changed, with the hash of their content. The
//! bytes themselves pass untouched.
//!
//! Memory is bounded whatever the two ends say: content is hashed as it streams by, names and
//! requests in flight are limited. What cannot be followed is an error, and the caller records
//! every byte from there on instead.

mod files;
mod messages;
mod packets;

use std::collections::HashMap;

use postern_proto::audit::event::FileOperation;
use postern_proto::wire::WireError;
use thiserror::Error;

use files::{Content, Handle};
use packets::{Packets, Piece};

/// Longest file name that is followed: twice Linux's `PATH_MAX`.
const MAX_PATH: usize = 8 * 1024;

/// Longest handle: the protocol's limit.
const MAX_HANDLE: usize = 256;

/// Requests without an answer, and files that are open. OpenSSH's client has 64 requests.
const MAX_REQUESTS: usize = 16 * 1024;
const MAX_HANDLES: usize = 4 * 1024;

/// Why a stream cannot be followed as SFTP.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum SftpError {
    /// A message that cannot be read.
    #[error("malformed SFTP message: {0}")]
    Wire(#[from] WireError),
    /// A message that is too long to be one.
    #[error("an SFTP message of {0} bytes")]
    TooLong(usize),
    /// More at once than is followed.
    #[error("more than {limit} {what} at once")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are followed.
        limit: usize,
    },
}

/// What is known of one SFTP channel.
#[derive(Default)]
pub(super) struct Sftp {
    from_client: Packets,
    from_server: Packets,
    requests: HashMap<u32, Request>,
    handles: HashMap<Vec<u8>, Handle>,
    /// Where the content that streams by belongs.
    writing: Option<Content>,
    reading: Option<Content>,
    done: Vec<FileOperation>,
}

/// A request whose answer decides.
enum Request {
    Open {
        path: String,
        writing: bool,
    },
    List {
        path: String,
    },
    Read {
        handle: Vec<u8>,
        offset: u64,
    },
    Write {
        handle: Vec<u8>,
    },
    Close {
        handle: Vec<u8>,
    },
    /// Done at once, when the answer is good.
    Change(FileOperation),
}

impl Sftp {
    /// Follows bytes from the client.
    pub(super) fn follow_up(&mut self, data: &[u8]) -> Result<(), SftpError> {
        let mut packets = std::mem::take(&mut self.from_client);
        let followed = packets.feed(data, |piece| match piece {
            Piece::Message(message) => self.on_request(message),
            Piece::Content(content) => {
                self.on_content(true, content);
                Ok(())
            }
        });
        self.from_client = packets;
        followed
    }

    /// Follows bytes from the server.
    pub(super) fn follow_down(&mut self, data: &[u8]) -> Result<(), SftpError> {
        let mut packets = std::mem::take(&mut self.from_server);
        let followed = packets.feed(data, |piece| match piece {
            Piece::Message(message) => self.on_answer(message),
            Piece::Content(content) => {
                self.on_content(false, content);
                Ok(())
            }
        });
        self.from_server = packets;
        followed
    }

    /// What was done since the last call.
    pub(super) fn take(&mut self) -> Vec<FileOperation> {
        std::mem::take(&mut self.done)
    }

    /// The channel is over: what was open never was closed.
    pub(super) fn finish(mut self) -> Vec<FileOperation> {
        let handles = std::mem::take(&mut self.handles);
        for (_, mut handle) in handles {
            handle.read.hash = None;
            handle.written.hash = None;
            handle
                .error
                .get_or_insert_with(|| "the channel ended before the file was closed".to_owned());
            self.close(handle);
        }
        self.done
    }
}

#[cfg(test)]
mod tests;
