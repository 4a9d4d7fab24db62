//! The private hosts. Genuine servers where they are installed, else small ones of our own, so
//! that the lab needs nothing but Rust.

pub mod command;
pub mod database;
pub mod pushed;
pub mod rdp;
pub mod shell;
pub mod sshd;

use std::path::PathBuf;

/// The first of `names` that is an executable file in `PATH` or one of `folders`.
pub(crate) fn program(names: &[&str], folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(folders.iter().map(PathBuf::from))
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|file| file.is_file())
}

/// What the lab knows of a private host that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// The genuine program.
    Genuine,
    /// Our stand-in.
    Own,
}
