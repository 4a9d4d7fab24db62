//! The same over SSM: IAM decides, and the evidence is ours.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Listening, Serving, interrupted, until_done};
use crate::cli::ForwardArgs;
use crate::context::Context;
use crate::error::Error;
use crate::forward::spec::Forward;
use crate::ssm::Ssm;
use crate::ssm::forward::Tunnel;
use crate::ssm::target::Node;

/// Serves until Ctrl-C, or until COMMAND ends.
pub(super) async fn run(
    context: &Context,
    args: &ForwardArgs,
    forwards: &[Forward],
    ssm: &Arc<Ssm>,
    node: &Node,
) -> Result<ExitCode, Error> {
    let limit = args.sessions.map_or(context.ssm_sessions, usize::from);
    let opening = async {
        let mut tunnels = Vec::new();
        for forward in forwards {
            tunnels.push(Tunnel::open(context, ssm, node, forward, limit).await?);
        }
        Ok::<_, Error>(tunnels)
    };
    // Cut short, what was begun at AWS is still ended there.
    let tunnels = tokio::select! {
        opened = opening => opened?,
        signalled = interrupted() => return signalled.map(|()| ExitCode::SUCCESS),
    };
    for (tunnel, forward) in tunnels.iter().zip(forwards) {
        Listening {
            listening: tunnel.address().to_string(),
            target: &node.name,
            target_id: node.id.clone(),
            host: forward.host.as_ref().map(|host| host.as_str()),
            port: forward.port,
            session: tunnel.session().to_string(),
        }
        .tell(context.printer, forward)?;
    }
    let (ended, mut endings) = mpsc::channel(1);
    let mut serving = Serving::default();
    let first = tunnels.first().map_or(0, |tunnel| tunnel.address().port());
    for tunnel in tunnels {
        let stop = serving.stop.clone();
        serving.add(tunnel.serve(stop, ended.clone()));
    }
    let result = tokio::select! {
        done = until_done(args, first) => done,
        Some(error) = endings.recv() => Err(error),
    };
    serving.finish(context.printer, args, forwards).await;
    result
}
