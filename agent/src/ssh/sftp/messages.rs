//! Requests and their answers.

use postern_proto::wire::Reader;

use super::files::{Handle, Moved, operation};
use super::{
    FileOperation, MAX_HANDLE, MAX_HANDLES, MAX_PATH, MAX_REQUESTS, Request, Sftp, SftpError,
};

/// Message types.
pub(super) mod kind {
    pub(in crate::ssh::sftp) const INIT: u8 = 1;
    pub(in crate::ssh::sftp) const VERSION: u8 = 2;
    pub(in crate::ssh::sftp) const OPEN: u8 = 3;
    pub(in crate::ssh::sftp) const CLOSE: u8 = 4;
    pub(in crate::ssh::sftp) const READ: u8 = 5;
    pub(in crate::ssh::sftp) const WRITE: u8 = 6;
    pub(in crate::ssh::sftp) const SETSTAT: u8 = 9;
    pub(in crate::ssh::sftp) const FSETSTAT: u8 = 10;
    pub(in crate::ssh::sftp) const OPENDIR: u8 = 11;
    pub(in crate::ssh::sftp) const REMOVE: u8 = 13;
    pub(in crate::ssh::sftp) const MKDIR: u8 = 14;
    pub(in crate::ssh::sftp) const RMDIR: u8 = 15;
    pub(in crate::ssh::sftp) const RENAME: u8 = 18;
    pub(in crate::ssh::sftp) const SYMLINK: u8 = 20;
    pub(in crate::ssh::sftp) const STATUS: u8 = 101;
    pub(in crate::ssh::sftp) const HANDLE: u8 = 102;
    pub(in crate::ssh::sftp) const DATA: u8 = 103;
    pub(in crate::ssh::sftp) const EXTENDED: u8 = 200;
}

/// `SSH_FXF_WRITE`: the file was opened to be written.
const OPEN_FOR_WRITING: u32 = 2;

/// `SSH_FX_OK` and `SSH_FX_EOF`.
const STATUS_OK: u32 = 0;
const STATUS_EOF: u32 = 1;

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

impl Sftp {
    pub(super) fn on_request(&mut self, message: &[u8]) -> Result<(), SftpError> {
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

    pub(super) fn on_answer(&mut self, message: &[u8]) -> Result<(), SftpError> {
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
