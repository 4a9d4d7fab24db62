//! Replaced by the command when its part is merged.

use std::process::ExitCode;

use crate::cli::AuditArgs;
use crate::context::Context;
use crate::error::Error;

/// Says that this build lacks the command.
pub async fn run(_context: &Context, _args: AuditArgs) -> Result<ExitCode, Error> {
    Err(Error::failed("this build has no such command"))
}
