//! `postern login`.

use std::process::ExitCode;

use crate::cli::LoginArgs;
use crate::context::Context;
use crate::error::Error;

/// Runs it.
pub async fn run(_context: &Context, _args: LoginArgs) -> Result<ExitCode, Error> {
    Err(Error::failed("this build has no such command"))
}
