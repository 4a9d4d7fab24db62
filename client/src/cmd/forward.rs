//! `postern forward TARGET PORT...`: tunnels until Ctrl-C.

use std::process::ExitCode;

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
use crate::pipe::outage;

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
    let gateway = Gateway::of(context).await?;
    let (ended, mut endings) = mpsc::channel(1);
    let mut tunnels = Vec::new();
    for forward in &forwards {
        let opened = Tunnel::open(
            &gateway,
            &args.target,
            forward,
            context.printer,
            ended.clone(),
        );
        tunnels.push(opened.await?);
    }
    for (tunnel, forward) in tunnels.iter().zip(&forwards) {
        tell(context, tunnel, forward)?;
    }
    let first = tunnels.first().map_or(0, |tunnel| tunnel.address().port());
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    for (index, tunnel) in tunnels.into_iter().enumerate() {
        let stop = stop.clone();
        serving.spawn(async move { (index, tunnel.serve(stop).await) });
    }
    let result = tokio::select! {
        signalled = interrupted() => signalled.map(|()| ExitCode::SUCCESS),
        Some(error) = endings.recv() => Err(error),
        status = command(&args.command, first) => status,
        () = outage::tell(gateway.away(), context.printer) => Ok(ExitCode::SUCCESS),
    };
    stop.cancel();
    let mut totals = vec![Totals::default(); forwards.len()];
    while let Some(served) = serving.join_next().await {
        if let Ok((index, moved)) = served
            && let Some(slot) = totals.get_mut(index)
        {
            *slot = moved;
        }
    }
    for (forward, moved) in forwards.iter().zip(totals) {
        context.printer.note(format!(
            "{}: {} connections, {} sent, {} received",
            forward.destination(args.target.as_str()),
            moved.connections,
            bytes(moved.up),
            bytes(moved.down),
        ));
    }
    result
}

fn tell(context: &Context, tunnel: &Tunnel, forward: &Forward) -> Result<(), Error> {
    let granted = tunnel.granted();
    super::connect::describe(context.printer, granted);
    let address = tunnel.address();
    if context.printer.json {
        return context.printer.json(&Listening {
            listening: address.to_string(),
            target: &granted.target.name,
            target_id: granted.target.id.to_string(),
            host: forward.host.as_ref().map(|host| host.as_str()),
            port: forward.port,
            session: granted.session.to_string(),
        });
    }
    context.printer.answer(format!(
        "{address} -> {}",
        forward.destination(&granted.target.name)
    ))
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
