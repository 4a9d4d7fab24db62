//! The beginning of a pipe: one `Open`, with early data behind it, and its answer.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use postern_proto::gateway::frame::{self, FrameKind, Piece};
use postern_proto::gateway::message::{Denied, Granted, Open};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Early, PipeError, Wire};

/// For the agent to decide, dial the target and write its evidence.
const ANSWER: Duration = Duration::from_secs(60);

/// What the agent says to an `Open`.
pub enum Answer<S> {
    /// Yes: the pipe runs.
    Granted(Box<Granted>, Wire<S>),
    /// No, and why. The connection is over.
    Denied(Box<Denied>),
}

/// Asks for a pipe on `stream`. `early` goes out with the request, and what the local side says
/// until the answer; after a denial the caller still has it for the next try.
pub async fn open<S>(
    stream: S,
    request: &Open,
    early: &mut Early<'_>,
) -> Result<Answer<S>, PipeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let body = serde_json::to_vec(request).unwrap_or_default();
    let opening = frame::control(FrameKind::Open, &body)
        .ok_or(PipeError::Unexpected("the request is too long"))?;
    let mut wire = Wire::new(stream, opening);
    for frame in early.frames() {
        wire.machine_mut().send(frame);
    }
    let mut writing = true;
    let answer = poll_fn(|cx| {
        while let Poll::Ready(frame) = early.poll_frame(cx) {
            wire.machine_mut().send(frame);
        }
        // A write error says little: the reason (`Denied`, an alert) stands in what is read, which
        // ends too when there is none.
        writing = writing && !matches!(wire.poll_transmit(cx), Poll::Ready(Err(_)));
        wire.poll_piece(cx)
    });
    let piece = tokio::time::timeout(ANSWER, answer)
        .await
        .map_err(|_| PipeError::Unanswered(ANSWER.as_secs()))??;
    let Piece::Frame(kind, body) = piece else {
        return Err(PipeError::Unexpected("data before the answer to `Open`"));
    };
    match kind {
        FrameKind::Granted => serde_json::from_slice(&body)
            .map(|granted| Answer::Granted(Box::new(granted), wire))
            .map_err(|_| PipeError::Unexpected("malformed Granted frame")),
        FrameKind::Denied => serde_json::from_slice(&body)
            .map(|denied| Answer::Denied(Box::new(denied)))
            .map_err(|_| PipeError::Unexpected("malformed Denied frame")),
        _ => Err(PipeError::Unexpected(
            "another frame than the answer to `Open`",
        )),
    }
}
