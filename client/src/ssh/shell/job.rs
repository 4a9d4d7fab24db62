//! A job: what is to run, on which streams, how it is told more, and how it ended.

use std::path::PathBuf;

use russh::Pty;

use super::signal::signal_number;
use crate::ssh::terminal::{RawMode, Size};

/// What is to run on the target.
#[derive(Debug, Default)]
pub struct Job {
    /// The command line; a shell when absent.
    pub command: Option<String>,
    /// The terminal that it gets.
    pub terminal: Option<TerminalRequest>,
    /// Variables that are offered to the target; it may ignore them.
    pub environment: Vec<(String, String)>,
    /// The socket of the local SSH agent, when it is lent.
    pub lend_agent: Option<PathBuf>,
}

/// The terminal that a job gets.
#[derive(Debug, Clone)]
pub struct TerminalRequest {
    /// `TERM`.
    pub kind: String,
    /// Its size at the start.
    pub size: Size,
    /// Its modes, as SSH names them.
    pub modes: Vec<(Pty, u32)>,
}

/// Where the job's streams go.
pub struct Streams<'r, I, O, E> {
    /// Its standard input.
    pub input: I,
    /// Its standard output.
    pub output: O,
    /// Its standard error.
    pub error: E,
    /// Whether a person types: then `~.` ends the session.
    pub typed: bool,
    /// Their terminal's raw mode, to leave it while the client is suspended.
    pub raw: Option<&'r RawMode<'r>>,
}

/// What the local side tells a running job.
#[derive(Debug, Clone)]
pub enum Control {
    /// The terminal has a new size.
    Resize(Size),
    /// A signal to pass on, by its name without `SIG`.
    Signal(&'static str),
    /// The session is to end now.
    End,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// With this exit status.
    Exited(u32),
    /// By this signal.
    Killed {
        /// Its name without `SIG`.
        signal: String,
        /// What the target says about it.
        message: String,
    },
    /// The person, or a signal to us, ended the session.
    Left,
}

impl Status {
    /// The exit code of our process: the status, 128+n for a signal, 255 when we left.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(status) => u8::try_from(*status).unwrap_or(255),
            Self::Killed { signal, .. } => 128 + signal_number(signal),
            Self::Left => 255,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_becomes_128_and_its_number() {
        let killed = |signal: &str| Status::Killed {
            signal: signal.to_owned(),
            message: String::new(),
        };
        assert_eq!(killed("KILL").code(), 137);
        assert_eq!(killed("XCPU@openssh.com").code(), 152);
        assert_eq!(killed("ODD").code(), 255);
        assert_eq!(Status::Exited(7).code(), 7);
        assert_eq!(Status::Exited(1000).code(), 255);
    }
}
