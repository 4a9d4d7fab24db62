//! `lab`: Postern's main job on a machine without an AWS account. See README.md.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use clap::Parser;
use lab::account::PEOPLE;
use lab::programs::Programs;
use lab::stack::{Lab, Options};
use lab::{bench, console, serve, totp, tour};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// An emulated AWS, private hosts and a real agent on loopback, for as long as this runs.
///
/// Without arguments: a short tour of the commands, then (on a terminal) a shell inside.
#[derive(Parser)]
#[command(name = "lab", subcommand_negates_reqs = true)]
struct Arguments {
    /// Print one line of JSON (environment, users, agent, targets) and wait for Ctrl-C.
    #[arg(long)]
    serve: bool,
    /// Run this inside the lab and return its status: `cargo lab postern connect web-1`.
    /// `totp USER` prints a user's current MFA code, `bench` measures.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok()
        .context("another crypto provider is installed")?;
    if let [command, user] = &arguments.command[..]
        && command == "totp"
    {
        return totp::print(user);
    }
    if let [command, to] = &arguments.command[..]
        && command == bench::hops::ARGUMENT
    {
        let to = to.to_str().context("the address is not text")?.parse()?;
        bench::hops::serve(to).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if let [command] = &arguments.command[..]
        && command == bench::crowd::ARGUMENT
    {
        bench::crowd::serve().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let bench = match arguments.command.first() {
        Some(command) if command == "bench" => {
            Some(bench::Arguments::parse_from(&arguments.command))
        }
        _ => None,
    };
    if let Some(bench) = bench.as_ref().filter(|bench| !bench.measures()) {
        bench::show(bench)?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = match &bench {
        Some(bench) => {
            // The agent inherits it.
            bench::machine::raise_descriptors()?;
            bench.options()
        }
        None => Options::default(),
    };
    Programs::build()?;
    let mut hurry = Hurry::new()?;
    let lab = tokio::select! {
        lab = Lab::start(options) => lab?,
        // Dropping what was started ends it.
        signal = hurry.any() => return Ok(ExitCode::from(128 + signal)),
    };
    let outcome = tokio::select! {
        biased;
        outcome = work(&lab, &arguments, bench) => outcome,
        signal = hurry.last() => Ok(match arguments.serve {
            // Being told to end is how serving ends.
            true => ExitCode::SUCCESS,
            false => ExitCode::from(128 + signal),
        }),
    };
    lab.stop().await?;
    outcome
}

/// What the lab was started for.
async fn work(
    lab: &Lab,
    arguments: &Arguments,
    bench: Option<bench::Arguments>,
) -> Result<ExitCode> {
    if let Some(bench) = bench {
        bench::run(lab, &bench).await?;
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.command.split_first() {
        _ if arguments.serve => serve::run(lab).await.map(|()| ExitCode::SUCCESS),
        Some((program, rest)) => inside(lab, program, rest).await,
        None => {
            tour::run(lab).await?;
            match std::io::stdin().is_terminal() {
                true => shell(lab).await,
                false => Ok(ExitCode::SUCCESS),
            }
        }
    }
}

/// The signals that end the lab: it never leaves programs behind.
struct Hurry {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Hurry {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of whichever comes first.
    async fn any(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }

    /// As above without Ctrl-C: that is for the command inside, which has it too and decides.
    async fn last(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}

/// Commands of `postern` that need a login: a lab begins without one.
const NEED_A_LOGIN: [&str; 6] = ["connect", "forward", "proxy", "ls", "why", "audit"];

async fn inside(lab: &Lab, program: &OsString, rest: &[OsString]) -> Result<ExitCode> {
    let needs = |first: &OsString| NEED_A_LOGIN.iter().any(|command| first == command);
    if program == "postern" && rest.first().is_some_and(needs) {
        // Without a terminal `postern` asks nobody. What fails here, the command itself tells.
        let mut login = lab.command(program);
        login.arg("login").stdin(Stdio::null());
        login.stdout(Stdio::null()).stderr(Stdio::null());
        login.status().await.context("cannot start postern")?;
    }
    let status = lab
        .command(program)
        .args(rest)
        .status()
        .await
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(code(status))
}

/// A person's shell inside the lab.
async fn shell(lab: &Lab) -> Result<ExitCode> {
    let people: Vec<String> = PEOPLE
        .iter()
        .map(|person| format!("{} ({})", person.name, person.job))
        .collect();
    console::note(&format!(
        "You are inside the lab as alice. Try `postern connect web-1`, or be somebody else with \
         AWS_PROFILE: {}. `exit` ends the lab.",
        people.join(", ")
    ));
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    inside(lab, &shell, &[]).await
}

/// The status as a shell would report it.
fn code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let signal = || status.signal().map(|signal| 128 + signal);
    let code = status
        .code()
        .or_else(signal)
        .and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(u8::MAX))
}
