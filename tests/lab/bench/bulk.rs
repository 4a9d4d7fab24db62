//! The service at the far end of every measured path: sends, takes or echoes bytes on demand.
//!
//! A request is one letter and a 64-bit big-endian count: `d` sends so many bytes, `u` takes so
//! many and answers one byte, `e` echoes until the end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const BUFFER: usize = 64 * 1024;
/// For what is echoed: thousands of echoing connections are idle at one time.
const ECHO: usize = 1024;

/// A running service.
pub struct Bulk {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bulk {
    /// Starts it.
    pub async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(answer(stream));
            }
        });
        Ok(Self { address, task })
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let kind = stream.read_u8().await?;
    let mut left = stream.read_u64().await?;
    let mut buffer = vec![0x5a; if kind == b'e' { ECHO } else { BUFFER }];
    match kind {
        b'd' => {
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                stream
                    .write_all(buffer.get(..length).unwrap_or_default())
                    .await?;
                left -= length as u64;
            }
        }
        b'u' => {
            take(&mut stream, left, &mut buffer).await?;
            stream.write_u8(b'.').await?;
        }
        _ => loop {
            let length = stream.read(&mut buffer).await?;
            if length == 0 {
                break;
            }
            stream
                .write_all(buffer.get(..length).unwrap_or_default())
                .await?;
        },
    }
    stream.shutdown().await
}

async fn take(stream: &mut TcpStream, mut left: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    while left > 0 {
        let length = stream.read(buffer).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(length as u64);
    }
    Ok(())
}

async fn request(path: SocketAddr, kind: u8, count: u64) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(path).await?;
    stream.set_nodelay(true)?;
    let mut head = vec![kind];
    head.extend_from_slice(&count.to_be_bytes());
    stream.write_all(&head).await?;
    Ok(stream)
}

/// How long `bytes` take from the service to here.
pub async fn download(path: SocketAddr, bytes: u64) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = request(path, b'd', bytes).await?;
    let mut buffer = vec![0; BUFFER];
    take(&mut stream, bytes, &mut buffer).await?;
    ensure!(
        stream.read(&mut buffer).await? == 0,
        "more bytes than asked for"
    );
    Ok(started.elapsed())
}

/// How long `bytes` take from here to the service, until it says that it has them.
pub async fn upload(path: SocketAddr, bytes: u64) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = request(path, b'u', bytes).await?;
    let buffer = vec![0x5a; BUFFER];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        stream
            .write_all(buffer.get(..length).unwrap_or_default())
            .await?;
        left -= length as u64;
    }
    ensure!(
        stream.read_u8().await? == b'.',
        "the service did not take all"
    );
    Ok(started.elapsed())
}

/// Round trips of one byte on a warm connection.
pub async fn echoes(path: SocketAddr, count: usize) -> Result<Vec<Duration>> {
    let mut stream = request(path, b'e', 0).await?;
    let mut times = Vec::with_capacity(count);
    for round in 0..count + 10 {
        let started = Instant::now();
        stream.write_u8(b'x').await?;
        if stream.read_u8().await? != b'x' {
            bail!("the echo is not what was sent");
        }
        // The first few warm the path up.
        if round >= 10 {
            times.push(started.elapsed());
        }
    }
    Ok(times)
}

/// How long a new connection takes until its first byte is back.
pub async fn first_byte(path: SocketAddr) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = request(path, b'e', 0).await?;
    stream.write_u8(b'x').await?;
    ensure!(
        stream.read_u8().await? == b'x',
        "the echo is not what was sent"
    );
    Ok(started.elapsed())
}

/// An idle connection that was used once.
pub async fn idle(path: SocketAddr) -> Result<TcpStream> {
    let mut stream = request(path, b'e', 0).await?;
    stream.write_u8(b'x').await?;
    ensure!(
        stream.read_u8().await? == b'x',
        "the echo is not what was sent"
    );
    Ok(stream)
}
