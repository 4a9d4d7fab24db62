//! What people read when something is wrong: every message, with what to do about it.
//!
//! One test per kind of error lists all of them, so that a change of words is seen. Those of
//! certificates, of enrolment and of the attestation role are listed beside their modules.

mod evidence;
mod files;
mod network;
mod sessions;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

/// The messages of `errors`, each with its hint below.
fn told<E: Display, H: Display>(errors: &[E], hint: impl Fn(&E) -> Option<H>) -> String {
    let lines = errors.iter().map(|error| match hint(error) {
        Some(hint) => format!("{error}\n  hint: {hint}"),
        None => error.to_string(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The same of errors whose hints stand in their text, or that are part of another message.
fn said<E: Display>(errors: &[E]) -> String {
    told(errors, |_| None::<&str>)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/etc/postern").join(name)
}

/// As the system says it, without its number.
fn denied() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "Permission denied")
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "No such file or directory")
}
