//! Between a session's channel and what it does: two bounded queues and a pace.

use std::time::Duration;

use bytes::Bytes;
use postern_proto::ssm::payload::{Flag, TerminalSize};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Messages that wait in either direction.
const QUEUE: usize = 16;

/// What the client says.
#[derive(Debug)]
pub(super) enum Input {
    Data(Bytes),
    Size(TerminalSize),
    /// Basic forwarding: its connection is over.
    Disconnect,
}

/// What the client is told.
#[derive(Debug)]
pub(super) enum Output {
    Data(Bytes),
    Stderr(Bytes),
    Exit(i32),
    Flag(Flag),
    /// The last: how it went.
    Done(Result<(), String>),
}

/// A session's work while it runs. Its end is dropping it.
pub(super) struct Work {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) outputs: mpsc::Receiver<Output>,
    _task: AbortOnDropHandle<()>,
}

/// The work's side.
pub(super) struct Ends {
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) emit: Emit,
}

/// The way out, at the SSM Agent's pace.
#[derive(Clone)]
pub(super) struct Emit {
    outputs: mpsc::Sender<Output>,
    pace: Duration,
    pub(super) payload: usize,
}

impl Work {
    /// Starts what `make` gives.
    pub(super) fn start<F>(pace: Duration, payload: usize, make: impl FnOnce(Ends) -> F) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (inputs, taken) = mpsc::channel(QUEUE);
        let (given, outputs) = mpsc::channel(QUEUE);
        let emit = Emit {
            outputs: given,
            pace,
            payload: payload.max(1024),
        };
        let last = emit.clone();
        let work = make(Ends {
            inputs: taken,
            emit,
        });
        let task = tokio::spawn(async move {
            let outcome = work.await;
            last.send(Output::Done(outcome)).await;
        });
        Self {
            inputs,
            outputs,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

impl Emit {
    /// Data, in messages as long as they may be.
    pub(super) async fn data(&self, bytes: &[u8]) {
        for piece in bytes.chunks(self.payload) {
            self.send(Output::Data(Bytes::copy_from_slice(piece))).await;
            self.rest().await;
        }
    }

    /// The same for standard error.
    pub(super) async fn stderr(&self, bytes: &[u8]) {
        for piece in bytes.chunks(self.payload) {
            self.send(Output::Stderr(Bytes::copy_from_slice(piece)))
                .await;
            self.rest().await;
        }
    }

    /// Anything else, without a pause.
    pub(super) async fn send(&self, output: Output) {
        // Nobody takes it: the session is over, and this work with it.
        let _ = self.outputs.send(output).await;
    }

    /// Room for one more output, at `after` at the earliest. `None`: nobody takes it any more.
    pub(super) async fn place(
        &self,
        after: tokio::time::Instant,
    ) -> Option<mpsc::Permit<'_, Output>> {
        tokio::time::sleep_until(after).await;
        self.outputs.reserve().await.ok()
    }

    /// When the pause after a message sent now is over.
    pub(super) fn rested(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.pace
    }

    /// The pause after a message.
    pub(super) async fn rest(&self) {
        if !self.pace.is_zero() {
            tokio::time::sleep(self.pace).await;
        }
    }
}
