//! The command line of `postern audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postern_proto::names::SessionId;

/// `postern audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Folder of an audit store; without it the agent is asked [environment: POSTERN_STORE]
    #[arg(long, global = true, value_name = "PATH")]
    pub store: Option<PathBuf>,
    /// age identity file that opens recordings [environment: POSTERN_AUDITOR_IDENTITY]
    #[arg(long, global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: AuditCommand,
}

/// Verbs of `postern audit`.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Sessions, newest first
    Ls(AuditLsArgs),
    /// The events of one session
    Show(AuditShowArgs),
    /// Play a recording
    Play(AuditPlayArgs),
    /// Prove that nothing was changed, removed, reordered or cut
    Verify(AuditVerifyArgs),
}

/// `postern audit ls`.
#[derive(Debug, Clone, Args)]
pub struct AuditLsArgs {
    /// At most this many sessions
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
    /// Every event instead of one row a session
    #[arg(long)]
    pub events: bool,
}

/// `postern audit show`.
#[derive(Debug, Clone, Args)]
pub struct AuditShowArgs {
    /// Session id
    pub session: SessionId,
}

/// `postern audit play`.
#[derive(Debug, Clone, Args)]
pub struct AuditPlayArgs {
    /// Session id
    pub session: SessionId,
    /// Only the recording with this number; without it all of the session, one after the other
    #[arg(long, value_name = "N")]
    pub recording: Option<u32>,
    /// Times the recorded speed; 0 prints all at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub speed: f64,
    /// Write the recording's plain form to stdout instead of playing it
    #[arg(long)]
    pub raw: bool,
}

/// `postern audit verify`.
#[derive(Debug, Clone, Args)]
pub struct AuditVerifyArgs {
    /// A checkpoint kept elsewhere, to exclude a rollback; may be given several times
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Vec<PathBuf>,
    /// Verifier key of the log, when the configuration has none
    #[arg(long, value_name = "KEY")]
    pub log_key: Option<String>,
}
