//! `postern logout`.

use std::process::ExitCode;

use crate::cli::LogoutArgs;
use crate::context::Context;
use crate::error::Error;

/// Runs it.
pub async fn run(_context: &Context, _args: LogoutArgs) -> Result<ExitCode, Error> {
    Err(Error::failed("this build has no such command"))
}
