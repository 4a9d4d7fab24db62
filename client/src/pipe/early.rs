//! What goes out behind an `Open`, before its answer.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use postern_proto::gateway::EARLY_DATA;
use postern_proto::gateway::frame::{self, DATA_LIMIT, HEADER};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes per read of the local side.
const READ: usize = 16 * 1024;

/// Bytes for the target that are there before the pipe is granted. They travel with the request
/// and save a round trip. All are kept, at most [`EARLY_DATA`] of them: a refused certificate or a
/// fresh code means to ask again.
#[derive(Default)]
pub struct Early<'a> {
    kept: BytesMut,
    more: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
}

impl<'a> Early<'a> {
    /// Nothing: the local side has not spoken, or is somebody whose bytes must wait.
    pub fn none() -> Self {
        Self::default()
    }

    /// What the local side said already. Beyond [`EARLY_DATA`] it is not taken.
    pub fn said(bytes: &[u8]) -> Self {
        Self {
            kept: bytes.iter().copied().take(EARLY_DATA).collect(),
            more: None,
        }
    }

    /// What `local` says while the agent decides; whatever is beyond [`EARLY_DATA`] stays in it.
    pub fn from_local(local: &'a mut (dyn AsyncRead + Unpin + Send)) -> Self {
        Self {
            kept: BytesMut::new(),
            more: Some(local),
        }
    }

    /// Frames of all that is known so far, for a further request.
    pub(super) fn frames(&self) -> impl Iterator<Item = Bytes> {
        self.kept.chunks(DATA_LIMIT).filter_map(framed)
    }

    /// The frame of what the local side says next. Pending for good when it ended, or said all
    /// that may go out early: its end is the relay's matter.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let room = EARLY_DATA.saturating_sub(self.kept.len()).min(DATA_LIMIT);
        let Some(local) = self.more.as_mut().filter(|_| room > 0) else {
            return Poll::Pending;
        };
        let mut buffer = vec![0; room.min(READ)];
        let mut read = ReadBuf::new(&mut buffer);
        match Pin::new(&mut **local).poll_read(cx, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                self.kept.extend_from_slice(read.filled());
                match framed(read.filled()) {
                    Some(frame) => Poll::Ready(frame),
                    None => Poll::Pending,
                }
            }
            Poll::Ready(_) => {
                self.more = None;
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Early<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Early")
            .field("bytes", &self.kept.len())
            .finish_non_exhaustive()
    }
}

fn framed(part: &[u8]) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(HEADER + part.len());
    buffer.resize(HEADER, 0);
    buffer.extend_from_slice(part);
    frame::data(buffer)
}
