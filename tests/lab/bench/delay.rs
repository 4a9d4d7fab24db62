//! A TCP relay that delays every byte by a fixed time in each direction: this kernel has no netem.
//!
//! What TCP does on such a path it does too: the connection takes a round trip, and no more bytes
//! are on their way unacknowledged than the buffers of sender and receiver hold. They are those that
//! this kernel grants at most, so that "direct" is what TCP would reach, not what memory would.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

const CHUNK: usize = 64 * 1024;
/// Chunks in flight in one direction. Above any window in bytes.
const IN_FLIGHT: usize = 64 * 1024;
/// Where the kernel does not tell: Linux's default for senders.
const WINDOW: usize = 4 * 1024 * 1024;

/// A running relay.
pub struct DelayRelay {
    /// Where it listens.
    pub address: SocketAddr,
    task: Option<JoinHandle<()>>,
}

impl Drop for DelayRelay {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl DelayRelay {
    /// Relays to `to`, `delay` later in each direction. The handshake of TCP itself is delayed by
    /// one round trip, as a real path would. Without a delay there is no relay, so that it costs
    /// nothing: the address is `to` itself.
    pub async fn start(to: SocketAddr, delay: Duration) -> std::io::Result<Self> {
        if delay.is_zero() {
            return Ok(Self {
                address: to,
                task: None,
            });
        }
        let listener = TcpListener::bind(SocketAddr::new(to.ip(), 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(carry(stream, to, delay));
            }
        });
        Ok(Self {
            address,
            task: Some(task),
        })
    }

    /// Relays to `to` at once, from an address of its own: to `to`, its clients live there.
    pub async fn from_address(to: SocketAddr, source: Ipv4Addr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((source, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let socket = TcpSocket::new_v4()?;
                    socket.bind(SocketAddr::new(source.into(), 0))?;
                    let mut far = socket.connect(to).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Ok(Self {
            address,
            task: Some(task),
        })
    }
}

async fn carry(near: TcpStream, to: SocketAddr, delay: Duration) -> std::io::Result<()> {
    // The kernel answered the SYN at once: make up for it before the first byte moves.
    tokio::time::sleep(2 * delay).await;
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::try_join!(
        later(near_in, far_out, delay),
        later(far_in, near_out, delay)
    )?;
    Ok(())
}

/// What TCP of this kernel keeps on its way at most: its largest buffers of senders (`tcp_wmem`) and
/// receivers (`tcp_rmem`).
fn window() -> usize {
    let largest = |name| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
        text.split_whitespace().last()?.parse().ok()
    };
    let limits = [largest("tcp_wmem"), largest("tcp_rmem")];
    limits.into_iter().flatten().min().unwrap_or(WINDOW)
}

async fn later(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
) -> std::io::Result<()> {
    let window = Arc::new(Semaphore::new(window().max(CHUNK)));
    let (queue, mut due) = mpsc::channel(IN_FLIGHT);
    let (delivered, mut acknowledged) = mpsc::channel(IN_FLIGHT);
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let length = from.read_buf(&mut chunk).await?;
            let taken = u32::try_from(length).unwrap_or(u32::MAX);
            let Ok(taken) = Arc::clone(&window).acquire_many_owned(taken).await else {
                return Ok(());
            };
            let sent = Instant::now();
            if length == 0 || queue.send((sent, chunk, taken)).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let write = async move {
        while let Some((sent, chunk, taken)) = due.recv().await {
            tokio::time::sleep_until(sent + delay).await;
            to.write_all(&chunk).await?;
            if delivered
                .send((Instant::now() + delay, taken))
                .await
                .is_err()
            {
                break;
            }
        }
        to.shutdown().await
    };
    let acknowledge = async move {
        while let Some((when, taken)) = acknowledged.recv().await {
            tokio::time::sleep_until(when).await;
            drop(taken);
        }
        Ok(())
    };
    tokio::try_join!(read, write, acknowledge)?;
    Ok(())
}
