//! Evidence of the SSM route, written by this client: a claim, whose independent fact is
//! CloudTrail (DESIGN.md sections 7 and 8).
//!
//! ```text
//! open ─▶ log entry durable, recording begun ─▶ Record ─▶ write() ─▶ relay
//!                                                  └─ claims ─▶ the agent's store, where one is
//! ```
//!
//! A session is opened at AWS, then here, then used: without a record there is no session. What
//! passes is handed to the record first and relayed once that returned.

use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{LoginUser, SessionId, TargetId};
use thiserror::Error;

use crate::context::Context;
use crate::error::Error as UserError;
use crate::identity::sts::Caller;

/// Why evidence could not be written: the session ends, or does not begin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// The store cannot be opened.
    #[error("the evidence store {folder} cannot be used: {cause}")]
    Unusable {
        /// The store's folder.
        folder: String,
        /// Why.
        cause: String,
    },
    /// It could not be written. Final for the session.
    #[error("the evidence could not be written: {0}")]
    Failed(std::sync::Arc<str>),
}

impl EvidenceError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unusable { .. } | Self::Failed(_) => {
                "check owner, rights and free space of the folder (POSTERN_EVIDENCE names another)"
            }
        }
    }
}

impl From<EvidenceError> for UserError {
    fn from(error: EvidenceError) -> Self {
        Self::failed(error.to_string()).hint(error.hint())
    }
}

/// What is claimed of a session when it begins.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The managed node's id.
    pub target: TargetId,
    /// Its name for people.
    pub name: String,
    /// Who AWS says that calls: [`crate::identity::Kept::caller`].
    pub caller: Caller,
    /// When MFA was given, in seconds since 1970: [`crate::identity::Kept::mfa_at`].
    pub mfa_at: i64,
    /// The first SSM session that carries it; further ones come with [`Record::ssm_session`].
    pub ssm: SsmSession,
    /// What it carries.
    pub carries: Carries,
}

/// An SSM session, as AWS named it: what CloudTrail knows it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsmSession {
    /// `SessionId` of StartSession's answer.
    pub id: String,
    /// The session document.
    pub document: String,
    /// The region.
    pub region: String,
    /// `Reason` of StartSession, where one was given.
    pub reason: Option<String>,
    /// AWS's id of the StartSession request.
    pub request_id: Option<String>,
}

/// What a session carries; decides how it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carries {
    /// A shell that the SSM Agent runs, on a terminal.
    Shell {
        /// Columns at the start.
        columns: u32,
        /// Rows at the start.
        rows: u32,
        /// `TERM`.
        term: String,
    },
    /// A command that the SSM Agent runs.
    Command {
        /// Its line.
        line: String,
        /// Columns and rows, when it runs on a terminal.
        terminal: Option<(u32, u32)>,
    },
    /// Our own SSH client over an SSM port session: recorded as what the client shows.
    Ssh {
        /// The login user.
        user: LoginUser,
        /// The command's line; a shell without one.
        line: Option<String>,
        /// Columns, rows and `TERM`, when it has a terminal.
        terminal: Option<(u32, u32, String)>,
    },
    /// TCP to a port: byte counts alone are recorded.
    Tunnel {
        /// The host behind the target; the target itself when absent.
        host: Option<String>,
        /// The port.
        port: u16,
    },
}

/// The client's evidence.
pub struct Evidence;

impl Evidence {
    /// Claims the session, durably, and begins its recording. Call it after StartSession and
    /// before anything is sent or shown; on an error end the SSM session and tell the person.
    pub async fn open(context: &Context, facts: Facts) -> Result<Record, EvidenceError> {
        let _ = facts;
        Err(EvidenceError::Unusable {
            folder: context.state.display().to_string(),
            cause: "there is none yet".to_owned(),
        })
    }
}

/// The record of an open session. Clones share it. Every method returns once what it was given is
/// written: relay after that. An error is final, and ends the session.
#[derive(Debug, Clone)]
pub struct Record {
    session: SessionId,
}

impl Record {
    /// The session's id, for `-v` and messages.
    pub fn id(&self) -> SessionId {
        self.session
    }

    /// From the target, on its way to stdout.
    pub async fn output(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        let _ = bytes;
        Ok(())
    }

    /// From the target, on its way to stderr.
    pub async fn stderr(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        let _ = bytes;
        Ok(())
    }

    /// From the person, on its way to the target. Kept for commands without a terminal; a
    /// terminal's input holds passwords, and stands in its output as far as it was shown.
    pub async fn input(&self, bytes: &[u8]) -> Result<(), EvidenceError> {
        let _ = bytes;
        Ok(())
    }

    /// The terminal's new size.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), EvidenceError> {
        let _ = (columns, rows);
        Ok(())
    }

    /// A connection was accepted: call it before it is carried. `from` says where it came from.
    pub async fn flow_opened(&self, from: &str) -> Result<Flow, EvidenceError> {
        let _ = from;
        Ok(Flow {
            record: self.clone(),
        })
    }

    /// A further SSM session carries this one: durable in the log before it returns.
    pub async fn ssm_session(&self, ssm: SsmSession) -> Result<(), EvidenceError> {
        let _ = ssm;
        Ok(())
    }

    /// Something that a reader must know: a gap, an outage, a resume.
    pub async fn note(&self, text: &str) -> Result<(), EvidenceError> {
        let _ = text;
        Ok(())
    }

    /// Resolves when the evidence failed, also while nothing passes: then the session ends.
    pub async fn failed(&self) -> EvidenceError {
        std::future::pending().await
    }

    /// Ends it: recording and log, durable before it returns. Later calls fail, on every clone.
    /// A record that is dropped without it ends as `Internal`.
    pub async fn close(&self, end: End) -> Result<(), EvidenceError> {
        let _ = end;
        Ok(())
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why: `Done`, `Client` (gave up), `Target` (went away), `Evidence`, `Protocol`, …
    pub reason: CloseReason,
    /// More about it.
    pub message: Option<String>,
    /// Exit status, where the protocol carried one.
    pub exit_status: Option<u32>,
}

/// One connection of a tunnel. Dropped without [`Flow::close`] it counts as broken.
#[derive(Debug)]
pub struct Flow {
    record: Record,
}

impl Flow {
    /// Counts bytes that are about to be relayed: up to the target, down from it. Cheap; written
    /// within a second. Errors once the evidence failed.
    pub fn moved(&self, up: u64, down: u64) -> Result<(), EvidenceError> {
        let _ = (&self.record, up, down);
        Ok(())
    }

    /// The connection ended; `why` when it did not end in order.
    pub async fn close(self, why: Option<&str>) -> Result<(), EvidenceError> {
        let _ = why;
        Ok(())
    }
}
