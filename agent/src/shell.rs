//! Relays a pipe of kind `ssh`: the SSH server reads and writes the pipe through a duplex.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::CloseReason;
use tokio::io::duplex;
use tokio::time::timeout;

use crate::doors::SshTarget;
use crate::end::End;
use crate::pipe::{Driver, PipeError, Relay};
use crate::session::{Change, Lifeline, Session};
use crate::tls::Connection;
use crate::tunnel::ordered;

/// Bytes between pipe and SSH server, each way: what an idle session may keep.
const BETWEEN: usize = 32 * 1024;
/// How long the SSH server may take to close its recordings once its pipe is gone.
const WIND_UP: Duration = Duration::from_secs(5);

/// Serves until either side ends or the session must, over as many connections as it takes.
pub(crate) async fn run(
    driver: Driver<Connection>,
    target: SshTarget,
    session: &Arc<Session>,
    lifeline: &mut Lifeline,
) -> (Driver<Connection>, End) {
    let (near, far) = duplex(BETWEEN);
    let mut serving = (target.serve)(far, Arc::clone(session));
    let mut served = None;
    let mut relay = Relay::server(driver, near);
    let mut ending = session.ending();
    let end = loop {
        tokio::select! {
            biased;
            end = ordered(&mut ending) => break end,
            change = lifeline.change() => match change {
                Change::Over => break lifeline.expired(),
                Change::Takeover(takeover) => {
                    if let Err(violation) = lifeline.attach(relay.driver(), *takeover).await {
                        break End::Pipe(violation.into());
                    }
                }
            },
            finish = poll_fn(|cx| relay.poll(cx)) => {
                if let Some(end) = lifeline.outlive(relay.driver(), finish).await {
                    break end;
                }
            }
            result = &mut serving, if served.is_none() => served = Some(result),
        }
    };
    let driver = relay.into_driver();
    if served.is_none() {
        // The duplex is closed: the server closes its channels and recordings, and ends.
        served = timeout(WIND_UP, serving).await.ok();
    }
    let Some(served) = served else {
        return (
            driver,
            End::Internal("the SSH server did not end".to_owned()),
        );
    };
    session.add_bytes(served.up, served.down);
    let end = match end {
        // The server knows whether a client that left had what it came for.
        End::Done | End::Client(_) => End::Shell(served),
        // `ssh` kills its ProxyCommand when it is done.
        End::Pipe(PipeError::Lost(_)) if served.reason == CloseReason::Done => End::Shell(served),
        End::Ordered(_) => end,
        other => {
            tracing::debug!(session = %session.id(), ?served, "the SSH server ended");
            other
        }
    };
    (driver, end)
}
