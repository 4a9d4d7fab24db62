//! `postern connect TARGET`: a shell or a command, with our own SSH client, or of the SSM Agent.

mod line;
mod over_ssm;
mod ssm;

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;

use postern_proto::gateway::message::{Granted, HostKeyCheck, OpenKind};
use postern_proto::names::{LoginUser, TargetName};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::ConnectArgs;
use crate::context::Context;
use crate::error::Error;
use crate::evidence::Record;
use crate::gateway::{Gateway, Request};
use crate::output::Printer;
use crate::pipe::outage;
use crate::route::{self, Way};
use crate::ssh::SshError;
use crate::ssh::forward::Forwards;
use crate::ssh::forward::spec::{Dynamic, Local, Remote};
use crate::ssh::link::Link;
use crate::ssh::shell::{self, Control, Job, Status, Streams, TerminalRequest};
use crate::ssh::terminal::{RawMode, Size};
use crate::stdio;

/// The number of SIGCONT.
const CONTINUE: i32 = rustix::process::Signal::CONT.as_raw();

/// Variables that go to the target, as most configurations of `ssh` have it.
const LOCALE: [&str; 14] = [
    "LANG",
    "LC_ALL",
    "LC_ADDRESS",
    "LC_COLLATE",
    "LC_CTYPE",
    "LC_IDENTIFICATION",
    "LC_MEASUREMENT",
    "LC_MESSAGES",
    "LC_MONETARY",
    "LC_NAME",
    "LC_NUMERIC",
    "LC_PAPER",
    "LC_TELEPHONE",
    "LC_TIME",
];

/// Runs a shell or a command and returns its status.
pub async fn run(context: &Context, args: ConnectArgs) -> Result<ExitCode, Error> {
    let forwards = forwards(&args)?;
    let (_, target) = split(&args.target)?;
    let job = job(context, &args)?;
    let way = route::open(context, args.via, &target, async |gateway| {
        let (user, target) = destination(context, args.user.clone(), &args.target)?;
        let request = Request {
            target,
            kind: OpenKind::Ssh { user },
            once: true,
        };
        let link = Link::open(gateway, &request, None).await?;
        Ok((Arc::clone(gateway), request, link))
    });
    match way.await? {
        Way::Bastion((gateway, request, link)) => {
            bastion(context, &gateway, &request, link, forwards, job).await
        }
        Way::Ssm(ssm, node) => {
            let result = if args.ssh {
                over_ssm::run(context, &args, &ssm, &node, forwards, job).await
            } else {
                ssm::run(context, &args, &ssm, &node).await
            };
            // Whatever happened: what was started at AWS is ended there.
            ssm.settle().await;
            result
        }
    }
}

/// Over a connection to the agent.
async fn bastion(
    context: &Context,
    gateway: &Arc<Gateway>,
    request: &Request,
    mut link: Link,
    forwards: Forwards,
    mut job: Job,
) -> Result<ExitCode, Error> {
    if let Some(granted) = link.granted() {
        describe(context.printer, granted);
    }
    let forwarding = if forwards.is_empty() {
        None
    } else {
        let request = Request {
            once: false,
            ..request.clone()
        };
        let open = Link::open(gateway, &request, link.membership());
        Some(forwards.start(open, context.printer).await?)
    };
    let result = on_terminal(context.printer, &mut link, &mut job, None).await;
    if let Some(forwarding) = forwarding {
        forwarding.stop().await;
    }
    let status = finish(context.printer, link, result).await?;
    Ok(ExitCode::from(status.code()))
}

/// Says goodbye once the job is over, however, and tells what there is to tell.
async fn finish(
    printer: Printer,
    link: Link,
    result: Result<Status, SshError>,
) -> Result<Status, Error> {
    let status = match result {
        Ok(status) => status,
        Err(error @ SshError::Protocol(_)) => return Err(link.why(error).await.into()),
        Err(error) => return Err(error.into()),
    };
    if let Status::Killed { signal, message } = &status {
        printer.note(format!("killed by signal {signal} {message}").trim_end());
    }
    match link.close().await {
        // The status is known: how the connection went afterwards is not the command's matter.
        Ok(()) | Err(SshError::Pipe(_) | SshError::Carrier(_)) => {}
        Err(SshError::Ended(reason)) => printer.note(format!("the session was ended: {reason}")),
        Err(error) => return Err(error.into()),
    }
    Ok(status)
}

/// `USER@TARGET` as `ssh` has it; else the flag, the configuration, the local user.
pub(super) fn destination(
    context: &Context,
    flag: Option<LoginUser>,
    target: &TargetName,
) -> Result<(LoginUser, TargetName), Error> {
    let usage = |error: postern_proto::names::NameError| Error::usage(error.to_string());
    let (named, target) = split(target)?;
    if let Some(user) = flag.or(named) {
        return Ok((user, target));
    }
    let configured = context.login_user.clone();
    let local = || {
        context
            .environment
            .text("USER")
            .ok()
            .flatten()
            .map(str::to_owned)
    };
    let user = configured.or_else(local).ok_or_else(|| {
        Error::usage("no login user is known")
            .hint("postern connect --user NAME TARGET, or `user` in the configuration")
    })?;
    Ok((user.parse().map_err(usage)?, target))
}

/// `USER@TARGET`, or no user.
fn split(target: &TargetName) -> Result<(Option<LoginUser>, TargetName), Error> {
    let usage = |error: postern_proto::names::NameError| Error::usage(error.to_string());
    match target.as_str().split_once('@') {
        Some((user, target)) => Ok((
            Some(user.parse().map_err(usage)?),
            target.parse().map_err(usage)?,
        )),
        None => Ok((None, target.clone())),
    }
}

