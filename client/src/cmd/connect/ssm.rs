//! The same over SSM: the SSM Agent runs the shell or command, IAM decides, the evidence is ours.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;

use postern_proto::gateway::message::CloseReason;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::ConnectArgs;
use crate::context::Context;
use crate::error::{Error, STATUS_OF_OURS};
use crate::evidence::{Carries, End, Record};
use crate::pipe::outage;
use crate::route::only_bastion;
use crate::ssh::shell::{Control, Streams};
use crate::ssh::terminal::{RawMode, Size};
use crate::ssm::exit_status::{self, Watch};
use crate::ssm::shell::{self, Job, Status};
use crate::ssm::target::{Feature, Node};
use crate::ssm::{Session, Ssm, SsmError, Start, claim, document};
use crate::stdio;

const NO_INPUT: &str =
    "SSM carries no standard input to a command without a terminal: it is not sent";
const NO_STATUS: &str = "SSM carries no exit status of this command";

/// Runs it and returns its status.
pub(super) async fn run(
    context: &Context,
    args: &ConnectArgs,
    ssm: &Arc<Ssm>,
    node: &Node,
) -> Result<ExitCode, Error> {
    let plan = plan(context, args, node)?;
    let typed = matches!(plan.job, Job::Terminal(_)) && std::io::stdin().is_terminal();
    let (orders, mut control) = mpsc::channel(16);
    let _watching = AbortOnDropHandle::new(tokio::spawn(super::watch(orders, typed)));
    // It may take a while, and a person may change their mind.
    let session = tokio::select! {
        session = Session::start(ssm, plan.start.clone()) => session?,
        () = told_to_leave(&mut control) => return Ok(ExitCode::from(STATUS_OF_OURS)),
    };
    describe(context, node, &session);
    let record = claim::open(context, ssm, node, &session, &plan.start, plan.carries).await?;
    if plan.job == Job::Command && has_input() {
        context.printer.warning(NO_INPUT);
    }
    let (away, printer) = (session.away(), context.printer);
    // A terminal has its own line for it.
    let _telling =
        (!typed).then(|| AbortOnDropHandle::new(tokio::spawn(outage::tell(away, printer))));
    let is_told = plan.watch.is_some();
    let work = (plan.job, plan.watch);
    let ended = on_terminal(session, work, typed, control, record.clone()).await;
    // The session is over here: what fails now is told, and changes no status.
    if let Err(error) = record.close(end(&ended)).await {
        context.printer.warning(error.to_string());
    }
    status(context, plan.job, !args.command.is_empty(), is_told, ended)
}

struct Plan {
    job: Job,
    watch: Option<Watch>,
    start: Start,
    carries: Carries,
}

fn plan(context: &Context, args: &ConnectArgs, node: &Node) -> Result<Plan, Error> {
    refuse(args)?;
    let line = super::line::of(&args.command)?.unwrap_or_default();
    let size = Size::of(std::io::stdin())
        .or_else(|| Size::of(std::io::stdout()))
        .unwrap_or_default();
    let (job, name, carries) = match (args.command.is_empty(), args.terminal) {
        (true, _) => {
            let term = context.environment.text("TERM").ok().flatten();
            let carries = Carries::Shell {
                columns: size.columns,
                rows: size.rows,
                term: term.unwrap_or("xterm").to_owned(),
            };
            (Job::Terminal(size), document::SHELL, carries)
        }
        (false, true) => {
            let carries = Carries::Command {
                line: line.clone(),
                terminal: Some((size.columns, size.rows)),
            };
            (Job::Terminal(size), document::INTERACTIVE, carries)
        }
        (false, false) => {
            node.demand(Feature::Command)?;
            let carries = Carries::Command {
                line: line.clone(),
                terminal: None,
            };
            (Job::Command, document::NON_INTERACTIVE, carries)
        }
    };
    // A Windows shell has another language, and an unknown node may have.
    let has_posix_shell = matches!(node.platform.as_str(), "Linux" | "MacOS");
    let (parameters, watch) = match line.as_str() {
        "" => (document::parameters([]), None),
        line if has_posix_shell => {
            let (asked, watch) =
                exit_status::asked(line, args.terminal.then_some((size.columns, size.rows)))?;
            (document::parameters([("command", asked)]), Some(watch))
        }
        line => (document::parameters([("command", line.to_owned())]), None),
    };
    let start = Start {
        target: node.id.clone(),
        document: name.to_owned(),
        parameters,
        reason: claim::reason(),
    };
    Ok(Plan {
        job,
        watch,
        start,
        carries,
    })
}

/// What the SSM Agent's shell cannot do is told before anything starts.
fn refuse(args: &ConnectArgs) -> Result<(), Error> {
    let by_forward = "postern forward --via ssm TARGET PORT";
    if !args.local.is_empty() {
        return Err(only_bastion("-L").hint(by_forward));
    }
    if !args.remote.is_empty() || !args.dynamic.is_empty() {
        return Err(only_bastion("-R and -D").hint("postern connect --via bastion"));
    }
    if args.forward_agent {
        return Err(only_bastion("an SSH agent").hint("postern connect --via bastion"));
    }
    if args.user.is_some() || args.target.as_str().contains('@') {
        return Err(only_bastion("a login user").hint(
            "the account's Session Manager preferences (RunAs) decide who the shell runs as",
        ));
    }
    if args.no_terminal && args.command.is_empty() {
        return Err(only_bastion("a shell without a terminal").hint("name a command"));
    }
    Ok(())
}

