//! A host that greets as Windows' RDP service does: an X.224 Connection Confirm that offers TLS
//! ([MS-RDPBCGR] 2.2.1.2), and nothing after it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::network::PrivateListener;

/// TPKT header, X.224 Connection Confirm, RDP_NEG_RSP with PROTOCOL_SSL.
pub const CONFIRM: [u8; 19] = [
    0x03, 0x00, 0x00, 0x13, 0x0e, 0xd0, 0x00, 0x00, 0x12, 0x34, 0x00, 0x02, 0x00, 0x08, 0x00, 0x01,
    0x00, 0x00, 0x00,
];
const PATIENCE: Duration = Duration::from_secs(30);

/// A running greeter.
pub struct Rdp {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Rdp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts it.
pub fn start(listener: PrivateListener) -> std::io::Result<Rdp> {
    let address = listener.address()?;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok(stream) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(tokio::time::timeout(PATIENCE, greet(stream)));
        }
    });
    Ok(Rdp { address, task })
}

async fn greet(mut stream: TcpStream) -> std::io::Result<()> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let [version, _, high, low] = header;
    let length = u16::from_be_bytes([high, low]);
    // A TPKT that can hold a Connection Request (RFC 1006), and no larger than one.
    if version != 3 || !(11..=512).contains(&length) {
        return Ok(());
    }
    let mut request = vec![0; usize::from(length) - header.len()];
    stream.read_exact(&mut request).await?;
    stream.write_all(&CONFIRM).await?;
    stream.shutdown().await
}
