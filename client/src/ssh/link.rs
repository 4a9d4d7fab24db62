//! One SSH connection, over a pipe of the agent or over an SSM session.

mod gateway;
mod ssm;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::client::{Handle, Msg};
use russh::{Channel, ChannelOpenFailure, Disconnect};
use tokio::sync::{mpsc, watch};

use super::SshError;
use super::client::{Handler, Inbound, taken};
use super::host_key::Trust;
use crate::pipe::outage::Away;

/// What russh may write before the pipe takes it: above the sum of the windows that the agent
/// opens to our channels (2 MiB each), so that russh never waits for its own writes and always
/// reads. Memory is taken only when used.
const STREAM: usize = 64 * 1024 * 1024;
/// For the SSH handshake once there is a stream.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// For the other side to say goodbye, with its evidence, once SSH is over.
const CLOSING: Duration = Duration::from_secs(5);
/// Channels that the other side opened and nobody looked at yet.
const OFFERS: usize = 16;

/// An authenticated SSH connection.
pub struct Link {
    handle: Handle<Handler>,
    below: Below,
    inbound: Option<mpsc::Receiver<Inbound>>,
    refusal: Arc<Mutex<Option<String>>>,
}

/// What carries it.
enum Below {
    Pipe(gateway::Pipe),
    Ssm(ssm::Stream),
}

/// What the handler tells us.
struct Ears {
    inbound: mpsc::Receiver<Inbound>,
    refusal: Arc<Mutex<Option<String>>>,
    fault: Arc<Mutex<Option<String>>>,
}

fn parts(trusted: watch::Receiver<Option<Trust>>) -> (Handler, Ears) {
    let (offered, inbound) = mpsc::channel(OFFERS);
    let (refusal, fault) = (Arc::default(), Arc::default());
    let handler = Handler {
        trusted,
        offered,
        fault: Arc::clone(&fault),
        refusal: Arc::clone(&refusal),
    };
    let ears = Ears {
        inbound,
        refusal,
        fault,
    };
    (handler, ears)
}

impl Link {
    fn new(handle: Handle<Handler>, below: Below, ears: Ears) -> Self {
        Self {
            handle,
            below,
            inbound: Some(ears.inbound),
            refusal: ears.refusal,
        }
    }

    /// Tells whether the network is lost.
    pub fn away(&self) -> watch::Receiver<Away> {
        match &self.below {
            Below::Pipe(pipe) => pipe.away(),
            Below::Ssm(stream) => stream.away(),
        }
    }

    /// A session channel.
    pub(super) async fn session(&self) -> Result<Channel<Msg>, SshError> {
        let opened = self.handle.channel_open_session().await;
        opened.map_err(|error| self.refused("a session on the target", &error))
    }

    /// A connection from the target to `host`:`port`.
    pub(super) async fn direct(
        &self,
        host: &str,
        port: u16,
        origin: (&str, u16),
    ) -> Result<Channel<Msg>, SshError> {
        let opened = self
            .handle
            .channel_open_direct_tcpip(host, port.into(), origin.0, origin.1.into())
            .await;
        opened.map_err(|error| {
            self.refused(
                &format!("a connection from the target to {host}:{port}"),
                &error,
            )
        })
    }

    /// A listener on the target; returns its port.
    pub(super) async fn listen(&self, address: &str, port: u16) -> Result<u32, SshError> {
        match self.handle.tcpip_forward(address, port.into()).await {
            Ok(0) => Ok(port.into()),
            Ok(chosen) => Ok(chosen),
            Err(error) => {
                Err(self.refused(&format!("a listener on the target at port {port}"), &error))
            }
        }
    }

    /// The channels that the other side opens; `None` when they are taken already.
    pub(super) fn inbound(&mut self) -> Option<mpsc::Receiver<Inbound>> {
        self.inbound.take()
    }

    /// Whether what carries it has ended.
    pub(super) fn is_over(&self) -> bool {
        let is_below = match &self.below {
            Below::Pipe(pipe) => pipe.is_over(),
            Below::Ssm(stream) => stream.is_over(),
        };
        self.handle.is_closed() || is_below
    }

    /// Tells the other side that this connection is over, whatever runs on it. Bounded.
    pub(super) async fn leave(&self) {
        match &self.below {
            Below::Pipe(pipe) => pipe.leave().await,
            Below::Ssm(stream) => stream.leave().await,
        }
    }

    /// Ends SSH and what carries it, and checks the evidence that the agent closes with. Bounded.
    pub async fn close(self) -> Result<(), SshError> {
        let away = self.away();
        let Self { handle, below, .. } = self;
        if away.borrow().since.is_some() {
            // Nobody hears a farewell: the agent ends the session once its time is over.
            return Ok(());
        }
        // Best effort: a connection that is gone needs no farewell.
        let _gone = handle.disconnect(Disconnect::ByApplication, "", "").await;
        drop(handle);
        match below {
            Below::Pipe(pipe) => pipe.close().await,
            Below::Ssm(stream) => stream.close().await,
        }
    }

    /// Why the connection broke; `otherwise` when what carries it does not know either.
    pub(crate) async fn why(self, otherwise: SshError) -> SshError {
        drop(self.handle);
        match self.below {
            Below::Pipe(pipe) => pipe.why(otherwise).await,
            Below::Ssm(stream) => stream.why(otherwise).await,
        }
    }

    fn refused(&self, what: &str, error: &russh::Error) -> SshError {
        let reason = match (error, taken(&self.refusal)) {
            (russh::Error::ChannelOpenFailure(_), Some(told)) if !told.is_empty() => told,
            (
                russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited),
                _,
            ) => "not allowed".to_owned(),
            (russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed), _) => {
                "the target could not connect".to_owned()
            }
            (russh::Error::RequestDenied, _) => "not allowed, or the port is taken".to_owned(),
            (error, _) => error.to_string(),
        };
        SshError::Refused {
            what: what.to_owned(),
            reason,
        }
    }
}