/// What `-v` tells, and what the SSM Agent wants to be told.
fn describe(context: &Context, node: &Node, session: &Session) {
    let opened = session.opened();
    let version = opened
        .peer_version
        .as_deref()
        .unwrap_or(&node.agent_version);
    context.printer.detail(format!(
        "SSM session {}: target {}, {}, SSM Agent {version}, {}",
        session.id(),
        node.display(),
        session.document(),
        if opened.is_encrypted {
            "encrypted with a KMS key"
        } else {
            "no KMS key"
        },
    ));
    if !opened.notice.is_empty() {
        context.printer.note(opened.notice.trim_end());
    }
}

/// Returns when a signal ends us before there is a session.
async fn told_to_leave(control: &mut mpsc::Receiver<Control>) {
    while let Some(order) = control.recv().await {
        if !matches!(order, Control::Resize(_)) {
            return;
        }
    }
    std::future::pending().await
}

/// Whether somebody means to send something: a file or a pipe with bytes in it.
fn has_input() -> bool {
    let stdin = std::io::stdin();
    !stdin.is_terminal() && rustix::io::ioctl_fionread(stdin).is_ok_and(|bytes| bytes > 0)
}

async fn on_terminal(
    session: Session,
    (job, watch): (Job, Option<Watch>),
    typed: bool,
    control: mpsc::Receiver<Control>,
    record: Record,
) -> Result<Status, SsmError> {
    let stdin = std::io::stdin();
    // Dropped at every kind of end: the terminal is then as before.
    let raw = if typed {
        let raw = RawMode::enter(stdin.as_fd()).map_err(|error| SsmError::Local {
            what: "the terminal could not be made raw",
            cause: error.to_string(),
        })?;
        Some(raw)
    } else {
        None
    };
    let stdio = stdio::outlets().map_err(|error| SsmError::Local {
        what: "the standard output failed",
        cause: error.to_string(),
    })?;
    let streams = Streams {
        input: tokio::io::stdin(),
        output: stdio.output,
        error: stdio.error,
        typed,
        raw: raw.as_ref(),
    };
    let ended = shell::run(session, job, streams, control, watch, Some(record)).await;
    stdio.rest.settle().await;
    ended
}

/// The end as the evidence keeps it.
fn end(ended: &Result<Status, SsmError>) -> End {
    let (reason, exit_status) = match ended {
        Ok(Status::Exited(code)) => (CloseReason::Done, u32::try_from(*code).ok()),
        Ok(Status::Unknown) => (CloseReason::Done, None),
        Ok(Status::Left) => (CloseReason::Client, None),
        Err(SsmError::Evidence(_)) => (CloseReason::Evidence, None),
        Err(_) => (CloseReason::Target, None),
    };
    End {
        reason,
        message: ended.as_ref().err().map(SsmError::to_string),
        exit_status,
    }
}

/// The process's exit code. A shell's own is not carried by SSM and counts as 0; a command whose
/// code is not known is no success.
fn status(
    context: &Context,
    job: Job,
    is_command: bool,
    is_told: bool,
    ended: Result<Status, SsmError>,
) -> Result<ExitCode, Error> {
    match (ended?, job) {
        (Status::Exited(code), _) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
        (Status::Left, _) => Ok(ExitCode::from(STATUS_OF_OURS)),
        (Status::Unknown, _) if is_told => Err(SsmError::NoStatus.into()),
        (Status::Unknown, Job::Command) => Err(SsmError::NoStatus.into()),
        (Status::Unknown, Job::Terminal(_)) => {
            if is_command {
                context.printer.note(NO_STATUS);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn refused(words: &[&str]) -> String {
        let all = ["postern", "connect", "--via", "ssm"].iter().chain(words);
        let Command::Connect(args) = Cli::try_parse_from(all).unwrap().command else {
            panic!("another command");
        };
        let error = refuse(&args).unwrap_err();
        let hint = error.hint.as_deref().unwrap_or("-");
        format!("{} [{}]\nhint: {hint}", error.message, error.kind)
    }

    #[test]
    fn what_the_route_does_not_carry_is_told_before_anything_starts() {
        let told = [
            refused(&["-L", "8080:localhost:80", "app-1"]),
            refused(&["-D", "1080", "app-1"]),
            refused(&["-A", "app-1"]),
            refused(&["--user", "root", "app-1"]),
            refused(&["root@app-1"]),
            refused(&["-T", "app-1"]),
            NO_INPUT.to_owned(),
            NO_STATUS.to_owned(),
        ];
        insta::assert_snapshot!(told.join("\n\n"));
    }
}
