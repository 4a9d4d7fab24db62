//! The TCP socket: the listening one, and the connected one below TLS.
//!
//! rustls reads at most 4 KiB at a time, so a record would cost five system calls; here one read
//! takes what has arrived and TLS is served from that. A fresh connection, whose peer has proved
//! nothing, gets small reads; one that moves data gets a frame's. An idle one holds no buffer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::pipe;

/// What one read takes in at first.
const SMALL: usize = 8 * 1024;
/// Bytes that a connection has received when it gets large reads: more than a handshake.
const MOVES_DATA: usize = 64 * 1024;

/// Connections that may wait for the accept loop. Where the queue is full the kernel drops what
/// comes, and its peer tries again a second later at the earliest: with std's 128, a login storm
/// waited for that. The kernel itself allows less where `net.core.somaxconn` says so.
const BACKLOG: u32 = 4_096;

/// Listens on an address.
///
/// # Errors
///
/// Whatever the system refuses: the address is in use, is not of this machine, or its port needs
/// privileges.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // What is left of an earlier run's connections keeps no restart waiting.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    received: BytesMut,
    /// Bytes received so far, up to [`MOVES_DATA`].
    total: usize,
}

impl Socket {
    /// Wraps a fresh connection.
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            received: BytesMut::new(),
            total: 0,
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let large = self.total >= MOVES_DATA;
        let limit = if large { pipe::READ } else { SMALL };
        let mut buffer = if large {
            pipe::take()
        } else {
            BytesMut::with_capacity(SMALL)
        };
        let mut space = (&mut buffer).limit(limit);
        let read = std::pin::pin!(self.tcp.read_buf(&mut space)).poll(cx);
        match read {
            Poll::Ready(Ok(length)) => {
                self.total = self.total.saturating_add(length).min(MOVES_DATA);
                self.received = buffer;
                Poll::Ready(Ok(()))
            }
            other => {
                pipe::give(buffer);
                other.map_ok(drop)
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            ready!(self.poll_fill(cx))?;
        }
        let length = self.received.len().min(space.remaining());
        space.put_slice(self.received.get(..length).unwrap_or_default());
        self.received.advance(length);
        if self.received.is_empty() {
            pipe::give(std::mem::take(&mut self.received));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_storm_of_connections_waits_for_the_accept_loop_without_loss() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..500 {
            // One that was dropped is tried again by the kernel, a second later.
            let connect = TcpStream::connect(address);
            let connected = tokio::time::timeout(Duration::from_millis(900), connect).await;
            waiting.push(connected.expect("a place in the queue").unwrap());
        }
        for _ in &waiting {
            listener.accept().await.unwrap();
        }
    }
}
