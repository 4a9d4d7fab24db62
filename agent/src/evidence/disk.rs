//! Durable files: a name that was answered for survives a power cut, its folder included.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Makes `folder` and what is missing above it, for this user alone, each durable in its parent.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = parent(folder) {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    parent(folder).map_or(Ok(()), sync_folder)
}

/// Puts `bytes` under `path`, whole or not at all, durable before it returns.
pub(super) fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = parent(path).ok_or(io::ErrorKind::InvalidInput)?;
    make_folder(folder)?;
    let draft = path.with_extension("draft");
    let mut file = options().create(true).truncate(true).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&draft, path)?;
    sync_folder(folder)
}

/// Writes a file that nothing refers to yet: torn by a power cut it is written again. Cheaper
/// than [`put`], since content and name become durable together.
pub(super) fn put_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = parent(path).ok_or(io::ErrorKind::InvalidInput)?;
    make_folder(folder)?;
    let mut file = options().create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    sync_folder(folder)
}

/// Puts `bytes` under `path`, whole for every reader, durable some time later.
pub(super) fn put_soon(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let written = || -> io::Result<()> {
        let mut file = options().create(true).truncate(true).open(&draft)?;
        file.write_all(bytes)?;
        std::fs::rename(&draft, path)
    };
    written().inspect_err(|_| drop(std::fs::remove_file(&draft)))
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Options for a file that only this user reads.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// Reads a whole file of at most `limit` bytes; `None` when there is none.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!(
            "{} is longer than {limit} bytes",
            path.display()
        )));
    }
    Ok(Some(bytes))
}

/// Whether an error says that there is no space: the only one after which closing events may
/// still be written, into the space set aside for them.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
}
