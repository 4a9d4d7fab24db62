//! SSH over a pipe of a gateway session.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postern_proto::audit::note::Checkpoint;
use postern_proto::gateway::EARLY_DATA;
use postern_proto::gateway::message::{CloseReason, Granted, OpenKind};
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Below, CLOSING, HANDSHAKE, Link, STREAM, parts};
use crate::gateway::{Gateway, Membership, Opened, Request};
use crate::pipe::outage::Away;
use crate::pipe::{self, Early, Outcome, PipeError};
use crate::ssh::SshError;
use crate::ssh::client::{self, taken};
use crate::ssh::host_key::{AgentKey, Trust};
use crate::ssh::login::Login;

/// For our own identification: it needs no network.
const IDENTIFICATION: Duration = Duration::from_secs(5);

/// A pipe that carries SSH.
pub(super) struct Pipe {
    gateway: Arc<Gateway>,
    granted: Granted,
    membership: Membership,
    driver: AbortOnDropHandle<Result<Outcome, PipeError>>,
    // An order to the driver, and that it is over.
    leave: CancellationToken,
    left: CancellationToken,
    seen: Checkpoint,
}

impl Link {
    /// Opens a session, or a further pipe of one, and speaks SSH on it up to the authenticated
    /// connection. Our identification travels with the request.
    pub async fn open(
        gateway: &Arc<Gateway>,
        request: &Request,
        session: Option<&Membership>,
    ) -> Result<Self, SshError> {
        let OpenKind::Ssh { user } = &request.kind else {
            return Err(SshError::Protocol(
                "a tunnel carries no SSH of ours".to_owned(),
            ));
        };
        let (near, mut far) = tokio::io::duplex(STREAM);
        let (trust, trusted) = watch::channel(None);
        let (handler, ears) = parts(trusted);
        // The agent asks for nothing: TLS said who this is.
        let login = Login::nothing(user.clone());
        let handshake = AbortOnDropHandle::new(tokio::spawn(client::handshake(
            near,
            client::config_of_agent(),
            handler,
            login,
        )));
        let early = identification(&mut far).await?;
        let mut early = Early::said(&early);
        let opened = match session {
            None => gateway.open(request, &mut early).await?,
            Some(session) => gateway.join(request, session, &mut early, None).await?,
        };
        let membership = opened.membership();
        let Opened {
            granted,
            mut wire,
            seen,
        } = opened;
        trust.send_replace(Some(Trust::Agent(AgentKey {
            ca: granted.ssh_host_ca.clone().unwrap_or_default(),
            agent: gateway.agent().id.to_string(),
        })));
        let (leave, left) = (CancellationToken::new(), CancellationToken::new());
        let (order, told) = (leave.clone(), left.clone().drop_guard());
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _told = told;
            let outcome = tokio::select! {
                outcome = pipe::relay(&mut wire, &mut far) => outcome,
                () = order.cancelled() => Err(PipeError::Local(io::ErrorKind::Interrupted.into())),
            };
            match &outcome {
                Ok(_) => wire.farewell(CloseReason::Done).await,
                // The agent would wait for us to come back.
                Err(PipeError::Local(_)) => wire.farewell(CloseReason::Client).await,
                Err(_) => {}
            }
            outcome
        }));
        let failure = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(Ok(handle))) => {
                let pipe = Pipe {
                    gateway: Arc::clone(gateway),
                    granted,
                    membership,
                    driver,
                    leave,
                    left,
                    seen,
                };
                return Ok(Self::new(handle, Below::Pipe(pipe), ears));
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => SshError::Protocol("the handshake was abandoned".to_owned()),
            Err(_) => SshError::Protocol(format!("no handshake within {} s", HANDSHAKE.as_secs())),
        };
        if let Some(fault) = taken(&ears.fault) {
            return Err(SshError::HostKey(fault));
        }
        Err(why(driver, failure).await)
    }

    /// The agent's yes, where an agent carries it.
    pub fn granted(&self) -> Option<&Granted> {
        match &self.below {
            Below::Pipe(pipe) => Some(&pipe.granted),
            Below::Ssm(_) => None,
        }
    }

    /// What further pipes of this session need, where an agent carries it.
    pub fn membership(&self) -> Option<&Membership> {
        match &self.below {
            Below::Pipe(pipe) => Some(&pipe.membership),
            Below::Ssm(_) => None,
        }
    }
}

impl Pipe {
    pub(super) fn away(&self) -> watch::Receiver<Away> {
        self.gateway.away()
    }

    pub(super) fn is_over(&self) -> bool {
        self.driver.is_finished()
    }

    pub(super) async fn leave(&self) {
        self.leave.cancel();
        // What is not said by then is not said.
        let _late = tokio::time::timeout(CLOSING, self.left.cancelled()).await;
    }

    pub(super) async fn close(self) -> Result<(), SshError> {
        let Self {
            gateway,
            driver,
            seen,
            ..
        } = self;
        let outcome = match tokio::time::timeout(CLOSING, driver).await {
            Ok(Ok(outcome)) => outcome?,
            // The agent took too long to say goodbye: what there was to know is known.
            _ => return Ok(()),
        };
        gateway.check_close(&outcome.close, &seen)?;
        match pipe::ending(&outcome.close) {
            Some(sentence) => Err(SshError::Ended(sentence)),
            None => Ok(()),
        }
    }

    pub(super) async fn why(self, otherwise: SshError) -> SshError {
        why(self.driver, otherwise).await
    }
}

/// Prefers what the pipe knows about the end to what SSH saw of it.
async fn why(
    driver: AbortOnDropHandle<Result<Outcome, PipeError>>,
    otherwise: SshError,
) -> SshError {
    match tokio::time::timeout(CLOSING, driver).await {
        Ok(Ok(Err(error))) => error.into(),
        Ok(Ok(Ok(outcome))) => match pipe::ending(&outcome.close) {
            Some(sentence) => SshError::Ended(sentence),
            None => otherwise,
        },
        _ => otherwise,
    }
}

/// Takes what russh says first, to send it with the request.
async fn identification(stream: &mut DuplexStream) -> Result<Bytes, SshError> {
    let mut early = BytesMut::with_capacity(EARLY_DATA);
    match tokio::time::timeout(IDENTIFICATION, stream.read_buf(&mut early)).await {
        Ok(Ok(length)) if length > 0 => Ok(early.freeze()),
        _ => Err(SshError::Protocol(
            "the SSH client did not start".to_owned(),
        )),
    }
}
