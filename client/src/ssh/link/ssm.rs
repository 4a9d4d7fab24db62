//! SSH over an SSM session, end to end with the target: AWS carries it and sees nothing.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Below, CLOSING, HANDSHAKE, Link, STREAM, parts};
use crate::error::Error;
use crate::evidence::Record;
use crate::pipe::outage::Away;
use crate::ssh::SshError;
use crate::ssh::client::{self, taken};
use crate::ssh::host_key::Trust;
use crate::ssh::known_hosts::KnownHosts;
use crate::ssh::login::Login;
use crate::ssm::raw::Raw;

/// For a handshake during which somebody may be asked: about a new host key, for a passphrase.
const PATIENCE: Duration = Duration::from_secs(600);

/// An SSM session that carries SSH.
pub(super) struct Stream {
    away: watch::Receiver<Away>,
    driver: AbortOnDropHandle<Result<(), Error>>,
    // An order to the driver, and that it is over.
    leave: CancellationToken,
    left: CancellationToken,
}

impl Link {
    /// Speaks SSH over `raw` up to the authenticated connection. Whoever uses it writes `record`.
    pub async fn over_ssm(
        raw: Raw,
        record: Record,
        hosts: KnownHosts,
        login: Login,
        may_ask: bool,
    ) -> Result<Self, SshError> {
        let (near, far) = tokio::io::duplex(STREAM);
        let config = client::config_of_host(&hosts.algorithms());
        let (_trust, trusted) = watch::channel(Some(Trust::Known(hosts)));
        let (handler, ears) = parts(trusted);
        let (leave, left) = (CancellationToken::new(), CancellationToken::new());
        let (order, told) = (leave.clone(), left.clone().drop_guard());
        let away = raw.away();
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _told = told;
            let (from, to) = tokio::io::split(far);
            raw.carry_recorded(from, to, &record, order.cancelled())
                .await
        }));
        let time = if may_ask { PATIENCE } else { HANDSHAKE };
        let handshake = client::handshake(near, config, handler, login);
        let failure = match tokio::time::timeout(time, handshake).await {
            Ok(Ok(handle)) => {
                let stream = Stream {
                    away,
                    driver,
                    leave,
                    left,
                };
                return Ok(Self::new(handle, Below::Ssm(stream), ears));
            }
            Ok(Err(error)) => error,
            Err(_) => SshError::Protocol(format!("no handshake within {} s", time.as_secs())),
        };
        if let Some(fault) = taken(&ears.fault) {
            return Err(SshError::UnknownHost(fault));
        }
        // A refused login ends the session; its own reason is the one that counts.
        if matches!(failure, SshError::Login { .. }) {
            return Err(failure);
        }
        Err(why(driver, failure).await)
    }
}

impl Stream {
    pub(super) fn away(&self) -> watch::Receiver<Away> {
        self.away.clone()
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
        self.leave.cancel();
        match tokio::time::timeout(CLOSING, self.driver).await {
            Ok(Ok(Err(error))) => Err(SshError::Carrier(error)),
            // It took too long to end: what there was to know is known.
            _ => Ok(()),
        }
    }

    pub(super) async fn why(self, otherwise: SshError) -> SshError {
        why(self.driver, otherwise).await
    }
}

/// Prefers what the session knows about the end to what SSH saw of it.
async fn why(driver: AbortOnDropHandle<Result<(), Error>>, otherwise: SshError) -> SshError {
    match tokio::time::timeout(CLOSING, driver).await {
        Ok(Ok(Err(error))) => SshError::Carrier(error),
        _ => otherwise,
    }
}
