//! The service behind a tunnel, and those who use it: what arrives is compared byte by byte.
//!
//! A request is a letter, a seed and a length. `x`: both sides send so many bytes of their own and
//! take the other's; the service says at the end whether it got what it should. `d`: the service
//! alone sends. `e`: it gives back what it gets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// No exchange takes longer: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(1800);
const PIECE: usize = 16 * 1024;
/// Turns a seed into that of the other direction.
const BACK: u64 = 1 << 40;

/// A running service.
pub(crate) struct Peer {
    pub(crate) port: u16,
    _task: AbortOnDropHandle<()>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        Self::at(IpAddr::V4(Ipv4Addr::LOCALHOST)).await
    }

    pub(crate) async fn at(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream));
            }
        });
        Self {
            port,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let kind = stream.read_u8().await?;
    let (seed, length) = (stream.read_u64().await?, stream.read_u64().await?);
    let length = length as usize;
    let (mut from, mut to) = stream.split();
    match kind {
        b'x' => {
            let (taken, sent) = tokio::join!(
                take(&mut from, seed, length),
                send(&mut to, seed ^ BACK, length)
            );
            sent?;
            to.write_u8(if taken.is_ok() { b'.' } else { b'!' }).await?;
        }
        b'd' => send(&mut to, seed ^ BACK, length).await?,
        _ => {
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes).await?;
            to.write_all(&bytes).await?;
        }
    }
    stream.shutdown().await
}

/// Both ways, so many bytes each; an error says what is wrong with them.
pub(crate) async fn exchange(to: SocketAddr, seed: u64, length: usize) -> io::Result<()> {
    within(async {
        let mut stream = request(to, b'x', seed, length).await?;
        let (mut from, mut to) = stream.split();
        tokio::try_join!(
            send(&mut to, seed, length),
            take(&mut from, seed ^ BACK, length)
        )?;
        match stream.read_u8().await? {
            b'.' => Ok(()),
            _ => Err(io::Error::other("the service got other bytes")),
        }
    })
    .await
}

/// Asks for bytes that nobody takes yet.
pub(crate) async fn ask(to: SocketAddr, seed: u64, length: usize) -> io::Result<TcpStream> {
    within(request(to, b'd', seed, length)).await
}

/// Takes them.
pub(crate) async fn receive(mut stream: TcpStream, seed: u64, length: usize) -> io::Result<()> {
    within(take(&mut stream, seed ^ BACK, length)).await
}

/// What comes back.
pub(crate) async fn echo(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    within(async {
        let mut stream = request(to, b'e', 0, bytes.len()).await?;
        stream.write_all(bytes).await?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await?;
        Ok(back)
    })
    .await
}

async fn within<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("it hangs")))
}

async fn request(to: SocketAddr, kind: u8, seed: u64, length: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut head = vec![kind];
    head.extend_from_slice(&seed.to_be_bytes());
    head.extend_from_slice(&(length as u64).to_be_bytes());
    stream.write_all(&head).await?;
    Ok(stream)
}

/// Sends so many bytes of a seed.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    seed: u64,
    length: usize,
) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut left = length;
    while left > 0 {
        let piece = pattern.next(left.min(PIECE));
        to.write_all(&piece).await?;
        left -= piece.len();
    }
    Ok(())
}

/// Takes them; an error says where they differ.
pub(crate) async fn take(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    length: usize,
) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut place = 0;
    while place < length {
        let expected = pattern.next((length - place).min(PIECE));
        let mut got = vec![0; expected.len()];
        from.read_exact(&mut got).await?;
        if got != expected {
            return Err(io::Error::other(format!("other bytes behind {place}")));
        }
        place += got.len();
    }
    Ok(())
}

/// Bytes that do not repeat, made piece by piece.
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
