//! Reading along in SFTP (draft-ietf-secsh-filexfer-02, version 3, which OpenSSH speaks, and its
//! extensions): which files were read, written and changed, with the hash of their content. The
//! bytes themselves pass untouched.
//!
//! Memory is bounded whatever the two ends say: content is hashed as it streams by, names and
//! requests in flight are limited. What cannot be followed is an error, and the caller records
//! every byte from there on instead.

mod packets;

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use postern_proto::audit::event::FileOperation;
use postern_proto::wire::{Reader, WireError};
use thiserror::Error;

use packets::{Packets, Piece};

/// Message types.
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const FSETSTAT: u8 = 10;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const RMDIR: u8 = 15;
    pub(super) const RENAME: u8 = 18;
    pub(super) const SYMLINK: u8 = 20;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const EXTENDED: u8 = 200;
}

/// `SSH_FXF_WRITE`: the file was opened to be written.
const OPEN_FOR_WRITING: u32 = 2;

/// `SSH_FX_OK` and `SSH_FX_EOF`.
const STATUS_OK: u32 = 0;
const STATUS_EOF: u32 = 1;

/// Longest file name that is followed: twice Linux's `PATH_MAX`.
const MAX_PATH: usize = 8 * 1024;

/// Longest handle: the protocol's limit.
const MAX_HANDLE: usize = 256;

/// Requests without an answer, and files that are open. OpenSSH's client has 64 requests.
const MAX_REQUESTS: usize = 16 * 1024;
const MAX_HANDLES: usize = 4 * 1024;

/// Extensions that neither change nor name a file.
const HARMLESS: [&[u8]; 8] = [
    b"statvfs@openssh.com",
    b"fstatvfs@openssh.com",
    b"fsync@openssh.com",
    b"limits@openssh.com",
    b"expand-path@openssh.com",
    b"home-directory",
    b"users-groups-by-id@openssh.com",
    b"vendor-id",
];

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

/// Content of one message.
struct Content {
    handle: Vec<u8>,
    /// Whether it continues what was hashed.
    hashed: bool,
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

/// A file or directory that is open.
struct Handle {
    path: String,
    directory: bool,
    writing: bool,
    read: Moved,
    written: Moved,
    error: Option<String>,
}

/// Bytes that moved in one direction.
struct Moved {
    bytes: u64,
    /// The hash while every byte from the start came once and in order.
    hash: Option<Context>,
}

impl Moved {
    fn new() -> Self {
        Self {
            bytes: 0,
            hash: Some(Context::new(&SHA256)),
        }
    }

    fn digest(self) -> Option<String> {
        self.hash.map(|hash| hex::encode(hash.finish()))
    }
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

    fn on_request(&mut self, message: &[u8]) -> Result<(), SftpError> {
        let mut reader = Reader::new(message);
        let message_kind = reader.u8("type")?;
        if message_kind == kind::INIT {
            return Ok(());
        }
        let id = reader.u32("id")?;
        let request = match message_kind {
            kind::OPEN => {
                let path = path(&mut reader)?;
                let writing = reader.u32("flags")? & OPEN_FOR_WRITING != 0;
                Request::Open { path, writing }
            }
            kind::OPENDIR => Request::List {
                path: path(&mut reader)?,
            },
            kind::CLOSE => Request::Close {
                handle: handle(&mut reader)?,
            },
            kind::READ => Request::Read {
                handle: handle(&mut reader)?,
                offset: reader.u64("offset")?,
            },
            kind::WRITE => {
                let handle = handle(&mut reader)?;
                let offset = reader.u64("offset")?;
                self.writing = Some(self.content(handle.clone(), offset, true));
                Request::Write { handle }
            }
            kind::SETSTAT => change("setstat", path(&mut reader)?, None),
            kind::FSETSTAT => {
                let name = handle(&mut reader)?;
                let path = self.handles.get(&name).map(|handle| handle.path.clone());
                change("setstat", path.unwrap_or_default(), None)
            }
            kind::REMOVE => change("remove", path(&mut reader)?, None),
            kind::MKDIR => change("mkdir", path(&mut reader)?, None),
            kind::RMDIR => change("rmdir", path(&mut reader)?, None),
            kind::RENAME => {
                let from = path(&mut reader)?;
                change("rename", from, Some(path(&mut reader)?))
            }
            kind::SYMLINK => {
                // OpenSSH has the two names in this order, against the draft.
                let to = path(&mut reader)?;
                change("symlink", path(&mut reader)?, Some(to))
            }
            kind::EXTENDED => match self.extension(&mut reader)? {
                Some(request) => request,
                None => return Ok(()),
            },
            // Looking at attributes, reading links and directories.
            _ => return Ok(()),
        };
        if self.requests.len() >= MAX_REQUESTS {
            return Err(SftpError::TooMany {
                what: "requests",
                limit: MAX_REQUESTS,
            });
        }
        self.requests.insert(id, request);
        Ok(())
    }

    fn extension(&mut self, reader: &mut Reader<'_>) -> Result<Option<Request>, SftpError> {
        let name = reader.vec32("extension", MAX_HANDLE)?;
        Ok(match name {
            b"posix-rename@openssh.com" => {
                let from = path(reader)?;
                Some(change("rename", from, Some(path(reader)?)))
            }
            b"hardlink@openssh.com" => {
                let to = path(reader)?;
                Some(change("link", path(reader)?, Some(to)))
            }
            b"lsetstat@openssh.com" => Some(change("setstat", path(reader)?, None)),
            b"copy-data" => {
                // The content does not pass here.
                handle(reader)?;
                reader.u64("offset")?;
                reader.u64("length")?;
                let name = handle(reader)?;
                if let Some(handle) = self.handles.get_mut(&name) {
                    handle.written.hash = None;
                }
                None
            }
            harmless if HARMLESS.contains(&harmless) => None,
            unknown => Some(change(
                "extension",
                String::from_utf8_lossy(unknown).into_owned(),
                None,
            )),
        })
    }

