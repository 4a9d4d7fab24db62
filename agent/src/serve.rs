//! One pipe's life as a plain sequence.
//!
//! ```text
//! attempt  Open -> who -> evidence? -> target -> policy -> dial -> (ssh) -> durable -> Granted
//! ask      what it asks for, and whether policy allows it
//! reach    the way to the target
//! resume   pipes that go on on a new connection
//! ```
//!
//! Then relay -> Close.

mod ask;
mod attempt;
mod reach;
mod resume;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use postern_proto::gateway::message::{Granted, Open, Witness};
use postern_proto::names::SessionId;
use zeroize::Zeroizing;

use crate::assemble::Core;
use crate::end::End;
use crate::evidence::{Recording, now_ms};
use crate::limits::Place;
use crate::pipe::{Asked, OpenError, Opening};
use crate::refusal::Refusal;
use crate::session::{Peer, PipePlace, Session};
use crate::tls::Connection;
use crate::{shell, tunnel};
use attempt::Attempt;
use reach::Far;

/// Bytes kept per pipe for a peer that has not acknowledged them.
const CEILING: usize = 32 * 1024 * 1024;

/// A request that may be answered with yes.
struct Ready {
    session: Arc<Session>,
    place: PipePlace,
    far: Far,
    /// Of a tunnel's flow; SSH channels begin their own.
    recording: Option<Recording>,
    granted: Granted,
    /// The one in `granted`.
    secret: Zeroizing<[u8; 32]>,
}

/// Serves one authenticated connection: to the end of the pipe that it opens, or until another
/// pipe's task has it.
pub(crate) async fn serve(core: &Arc<Core>, peer: Peer, place: Place, stream: Connection) {
    let mut opening = Opening::new(stream, core.patience.clone());
    let asked = tokio::select! {
        asked = opening.asked() => asked,
        // A spare connection holds nothing that a drain should wait for.
        () = core.drain.cancelled() => Err(OpenError::Left),
    };
    let id = fresh_id();
    let open = match asked {
        Ok(Asked::Open(open)) => open,
        Ok(Asked::Resume(resume)) => {
            return resume::resume(core, &peer, place, opening, &resume, id).await;
        }
        Err(error @ (OpenError::Left | OpenError::Late)) => {
            tracing::debug!(source = %peer.source, %error, "no request");
            return;
        }
        Err(error) => {
            tracing::warn!(source = %peer.source, session = %id, %error, "no request");
            let refusal = Refusal::Protocol(error.to_string());
            return opening.deny(&refusal.denied(id)).await;
        }
    };
    match prepare(core, &peer, &open, id).await {
        Ok(ready) => ready.run(core, place, opening).await,
        Err(refusal) => opening.deny(&refusal.denied(id)).await,
    }
}

impl Ready {
    /// Says yes, relays, and says how it ended.
    async fn run(self, core: &Core, place: Place, opening: Opening<Connection>) {
        let session = &self.session;
        let principal = session.grant().request().who.principal();
        let budget = core.limits.kept(&principal.key());
        tracing::info!(session = %session.id(), pipe = self.granted.pipe, principal = %principal.arn,
            target = %session.target().name, address = self.granted.target.address, "granted");
        let pipe = self.place.number();
        let mut lifeline = core.resumable.hold(session, pipe, &self.secret, place);
        let (driver, end) = match opening.grant(&self.granted, CEILING, budget).await {
            Err(error) => (None, End::Pipe(error)),
            Ok(driver) => {
                let (driver, end) = match (self.far, &self.recording) {
                    (Far::Tunnel(stream), Some(recording)) => {
                        tunnel::run(driver, stream, session, recording, &mut lifeline).await
                    }
                    (Far::Ssh(target), _) => {
                        shell::run(driver, target, session, &mut lifeline).await
                    }
                    (Far::Tunnel(_), None) => (
                        driver,
                        End::Internal("a tunnel without a recording".to_owned()),
                    ),
                };
                (Some(driver), end)
            }
        };
        if let Some(recording) = &self.recording {
            close_recording(session, recording).await;
        }
        let mut witness = self
            .place
            .leave(&core.sessions, &core.lifetimes, &end)
            .await;
        if let Some(closing) = &mut witness {
            let known = log_size(&self.granted.evidence);
            if core.evidence.prove_growth(closing, known).await.is_err() {
                // Without its proof the client could only refuse it.
                witness = None;
            }
        }
        if let Some(driver) = driver {
            let silence = core.patience.farewell;
            lifeline.close(driver, &end, witness, silence).await;
        }
    }
}

/// The size of the log that a checkpoint states: its second line (C2SP tlog-checkpoint).
fn log_size(witness: &Witness) -> u64 {
    let size = witness.checkpoint.lines().nth(1);
    size.and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Everything before yes. A refusal has been logged.
async fn prepare(
    core: &Arc<Core>,
    peer: &Peer,
    open: &Open,
    id: SessionId,
) -> Result<Ready, Refusal> {
    let who = match (core.rules.verify)(&peer.certificate) {
        Ok(who) => who,
        Err(fault) => {
            // Without a valid certificate there is no principal to log.
            core.strangers.note(peer.source.ip(), "certificate");
            return Err(Refusal::Certificate(fault));
        }
    };
    let mut attempt = Attempt {
        core,
        peer,
        open,
        who,
        target: None,
        fresh: None,
        id,
    };
    let refusal = match attempt.run().await {
        Ok(ready) => return Ok(ready),
        Err(refusal) => refusal,
    };
    attempt.log_refusal(&refusal).await;
    Err(refusal)
}

async fn close_recording(session: &Session, recording: &Recording) {
    if let Err(error) = session.close_recording(recording).await {
        tracing::error!(session = %session.id(), %error, "a recording could not be closed");
        session.end_for(&error);
    }
}

fn fresh_id() -> SessionId {
    SessionId::of_agent(u64::try_from(now_ms()).unwrap_or(0), rand::random())
}
