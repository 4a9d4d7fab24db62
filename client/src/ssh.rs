//! Our own SSH client, over a pipe or an SSM session: no `ssh` is needed on the machine.
//!
//! ```text
//! terminal ─ shell ─┐                                       ┌ pipe ─ agent
//! -A        ─ agent ─┼─ russh ─ in-memory stream ─ relay ─┤
//! -L -R -D  ─ forward (a connection of its own)             └ SSM session ─ target
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`link`] | one SSH connection over one pipe |
//! | `client` | russh's client: settings, handshake, what it asks of us |
//! | `host_key` | the check of the agent's host certificate |
//! | [`known_hosts`] | the check of any other host's key |
//! | [`login`] | keys that are shown to a host |
//! | [`shell`] | the session channel: requests, streams, signals, status |
//! | [`terminal`] | raw mode and its restoring, size, modes |
//! | [`escape`] | `~.` and its like |
//! | `status` | the line that tells of a lost network |
//! | `typist` | what a person types: escapes, impatience |
//! | [`agent`] | lending the local SSH agent |
//! | [`forward`] | `-L`, `-R`, `-D` |
//!
//! russh is named in this module alone. What it cannot do is met here: the stream between it and
//! the pipe holds more than the agent's windows, so that it never waits for its own writes and
//! always reads; output is taken from it by a task that waits for nothing else.

pub mod agent;
mod client;
pub mod escape;
pub mod forward;
mod host_key;
pub mod known_hosts;
pub mod link;
pub mod login;
pub mod shell;
pub(crate) mod status;
pub mod terminal;
#[cfg(test)]
mod tests;
pub(crate) mod typist;
mod unfinished;

use thiserror::Error;

use crate::error::Error as UserError;
use crate::gateway::GatewayError;
use crate::pipe::PipeError;

/// Why an SSH session did not come about, or broke.
#[derive(Debug, Error)]
pub enum SshError {
    /// The agent does not serve.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The connection broke.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The agent ended the session for a reason of its own.
    #[error("the session was ended: {0}")]
    Ended(String),
    /// The agent's SSH host key is not vouched for by the CA in `Granted`.
    #[error("the agent's SSH host key is not acceptable: {0}")]
    HostKey(String),
    /// The session that carries SSH does not come about, or broke.
    #[error(transparent)]
    Carrier(UserError),
    /// The host's key is not one that is known of it.
    #[error("{0}")]
    UnknownHost(String),
    /// The host lets nobody in with what was offered.
    #[error("the target does not let `{user}` in: {reason}")]
    Login {
        /// The login user.
        user: String,
        /// What was tried, and what it takes.
        reason: String,
    },
    /// A channel or request was refused.
    #[error("{what} was refused: {reason}")]
    Refused {
        /// The thing asked for.
        what: String,
        /// Why, as far as SSH tells.
        reason: String,
    },
    /// SSH itself failed.
    #[error("SSH failed: {0}")]
    Protocol(String),
    /// The local terminal or a local stream failed.
    #[error("{what}: {source}")]
    Local {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A forward that cannot be understood or served.
    #[error("forward `{spec}`: {reason}")]
    Forward {
        /// As typed.
        spec: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<SshError> for UserError {
    fn from(error: SshError) -> Self {
        let message = error.to_string();
        match error {
            SshError::Gateway(error) => error.into(),
            SshError::Pipe(error) => error.into(),
            SshError::Carrier(error) => error,
            SshError::UnknownHost(_) => Self::denied(message).hint(
                "compare the key with what the target's owner says, then put it into ~/.ssh/known_hosts",
            ),
            SshError::Login { .. } => Self::denied(message)
                .hint("load the right key with ssh-add, or name another user with --user"),
            SshError::Ended(_) => {
                Self::denied(message).hint("`postern why TARGET` shows what policy says now")
            }
            SshError::HostKey(_) => Self::denied(message)
                .hint("compare the versions of `postern` and the agent, and tell its operator"),
            SshError::Refused { .. } => {
                Self::denied(message).hint("`postern why TARGET` shows what policy allows")
            }
            SshError::Protocol(_) => Self::failed(message)
                .hint("try again with -v; if it stays, tell the agent's operator"),
            SshError::Local { .. } => {
                Self::failed(message).hint("see what closed it on this computer")
            }
            SshError::Forward { .. } => Self::usage(message)
                .hint("-L and -R take [BIND:]PORT:HOST:PORT, -D takes [BIND:]PORT"),
        }
    }
}
