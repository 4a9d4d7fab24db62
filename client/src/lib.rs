//! The `postern` command.
//!
//! ```text
//! main ─ cli ─ cmd/VERB ─ identity (login, certificate) ─ transport (TLS, pipe) ─ ssh | forward ─ evidence
//! ```

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

pub mod audit;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod context;
pub mod error;
pub mod evidence;
pub mod forward;
pub mod gateway;
pub mod http;
pub mod iam;
pub mod identity;
pub mod output;
pub mod pipe;
pub mod proxy;
pub mod route;
pub mod ssh;
pub mod ssm;
pub mod stdio;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod witness;

use tokio::runtime::{Builder, Runtime};

use crate::cli::{Cli, Command};
use crate::config::Environment;
use crate::context::Context;
use crate::error::Error;
use crate::output::Printer;

/// Runs one command line; the first item is the program's name. Never panics for bad input, never
/// ends the process itself.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            return error::usage(&error, cli::passes_status(&args), cli::wants_json(&args));
        }
    };
    let printer = Printer::new(&cli.global);
    output::start_log(cli.global.verbose);
    let passes_status = matches!(cli.command, Command::Connect(_) | Command::Proxy(_));
    execute(cli, printer).unwrap_or_else(|error| {
        printer.error(&error, passes_status);
        error.exit_code(passes_status)
    })
}

fn execute(cli: Cli, printer: Printer) -> Result<ExitCode, Error> {
    if let Command::Completions(args) = cli.command {
        return cmd::completions::run(printer, args);
    }
    let context = Context::resolve(printer, &cli.global, Environment::of_process())?;
    let runtime = runtime(&cli.command)
        .map_err(|error| Error::bug(format!("the runtime did not start: {error}")))?;
    let result = runtime.block_on(dispatch(&context, cli.command));
    // A thread that still waits for the terminal must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// One session needs no second thread: to hand its bytes from one to another costs more than their
/// decryption does. Other commands wait for many things at once.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    match command {
        Command::Connect(_) | Command::Proxy(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    }
    .enable_all()
    .build()
}

async fn dispatch(context: &Context, command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Login(args) => cmd::login::run(context, args).await,
        Command::Logout(args) => cmd::logout::run(context, args).await,
        Command::Status(args) => cmd::status::run(context, args).await,
        Command::Ls(args) => cmd::ls::run(context, args).await,
        Command::Connect(mut args) => {
            args.target = context.aliased(&args.target)?;
            cmd::connect::run(context, args).await
        }
        Command::Forward(mut args) => {
            args.target = context.aliased(&args.target)?;
            cmd::forward::run(context, args).await
        }
        Command::Proxy(args) => cmd::proxy::run(context, args).await,
        Command::SshConfig(args) => cmd::ssh_config::run(context, args).await,
        Command::Why(mut args) => {
            args.target = context.aliased(&args.target)?;
            cmd::why::run(context, args).await
        }
        Command::Audit(args) => cmd::audit::run(context, args).await,
        Command::Policy(args) => cmd::policy::run(context, args).await,
        Command::Completions(args) => cmd::completions::run(context.printer, args),
    }
}
