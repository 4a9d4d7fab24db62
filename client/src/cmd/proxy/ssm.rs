//! The same over SSM: `ssh` speaks with the target itself.

use std::process::ExitCode;
use std::sync::Arc;

use postern_proto::gateway::message::CloseReason;
use postern_proto::names::TargetName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::killed;
use crate::context::Context;
use crate::error::Error;
use crate::evidence::{Carries, End};
use crate::pipe::outage;
use crate::ssm::raw::{self, Raw};
use crate::ssm::{Session, Ssm, claim, target};

/// Relays until either side ends.
pub(super) async fn run(
    context: &Context,
    name: &TargetName,
    port: u16,
) -> Result<ExitCode, Error> {
    let ssm = Ssm::of(context)?;
    let (from, to) = (tokio::io::stdin(), tokio::io::stdout());
    let result = carry(context, &ssm, name, port, from, to).await;
    // Whatever happened: what was started at AWS is ended there.
    ssm.settle().await;
    result.map(|()| ExitCode::SUCCESS)
}

async fn carry(
    context: &Context,
    ssm: &Arc<Ssm>,
    name: &TargetName,
    port: u16,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let node = target::find(ssm, name.as_str()).await?;
    let start = raw::start(&node.id, port);
    let session = Session::start(ssm, start.clone()).await?;
    let carries = Carries::Tunnel { host: None, port };
    let record = claim::open(context, ssm, &node, &session, &start, carries).await?;
    let flow = record.flow_opened("stdin").await?;
    let raw = Raw::of(session);
    let away = raw.away();
    let carried = tokio::select! {
        carried = raw.carry(from, to, &flow, killed()) => carried,
        error = record.failed() => Err(error.into()),
        () = outage::tell(away, context.printer) => Ok(()),
    };
    let why = carried.as_ref().err().map(ToString::to_string);
    flow.close(why.as_deref()).await?;
    let reason = match carried {
        Ok(()) => CloseReason::Done,
        Err(_) => CloseReason::Target,
    };
    let end = End {
        reason,
        message: why,
        exit_status: None,
    };
    record.close(end).await?;
    carried
}
