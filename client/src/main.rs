//! The `postern` command: provider, parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // One crypto provider for everything that speaks TLS. Installing fails only when one is
    // installed already, and then rustls is usable too.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    postern::run(std::env::args_os())
}
