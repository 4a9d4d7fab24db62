//! `postern forward TARGET PORT...`: tunnels until Ctrl-C.

mod ssm;

use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::ForwardArgs;
use crate::context::Context;
use crate::error::Error;
use crate::forward::spec::Forward;
use crate::forward::{Totals, Tunnel};
use crate::gateway::Gateway;
use crate::output::Printer;
use crate::pipe::outage;
use crate::route::{self, Refusal, Way};

/// The variable that tells COMMAND where the first forward listens.
const PORT: &str = "POSTERN_FORWARD_PORT";

/// One listener, as `--json` tells it.
#[derive(Serialize)]
struct Listening<'a> {
    listening: String,
    target: &'a str,
    target_id: String,
    host: Option<&'a str>,
    port: u16,
    session: String,
}

/// Serves until Ctrl-C, until COMMAND ends, or until the agent ends it.
pub async fn run(context: &Context, args: ForwardArgs) -> Result<ExitCode, Error> {
    let forwards: Vec<Forward> = args
        .ports
        .iter()
        .map(|text| Forward::parse(text))
        .collect::<Result<_, _>>()?;
    let way = route::open(context, args.via, &args.target, async |gateway| {
        Ok((
            Arc::clone(gateway),
            Bastion::open(context, gateway, &args, &forwards).await?,
        ))
    });
    match way.await? {
        Way::Bastion((gateway, bastion)) => {
            serve_bastion(context, &gateway, bastion, &args, &forwards).await
        }
        Way::Ssm(ssm, node) => {
            let result = ssm::run(context, &args, &forwards, &ssm, &node).await;
            // Whatever happened: what was started at AWS is ended there.
            ssm.settle().await;
            result
        }
    }
}

/// Through the agent: a session for each forward.
struct Bastion {
    tunnels: Vec<Tunnel>,
    endings: mpsc::Receiver<Error>,
}

impl Bastion {
    async fn open(
        context: &Context,
        gateway: &Arc<Gateway>,
        args: &ForwardArgs,
        forwards: &[Forward],
    ) -> Result<Self, Refusal> {
        let (ended, endings) = mpsc::channel(1);
        let mut tunnels = Vec::new();
        for forward in forwards {
            let opened = Tunnel::open(
                gateway,
                &args.target,
                forward,
                context.printer,
                ended.clone(),
            );
            tunnels.push(opened.await?);
        }
        Ok(Self { tunnels, endings })
    }
}

async fn serve_bastion(
    context: &Context,
    gateway: &Gateway,
    Bastion {
        tunnels,
        mut endings,
    }: Bastion,
    args: &ForwardArgs,
    forwards: &[Forward],
) -> Result<ExitCode, Error> {
    for (tunnel, forward) in tunnels.iter().zip(forwards) {
        let granted = tunnel.granted();
        super::connect::describe(context.printer, granted);
        Listening {
            listening: tunnel.address().to_string(),
            target: &granted.target.name,
            target_id: granted.target.id.to_string(),
            host: forward.host.as_ref().map(|host| host.as_str()),
            port: forward.port,
            session: granted.session.to_string(),
        }
        .tell(context.printer, forward)?;
    }
    let mut serving = Serving::default();
    let first = tunnels.first().map_or(0, |tunnel| tunnel.address().port());
    for tunnel in tunnels {
        let stop = serving.stop.clone();
        serving.add(tunnel.serve(stop));
    }
    let result = tokio::select! {
        done = until_done(args, first) => done,
        Some(error) = endings.recv() => Err(error),
        () = outage::tell(gateway.away(), context.printer) => Ok(ExitCode::SUCCESS),
    };
    serving.finish(context.printer, args, forwards).await;
    result
}

/// Tunnels at work, in the order of the command line.
#[derive(Default)]
struct Serving {
    stop: CancellationToken,
    tasks: JoinSet<(usize, Totals)>,
}

impl Serving {
    fn add(&mut self, serve: impl Future<Output = Totals> + Send + 'static) {
        let index = self.tasks.len();
        self.tasks.spawn(async move { (index, serve.await) });
    }

    /// Ends them and tells what moved.
    async fn finish(mut self, printer: Printer, args: &ForwardArgs, forwards: &[Forward]) {
        self.stop.cancel();
        let mut totals = vec![Totals::default(); forwards.len()];
        while let Some(served) = self.tasks.join_next().await {
            if let Ok((index, moved)) = served
                && let Some(slot) = totals.get_mut(index)
            {
                *slot = moved;
            }
        }
        for (forward, moved) in forwards.iter().zip(totals) {
            printer.note(format!(
                "{}: {} connections, {} sent, {} received",
                forward.destination(args.target.as_str()),
                moved.connections,
                bytes(moved.up),
                bytes(moved.down),
            ));
        }
    }
}

impl Listening<'_> {
    fn tell(&self, printer: Printer, forward: &Forward) -> Result<(), Error> {
        if printer.json {
            return printer.json(self);
        }
        printer.answer(format!(
            "{} -> {}",
            self.listening,
            forward.destination(self.target)
        ))
    }
}

/// Until a signal, or the end of COMMAND.
async fn until_done(args: &ForwardArgs, first_port: u16) -> Result<ExitCode, Error> {
    tokio::select! {
        signalled = interrupted() => signalled.map(|()| ExitCode::SUCCESS),
        status = command(&args.command, first_port) => status,
    }
}

async fn interrupted() -> Result<(), Error> {
    let listen = |kind| {
        signal(kind).map_err(|error| Error::failed(format!("signals cannot be received: {error}")))
    };
    let (mut interrupt, mut terminate, mut hangup) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
        listen(SignalKind::hangup())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Runs COMMAND to its end and returns its status; never returns when there is none.
async fn command(words: &[String], port: u16) -> Result<ExitCode, Error> {
    let Some((program, arguments)) = words.split_first() else {
        return std::future::pending().await;
    };
    let status = Command::new(program)
        .args(arguments)
        .env(PORT, port.to_string())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|error| Error::failed(format!("`{program}` could not be run: {error}")))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// 1536 -> `1.5 KiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
