//! The `postern-agent` command: `init`, `check`, `run`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::config::{Config, DEFAULT_PATH};
use crate::keys::Keys;

mod check;
mod finding;
mod init;
mod template;

pub(crate) use finding::{Finding, Level};
pub use init::InitArguments;

/// The managed bastion of Postern.
#[derive(Debug, Parser)]
#[command(name = "postern-agent", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make keys, certificates, agent.toml and an example policy
    Init(Box<InitArguments>),
    /// Check keys, policy, inventory, evidence, clock and the attestation role, and say the fix
    Check(CheckArguments),
    /// Serve until SIGTERM or SIGINT
    Run(RunArguments),
}

#[derive(Debug, clap::Args)]
struct CheckArguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Leave out what asks AWS: EC2, the clock and the attestation role
    #[arg(long)]
    local: bool,
    /// Answer as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; the rest is a usage error, 2. A closed pipe is no
            // reason to fail differently.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "postern-agent: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(arguments) => {
            let made = init::init(&arguments)?;
            let text = if arguments.json {
                made.json()?
            } else {
                made.text()
            };
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(arguments) => {
            install_provider()?;
            let findings = runtime()?.block_on(check::check(&arguments.config, arguments.local));
            let text = if arguments.json {
                finding::json(&findings)?
            } else {
                finding::text(&findings)
            };
            std::io::stdout().write_all(text.as_bytes())?;
            let failed = findings.iter().any(|finding| finding.level == Level::Error);
            Ok(ExitCode::from(u8::from(failed)))
        }
        Command::Run(arguments) => {
            log_to_stderr();
            let config = Config::load(&arguments.config)?;
            let keys = Keys::load(&config)?;
            install_provider()?;
            runtime()?.block_on(crate::run::run(config, keys))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The error with its causes, each told once, and what to do about it last.
fn told(error: &anyhow::Error) -> String {
    let mut message = String::new();
    let mut hints = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let (what, hint) = match cause.split_once("\nhint: ") {
            Some((what, hint)) => (what, Some(hint)),
            None => (cause.as_str(), None),
        };
        if !message.contains(what) {
            let colon = if message.is_empty() { "" } else { ": " };
            message.push_str(&format!("{colon}{what}"));
        }
        if let Some(hint) = hint {
            hints.push_str(&format!("\nhint: {hint}"));
        }
    }
    message + &hints
}

/// One crypto provider for the whole process, before anything speaks TLS.
fn install_provider() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok()
        .context("another crypto provider is installed")
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

/// Logs go to stderr: lines for people on a terminal, JSON for a journal. `POSTERN_LOG` chooses
/// what (as `RUST_LOG` does elsewhere); `info` by default.
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second subscriber in one process is a test's; the first stays.
    if std::io::stderr().is_terminal() {
        let _ = builder.try_init();
    } else {
        let _ = builder.json().try_init();
    }
}

#[cfg(test)]
mod tests;
