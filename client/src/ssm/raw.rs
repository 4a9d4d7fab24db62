//! `AWS-StartSSHSession`: one stream of bytes to one port, for an SSH client on top.
//!
//! The SSM Agent connects before the first byte, and the server's end ends the session. Nothing
//! carries our end: what was sent is waited for, then the session is ended.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::basic::Whole;
use super::relay::{Ending, Far, Meter, Moved, Witness, relay};
use super::{Session, Start, claim, document, notice};
use crate::error::Error;
use crate::evidence::{Flow, Record};
use crate::pipe::outage::Away;

/// How long the server may be silent after the local side ended: it may still answer what was
/// said last. `ssh` does not wait for us then.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// One stream to a port of a managed node.
pub struct Raw {
    whole: Whole,
    away: watch::Receiver<Away>,
}

impl Raw {
    /// From a session of [`start`].
    pub fn of(session: Session) -> Self {
        Self {
            away: session.away(),
            whole: Whole::raw(session),
        }
    }

    /// Tells whether the network is lost.
    pub fn away(&self) -> watch::Receiver<Away> {
        self.away.clone()
    }

    /// Copies both ways until either side ends or `stop` resolves, then ends the session: what
    /// the local side said last is waited for. Bounded from there on. Every byte is counted in
    /// `flow` before it moves.
    pub async fn carry<R, W>(
        self,
        from: R,
        to: W,
        flow: &Flow,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.relay(from, to, Witness::Flow(flow), stop).await
    }

    /// The same below a client of ours that writes `record` itself.
    pub async fn carry_recorded<R, W>(
        self,
        from: R,
        to: W,
        record: &Record,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.relay(from, to, Witness::Above(record), stop).await
    }

    async fn relay<R, W>(
        self,
        from: R,
        to: W,
        witness: Witness<'_>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut far = Far::Whole(self.whole);
        let moved = Moved::default();
        let meter = Meter::new(&moved, witness);
        let ending = {
            let relaying = relay(&mut far, from, to, &meter, || LAST_ANSWER);
            tokio::pin!(relaying);
            tokio::select! {
                ending = &mut relaying => ending,
                () = stop => tokio::time::timeout(LAST_ANSWER, relaying)
                    .await
                    .unwrap_or(Ending::Left),
            }
        };
        let is_refused = far.is_refused();
        if let Far::Whole(whole) = far {
            whole.end().await;
        }
        match ending {
            Ending::Closed if is_refused => Err(notice::no_ssh()),
            // A local side that went away is its own matter.
            Ending::Closed | Ending::Left | Ending::Local(_) => Ok(()),
            Ending::Over(error) => Err(error),
        }
    }
}

/// The session for one stream to `port` of a managed node.
pub fn start(node: &str, port: u16) -> Start {
    Start {
        target: node.to_owned(),
        document: document::SSH.to_owned(),
        parameters: document::parameters([("portNumber", port.to_string())]),
        reason: claim::reason(),
    }
}
