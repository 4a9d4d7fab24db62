//! Files that are open, and the content that streams by.

use aws_lc_rs::digest::{Context, SHA256};

use super::{FileOperation, Sftp};

/// A file or directory that is open.
pub(super) struct Handle {
    pub(super) path: String,
    pub(super) directory: bool,
    pub(super) writing: bool,
    pub(super) read: Moved,
    pub(super) written: Moved,
    pub(super) error: Option<String>,
}

/// Bytes that moved in one direction.
pub(super) struct Moved {
    bytes: u64,
    /// The hash while every byte from the start came once and in order.
    pub(super) hash: Option<Context>,
}

impl Moved {
    pub(super) fn new() -> Self {
        Self {
            bytes: 0,
            hash: Some(Context::new(&SHA256)),
        }
    }

    fn digest(self) -> Option<String> {
        self.hash.map(|hash| hex::encode(hash.finish()))
    }
}

/// Content of one message.
pub(super) struct Content {
    handle: Vec<u8>,
    /// Whether it continues what was hashed.
    hashed: bool,
}

impl Sftp {
    /// Content of a message begins.
    pub(super) fn content(&mut self, name: Vec<u8>, offset: u64, writing: bool) -> Content {
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

    pub(super) fn on_content(&mut self, writing: bool, data: &[u8]) {
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
    pub(super) fn close(&mut self, handle: Handle) {
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

pub(super) fn operation(
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
