//! SOCKS5 without authentication, CONNECT alone (RFC 1928): what `-D` listens with.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::spec::Destination;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 7;
/// For the whole request.
const DEADLINE: Duration = Duration::from_secs(10);

/// Reads one request.
pub(super) async fn request<S>(socket: &mut S) -> io::Result<Destination>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::time::timeout(DEADLINE, read(socket))
        .await
        .map_err(|_| wrong("no request in time"))?
}

/// Answers it.
pub(super) async fn answer<S>(socket: &mut S, good: bool) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    reply(socket, if good { SUCCEEDED } else { FAILED }).await
}

async fn read<S>(socket: &mut S) -> io::Result<Destination>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if socket.read_u8().await? != VERSION {
        return Err(wrong("not SOCKS5"));
    }
    let mut methods = vec![0; socket.read_u8().await?.into()];
    socket.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        socket.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(wrong("the program wants authentication"));
    }
    socket.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let mut head = [0; 4];
    socket.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    let host = match kind {
        IPV4 => Ipv4Addr::from(socket.read_u32().await?).to_string(),
        IPV6 => Ipv6Addr::from(socket.read_u128().await?).to_string(),
        NAME => {
            let mut name = vec![0; socket.read_u8().await?.into()];
            socket.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| wrong("the host name is not text"))?
        }
        _ => return Err(wrong("unknown kind of address")),
    };
    let port = socket.read_u16().await?;
    if version != VERSION || command != CONNECT || host.is_empty() || port == 0 {
        reply(socket, UNSUPPORTED).await?;
        return Err(wrong("only CONNECT to a host and port is served"));
    }
    Ok(Destination { host, port })
}

async fn reply<S>(socket: &mut S, code: u8) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    // The bound address is not known here and nobody looks at it.
    socket
        .write_all(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0])
        .await
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