/// What `-v` tells about a grant.
pub(super) fn describe(printer: Printer, granted: &Granted) {
    let target = &granted.target;
    printer.detail(format!(
        "session {}: target {} ({}) at {}, allowed by {}, {}, {}",
        granted.session,
        target.name,
        target.id,
        target.address,
        granted.policies.join(", "),
        granted.assurance,
        if granted.recorded {
            "recorded"
        } else {
            "not recorded"
        },
    ));
    if let Some(key) = &target.host_key {
        let checked = match key.check {
            HostKeyCheck::HostCa => "certified by the host CA",
            HostKeyCheck::Pinned => "the one that was pinned",
            HostKeyCheck::FirstUse => "seen for the first time, pinned now",
        };
        printer.detail(format!(
            "host key of {}: {} ({checked})",
            target.name, key.fingerprint
        ));
    }
}

fn forwards(args: &ConnectArgs) -> Result<Forwards, SshError> {
    Ok(Forwards {
        local: args
            .local
            .iter()
            .map(|text| Local::parse(text))
            .collect::<Result<_, _>>()?,
        remote: args
            .remote
            .iter()
            .map(|text| Remote::parse(text))
            .collect::<Result<_, _>>()?,
        dynamic: args
            .dynamic
            .iter()
            .map(|text| Dynamic::parse(text))
            .collect::<Result<_, _>>()?,
    })
}

fn job(context: &Context, args: &ConnectArgs) -> Result<Job, Error> {
    let environment = &context.environment;
    let command = line::of(&args.command)?;
    let wanted =
        args.terminal || (!args.no_terminal && command.is_none() && std::io::stdin().is_terminal());
    let terminal = wanted.then(|| TerminalRequest {
        kind: environment
            .text("TERM")
            .ok()
            .flatten()
            .unwrap_or("xterm")
            .to_owned(),
        size: Size::of(std::io::stdin())
            .or_else(|| Size::of(std::io::stdout()))
            .unwrap_or_default(),
        modes: Vec::new(),
    });
    let lend_agent = match (args.forward_agent, environment.path("SSH_AUTH_SOCK")) {
        (false, _) => None,
        (true, Some(socket)) => Some(socket),
        (true, None) => {
            return Err(
                Error::usage("-A: no SSH agent runs here: SSH_AUTH_SOCK is not set")
                    .hint("eval $(ssh-agent) && ssh-add"),
            );
        }
    };
    let variable = |name: &str| Some((name.to_owned(), environment.os(name)?.to_str()?.to_owned()));
    Ok(Job {
        command,
        terminal,
        environment: LOCALE.iter().filter_map(|name| variable(name)).collect(),
        lend_agent,
    })
}

/// Runs the job on this process's terminal and streams. What it shows goes into `record` first,
/// where the evidence is ours.
async fn on_terminal(
    printer: Printer,
    link: &mut Link,
    job: &mut Job,
    record: Option<Record>,
) -> Result<Status, SshError> {
    let stdin = std::io::stdin();
    let typed = job.terminal.is_some() && stdin.is_terminal();
    // A terminal has its own line for an outage.
    let telling = (!typed).then(|| tokio::spawn(outage::tell(link.away(), printer)));
    let _telling = telling.map(AbortOnDropHandle::new);
    // Dropped at every kind of end: the terminal is then as before.
    let raw = if typed {
        let raw = RawMode::enter(stdin.as_fd()).map_err(|source| SshError::Local {
            what: "the terminal could not be made raw",
            source,
        })?;
        Some(raw)
    } else {
        None
    };
    if let (Some(raw), Some(terminal)) = (&raw, &mut job.terminal) {
        terminal.modes = raw.modes();
    }
    let (orders, control) = mpsc::channel(16);
    let _watching = AbortOnDropHandle::new(tokio::spawn(watch(orders, typed)));
    let stdio = stdio::outlets().map_err(|source| SshError::Local {
        what: "the standard output failed",
        source,
    })?;
    let streams = Streams {
        input: tokio::io::stdin(),
        output: stdio.output,
        error: stdio.error,
        typed,
        raw: raw.as_ref(),
    };
    let ended = shell::run(link, std::mem::take(job), streams, control, record).await;
    stdio.rest.settle().await;
    ended
}

/// Turns this process's signals into orders. On a raw terminal Ctrl-C is a byte; a signal that
/// ends this process ends the session, and the terminal is restored on the way.
async fn watch(orders: mpsc::Sender<Control>, typed: bool) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut resize = signal(SignalKind::window_change())?;
    // A client that was suspended was not told of new sizes.
    let mut go_on = signal(SignalKind::from_raw(CONTINUE))?;
    let mut passed = false;
    loop {
        let order = tokio::select! {
            Some(()) = resize.recv() => match Size::of(std::io::stdin()) {
                Some(size) if typed => Control::Resize(size),
                _ => continue,
            },
            Some(()) = go_on.recv() => match Size::of(std::io::stdin()) {
                Some(size) if typed => Control::Resize(size),
                _ => continue,
            },
            Some(()) = interrupt.recv() => Control::Signal("INT"),
            Some(()) = quit.recv() => Control::Signal("QUIT"),
            Some(()) = terminate.recv() => if typed { Control::End } else { Control::Signal("TERM") },
            Some(()) = hangup.recv() => Control::End,
            else => return Ok(()),
        };
        // The first signal is for the command; who sends a second one means us.
        let again = passed && matches!(order, Control::Signal(_));
        passed |= matches!(order, Control::Signal(_));
        let order = if again { Control::End } else { order };
        if orders.send(order).await.is_err() {
            return Ok(());
        }
    }
}