    fn on_answer(&mut self, message: &[u8]) -> Result<(), SftpError> {
        let mut reader = Reader::new(message);
        let message_kind = reader.u8("type")?;
        if message_kind == kind::VERSION {
            return Ok(());
        }
        let id = reader.u32("id")?;
        // Content that nobody asked for belongs nowhere.
        self.reading = None;
        let Some(request) = self.requests.remove(&id) else {
            return Ok(());
        };
        match message_kind {
            kind::HANDLE => {
                let name = handle(&mut reader)?;
                self.opened(name, request)
            }
            kind::DATA => {
                if let Request::Read { handle, offset } = request {
                    self.reading = Some(self.content(handle, offset, false));
                }
                Ok(())
            }
            kind::STATUS => {
                let code = reader.u32("code")?;
                let said = reader.vec32("message", MAX_PATH).unwrap_or_default();
                let said = String::from_utf8_lossy(said);
                let error = (code != STATUS_OK).then(|| match said.trim() {
                    "" => format!("SFTP status {code}"),
                    text => text.chars().filter(|c| !c.is_control()).take(200).collect(),
                });
                self.answered(request, code, error);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn opened(&mut self, name: Vec<u8>, request: Request) -> Result<(), SftpError> {
        let (path, directory, writing) = match request {
            Request::Open { path, writing } => (path, false, writing),
            Request::List { path } => (path, true, false),
            _ => return Ok(()),
        };
        if self.handles.len() >= MAX_HANDLES {
            return Err(SftpError::TooMany {
                what: "open files",
                limit: MAX_HANDLES,
            });
        }
        let handle = Handle {
            path,
            directory,
            writing,
            read: Moved::new(),
            written: Moved::new(),
            error: None,
        };
        // A server that gives a handle twice: what the first one moved is kept as it is.
        if let Some(old) = self.handles.insert(name, handle) {
            self.close(old);
        }
        Ok(())
    }

    fn answered(&mut self, request: Request, code: u32, error: Option<String>) {
        match request {
            Request::Open { path, writing } => {
                let name = if writing { "write" } else { "read" };
                self.done.push(operation(name, path, 0, None, error));
            }
            Request::List { path } => self.done.push(operation("list", path, 0, None, error)),
            // The end of a file is told as a status.
            Request::Read { .. } if code == STATUS_EOF => {}
            Request::Read { handle, .. } => {
                if let Some(handle) = self.handles.get_mut(&handle) {
                    handle.read.hash = None;
                    handle.error = error.or_else(|| handle.error.take());
                }
            }
            Request::Write { handle } => {
                if let (Some(handle), Some(error)) = (self.handles.get_mut(&handle), error) {
                    handle.written.hash = None;
                    handle.error = Some(error);
                }
            }
            Request::Close { handle } => {
                if let Some(mut handle) = self.handles.remove(&handle) {
                    handle.error = error.or_else(|| handle.error.take());
                    self.close(handle);
                }
            }
            Request::Change(mut change) => {
                change.error = error;
                self.done.push(change);
            }
        }
    }

    /// Content of a message begins.
    fn content(&mut self, name: Vec<u8>, offset: u64, writing: bool) -> Content {
        let hashed = self.handles.get_mut(&name).is_some_and(|handle| {
            let moved = if writing {
                &mut handle.written
            } else {
                &mut handle.read
            };
            if moved.bytes != offset {
                moved.hash = None;
            }
            moved.hash.is_some()
        });
        Content {
            handle: name,
            hashed,
        }
    }

    fn on_content(&mut self, writing: bool, data: &[u8]) {
        let content = if writing {
            &self.writing
        } else {
            &self.reading
        };
        let Some(content) = content else {
            return;
        };
        if let Some(handle) = self.handles.get_mut(&content.handle) {
            let moved = if writing {
                &mut handle.written
            } else {
                &mut handle.read
            };
            moved.bytes += data.len() as u64;
            if let Some(hash) = moved.hash.as_mut().filter(|_| content.hashed) {
                hash.update(data);
            }
        }
    }

    /// Tells what was done with a handle.
    fn close(&mut self, handle: Handle) {
        let Handle {
            path,
            directory,
            writing,
            read,
            written,
            error,
        } = handle;
        if directory {
            self.done.push(operation("list", path, 0, None, error));
            return;
        }
        if writing || written.bytes > 0 {
            let bytes = written.bytes;
            let digest = written.digest();
            self.done.push(operation(
                "write",
                path.clone(),
                bytes,
                digest,
                error.clone(),
            ));
        }
        if !writing || read.bytes > 0 {
            let bytes = read.bytes;
            self.done
                .push(operation("read", path, bytes, read.digest(), error));
        }
    }
}

fn operation(
    name: &str,
    path: String,
    size: u64,
    sha256: Option<String>,
    error: Option<String>,
) -> FileOperation {
    FileOperation {
        operation: name.to_owned(),
        path,
        to: None,
        size,
        sha256,
        error,
    }
}

fn change(name: &str, path: String, to: Option<String>) -> Request {
    Request::Change(FileOperation {
        to,
        ..operation(name, path, 0, None, None)
    })
}

fn path(reader: &mut Reader<'_>) -> Result<String, SftpError> {
    let bytes = reader.vec32("path", MAX_PATH)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn handle(reader: &mut Reader<'_>) -> Result<Vec<u8>, SftpError> {
    Ok(reader.vec32("handle", MAX_HANDLE)?.to_vec())
}

#[cfg(test)]
mod tests;
