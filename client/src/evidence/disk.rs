//! The files of one log on disk: the steps of `postern_proto::audit::append`, executed. A name
//! that was answered for survives a power cut, its folder included.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postern_proto::audit::append::{LogFile, Step};
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::recover::LogFiles;

/// The folder that a log lies in.
#[derive(Debug, Clone)]
pub(super) struct LogFolder(pub(super) PathBuf);

impl LogFolder {
    pub(super) fn path(&self, file: LogFile) -> PathBuf {
        self.0.join(file.to_string())
    }

    /// Does one step.
    pub(super) fn run(&self, step: Step<'_>) -> io::Result<()> {
        match step {
            Step::Replace { file, bytes } => put(&self.path(file), bytes, true),
            Step::Create { path, bytes } => {
                let path = self.path(LogFile::Static(path));
                let folder = made_folder(&path)?;
                let mut file = private().create(true).truncate(true).open(&path)?;
                file.write_all(bytes)?;
                file.sync_data()?;
                sync_folder(folder)
            }
            Step::Grow {
                index,
                offset,
                bytes,
            } => {
                let path = self.path(LogFile::Growing { index });
                made_folder(&path)?;
                let file = private().create(true).truncate(false).open(&path)?;
                file.write_all_at(bytes, offset)?;
                file.sync_data()
            }
            Step::Publish {
                index,
                width,
                bytes,
            } => {
                let path = StorePath::Entries { index, width };
                put(&self.path(LogFile::Static(path)), bytes, false)
            }
        }
    }

    /// Removes all partial files of the folder that `path` lies in but those of these widths;
    /// all of them and the folder without any. Losing one is no loss: wider ones hold the same.
    pub(super) fn prune(&self, path: StorePath, widths: &[u64]) {
        let mut folder = self.path(LogFile::Static(path));
        folder.pop();
        if widths.is_empty() {
            drop(fs::remove_dir_all(&folder));
            return;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let width = name.to_str().and_then(|name| name.parse::<u64>().ok());
            if width.is_some_and(|width| !widths.contains(&width)) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

impl LogFiles for LogFolder {
    fn read(&self, file: LogFile, limit: u64) -> io::Result<Option<Vec<u8>>> {
        read(&self.path(file), limit)
    }

    fn has_entries(&self) -> bool {
        self.0.join("tile").exists()
    }
}

/// Makes `folder` and what is missing above it, for this user alone, each durable in its parent.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    parent.map_or(Ok(()), sync_folder)
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Options for a file that only this user reads.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// Puts `bytes` under `path`, whole for every reader; `durable`: before it returns, also after a
/// power cut.
pub(super) fn put(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let folder = made_folder(path)?;
    let draft = path.with_extension("draft");
    let mut file = private().create(true).truncate(true).open(&draft)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(&draft, path)?;
    sync_folder(folder)
}

/// Reads a whole file of at most `limit` bytes; `None` when there is none.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let path = path.display();
        return Err(io::Error::other(format!(
            "{path} is longer than {limit} bytes"
        )));
    }
    Ok(Some(bytes))
}

fn made_folder(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_folder(folder)?;
    Ok(folder)
}
