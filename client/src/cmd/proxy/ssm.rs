//! The same over SSM: `ssh` speaks with the target itself.

use std::sync::Arc;

use bytes::Bytes;
use postern_proto::gateway::message::CloseReason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::killed;
use crate::context::Context;
use crate::error::Error;
use crate::evidence::{Carries, End};
use crate::pipe::outage;
use crate::ssm::raw::{self, Raw};
use crate::ssm::target::{Feature, Node};
use crate::ssm::{Session, Ssm, claim};

/// Sends `early`, then relays until either side ends.
pub(super) async fn carry(
    context: &Context,
    ssm: &Arc<Ssm>,
    node: &Node,
    port: u16,
    early: Bytes,
    local: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), Error> {
    node.demand(Feature::Port)?;
    let opening = async {
        let start = raw::start(&node.id, port);
        let session = Session::start(ssm, start.clone()).await?;
        let carries = Carries::Tunnel { host: None, port };
        let record = claim::open(context, ssm, node, &session, &start, carries).await?;
        let flow = record.flow_opened("stdin").await?;
        Ok::<_, Error>((session, record, flow))
    };
    // Cut short, what was begun at AWS is still ended there.
    let (session, record, flow) = tokio::select! {
        opened = opening => opened?,
        () = killed() => return Ok(()),
    };
    let raw = Raw::of(session);
    let away = raw.away();
    let (from, to) = tokio::io::split(local);
    let carried = tokio::select! {
        carried = raw.carry((&*early).chain(from), to, &flow, killed()) => carried,
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
