//! The `postern-agent` daemon.

use std::process::ExitCode;

use futures_util::FutureExt as _;
use postern_agent::cli::{self, Hooks};

fn main() -> ExitCode {
    cli::main(&Hooks {
        checks: vec![],
        run: |config, keys| postern_agent::run::run(config, keys).boxed(),
    })
}
