//! This process's standard output and standard error, for what a session shows.
//!
//! One thread of their own writes what is there by then in one go, in the order in which it was
//! given: a hand-over per write, which tokio's streams make, costs bulk more than its decryption,
//! and lets an error overtake the output before it. Nothing waits for the end of a line.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::AsyncWrite;

/// Bytes that may wait to be written; who has more waits.
const FULL: usize = 256 * 1024;
/// How long the end of a session waits for a reader that does not read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Both streams, and what is left of them when a session ends.
#[derive(Debug)]
pub struct Stdio {
    /// Standard output.
    pub output: Outlet,
    /// Standard error.
    pub error: Outlet,
    /// For the end.
    pub rest: Rest,
}

/// What was given to the streams and may not be written yet.
#[derive(Debug)]
pub struct Rest(Arc<Shared>);

/// One of the two streams. Flushed means that the system has everything.
#[derive(Debug)]
pub struct Outlet {
    which: Which,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Output,
    Error,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is to be written, in order; neighbours go to different streams.
    waiting: VecDeque<(Which, Vec<u8>)>,
    /// Bytes in it, and in the hands of the thread.
    length: usize,
    /// Whether the thread waits for more.
    is_idle: bool,
    output: End,
    error: End,
    /// Who waits for the rest.
    settling: Option<Waker>,
}

/// A stream's side of an [`Outlet`].
#[derive(Debug, Default)]
struct End {
    waker: Option<Waker>,
    failed: Option<io::Error>,
    is_over: bool,
}

/// Standard output and standard error of this process.
///
/// # Errors
///
/// When the system gives no descriptor or no thread.
pub fn outlets() -> io::Result<Stdio> {
    let output = duplicate(io::stdout().as_fd())?;
    let error = duplicate(io::stderr().as_fd())?;
    over(output, error)
}

/// A file without the buffer, and without the lock, of std's streams.
fn duplicate(stream: BorrowedFd<'_>) -> io::Result<Patient> {
    Ok(Patient(File::from(stream.try_clone_to_owned()?)))
}

fn over(
    mut output: impl Write + Send + 'static,
    mut error: impl Write + Send + 'static,
) -> io::Result<Stdio> {
    let shared = Arc::new(Shared::default());
    let outlet = |which| Outlet {
        which,
        shared: Arc::clone(&shared),
    };
    let stdio = Stdio {
        output: outlet(Which::Output),
        error: outlet(Which::Error),
        rest: Rest(Arc::clone(&shared)),
    };
    let thread = thread::Builder::new().name("stdio".to_owned());
    thread.spawn(move || {
        while let Some((which, bytes)) = shared.next() {
            let written = match which {
                Which::Output => output.write_all(&bytes),
                Which::Error => error.write_all(&bytes),
            };
            shared.written(which, bytes.len(), written);
        }
    })?;
    Ok(stdio)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written next; nothing once both outlets are gone.
    fn next(&self) -> Option<(Which, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.waiting.pop_front() {
                return Some(chunk);
            }
            if state.output.is_over && state.error.is_over {
                return None;
            }
            state.is_idle = true;
            let woken = self.work.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self, which: Which, length: usize, result: io::Result<()>) {
        let mut state = self.lock();
        state.length -= length;
        if let Err(error) = result {
            state.end(which).failed = Some(error);
        }
        let wakers = [
            state.output.waker.take(),
            state.error.waker.take(),
            state.settling.take(),
        ];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl State {
    fn end(&mut self, which: Which) -> &mut End {
        match which {
            Which::Output => &mut self.output,
            Which::Error => &mut self.error,
        }
    }
}

impl Rest {
    /// Waits until everything is written or cannot be, a second at most: a reader that stopped
    /// holds up no exit.
    pub async fn settle(self) {
        let written = poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.length == 0 {
                return Poll::Ready(());
            }
            state.settling = Some(cx.waker().clone());
            Poll::Pending
        });
        // What nobody reads in time is lost with us.
        let _in_time = tokio::time::timeout(LAST_WORDS, written).await;
    }
}

impl Outlet {
    /// The state, unless writing has failed.
    fn working(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.shared.lock();
        match &state.end(self.which).failed {
            // An error is no value to copy; what it says is in its number.
            Some(failed) => Err(match failed.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => failed.kind().into(),
            }),
            None => Ok(state),
        }
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.working()?;
        let length = bytes.len().min(FULL.saturating_sub(state.length));
        if length == 0 && !bytes.is_empty() {
            state.end(self.which).waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes = &bytes[..length];
        state.length += length;
        match state.waiting.back_mut() {
            Some((which, waiting)) if *which == self.which => waiting.extend_from_slice(bytes),
            _ => state.waiting.push_back((self.which, bytes.to_vec())),
        }
        let is_idle = mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            self.shared.work.notify_one();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.working()?;
        if state.length == 0 {
            return Poll::Ready(Ok(()));
        }
        state.end(self.which).waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end(self.which).is_over = true;
        drop(state);
        self.shared.work.notify_one();
    }
}

/// A stream that waits where another program made it one that does not.
#[derive(Debug)]
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
