//! Who lives where: every host has an address of its own in 127/8, so that "private" is real.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// The bastion: the agent listens and dials from here.
pub const BASTION: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));
/// The emulated AWS.
pub const AWS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 2));
/// A Linux host with an sshd.
pub const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 1, 10));
/// A Linux host that only SSM reaches.
pub const APP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 1, 20));
/// The database.
pub const DB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 1, 30));
/// A Windows host.
pub const WIN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 1, 40));

/// A private host's listener: connections from anywhere but the bastion are reset.
pub struct PrivateListener {
    listener: TcpListener,
}

impl PrivateListener {
    /// Listens on a free port of `address`.
    pub async fn bind(address: IpAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(address, 0)).await?;
        Ok(Self { listener })
    }

    /// The free port that was found.
    pub fn port(&self) -> std::io::Result<u16> {
        self.listener.local_addr().map(|address| address.port())
    }

    /// The next connection from the bastion.
    pub async fn accept(&self) -> std::io::Result<TcpStream> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            if peer.ip() == BASTION {
                return Ok(stream);
            }
            tracing::debug!(%peer, "refused: not the bastion");
            // A reset, as a firewall's reject would look: not a polite end of file.
            stream.set_zero_linger()?;
        }
    }
}
