//! A stream that gives a stranger only so many bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts what is read; past the limit every read fails, until [`BoundedInput::lift`].
pub struct BoundedInput<IO> {
    io: IO,
    left: Option<u64>,
}

impl<IO> BoundedInput<IO> {
    /// Allows `limit` bytes of input.
    pub fn new(io: IO, limit: u64) -> Self {
        Self {
            io,
            left: Some(limit),
        }
    }

    /// The peer is authenticated: no limit any more.
    pub fn lift(&mut self) {
        self.left = None;
    }

    /// The stream beneath.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for BoundedInput<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(left) = this.left else {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        };
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client sent too much before it was authenticated",
            )));
        }
        // No unsafe of our own: the bytes go through the initialized part of the buffer.
        let room = usize::try_from(left).unwrap_or(usize::MAX);
        let space = buffer.initialize_unfilled();
        let room = space.len().min(room);
        let mut part = ReadBuf::new(&mut space[..room]);
        ready!(Pin::new(&mut this.io).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        this.left = Some(left.saturating_sub(read as u64));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for BoundedInput<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn input_past_the_limit_fails_until_it_is_lifted() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(&[7; 40]).await.unwrap();
        let mut bounded = BoundedInput::new(near, 16);
        let mut bytes = [0; 64];
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 16);
        assert!(bounded.read(&mut bytes).await.is_err());
        bounded.lift();
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 24);
    }
}
