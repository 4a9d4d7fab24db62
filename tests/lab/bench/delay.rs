//! A TCP relay that delays every byte by a fixed time in each direction: this kernel has no netem.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

const CHUNK: usize = 64 * 1024;
/// Chunks in flight in one direction: 64 MiB, above any bandwidth-delay product measured here.
const IN_FLIGHT: usize = 1024;

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

async fn later(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
) -> std::io::Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let length = from.read_buf(&mut chunk).await?;
            if length == 0 || queue.send((Instant::now() + delay, chunk)).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let write = async move {
        while let Some((when, chunk)) = due.recv().await {
            tokio::time::sleep_until(when).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}
