//! `postern completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArgs};
use crate::error::Error;
use crate::output::Printer;

/// Writes the completion script of a shell to stdout.
pub fn run(printer: Printer, args: CompletionsArgs) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "postern", &mut script);
    printer.raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
