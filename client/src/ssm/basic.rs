//! A session that is one connection: what old SSM Agents (3.0.196.0 and before) can do, and what
//! `AWS-StartSSHSession` is with all of them.
//!
//! An old SSM Agent would take one connection after another: the flag `DisconnectToPort` ends
//! one, the next byte begins another. But what it sent for the old one before it saw the flag
//! cannot be told from what belongs to the new one, and a server that speaks first never would.
//! So here every connection gets a session of its own; the flag goes out at its end, and then the
//! session ends.

use std::time::Duration;

use bytes::Bytes;
use postern_proto::ssm::payload::Flag;

use super::notice::incomplete;
use super::session::{Event, Reader, Session, Writer};
use crate::error::Error;

/// For what was written last to be acknowledged.
const SETTLING: Duration = Duration::from_secs(2);

/// A session that is one connection.
pub(super) struct Whole {
    writer: Writer,
    reader: Reader,
    is_refused: bool,
    // Of several connections one after another: the flag has a meaning.
    is_basic: bool,
}

impl Whole {
    /// Port forwarding of an old SSM Agent.
    pub(super) fn basic(session: Session) -> Self {
        Self::new(session, true)
    }

    /// One raw stream.
    pub(super) fn raw(session: Session) -> Self {
        Self::new(session, false)
    }

    fn new(session: Session, is_basic: bool) -> Self {
        let (writer, reader) = session.split();
        Self {
            writer,
            reader,
            is_refused: false,
            is_basic,
        }
    }

    pub(super) fn parts(&mut self) -> (&Writer, &mut Reader, &mut bool) {
        (&self.writer, &mut self.reader, &mut self.is_refused)
    }

    /// Whether the destination refused the connection.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Ends the connection behind what was written, then the session, at AWS too. Bounded.
    pub(super) async fn end(self) {
        let Self {
            writer,
            mut reader,
            is_basic,
            ..
        } = self;
        let last = async {
            if is_basic {
                writer.flag(Flag::DisconnectToPort).await?;
            }
            writer.settled().await
        };
        // What still arrives has nobody to take it, but would hold up the acknowledgements.
        let nobody = async { while reader.next_event().await.is_some() {} };
        tokio::select! {
            settled = tokio::time::timeout(SETTLING, last) => {
                if !matches!(settled, Ok(Ok(()))) {
                    tracing::debug!("the last bytes of a connection were not acknowledged");
                }
            }
            () = nobody => {}
        }
        if let Err(error) = writer.end().await {
            tracing::debug!(%error, session = writer.id(), "not ended at AWS");
        }
    }
}

/// What arrived next; `None` at the connection's ordinary end. Cancel-safe.
pub(super) async fn read(
    reader: &mut Reader,
    is_refused: &mut bool,
) -> Result<Option<Bytes>, Error> {
    loop {
        match reader.next_event().await {
            Some(Event::Data(bytes)) => return Ok(Some(bytes)),
            Some(Event::Flag(Flag::ConnectToPortError)) => {
                *is_refused = true;
                return Ok(None);
            }
            Some(Event::Ended(end)) => {
                return match end.why {
                    Some(error) => Err(error.into()),
                    None if end.is_incomplete => Err(incomplete()),
                    None => Ok(None),
                };
            }
            // Nothing of a port session; nothing that could be handed on.
            Some(Event::Flag(_) | Event::Stderr(_) | Event::Exit(_) | Event::Error(_)) => {}
            // The end was read before.
            None => return Ok(None),
        }
    }
}
