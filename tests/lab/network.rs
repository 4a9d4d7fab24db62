//! Who lives where: every lab takes a /24 of its own in 127/8, and every host in it an address, so
//! that "private" is real and labs run beside each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use rand::Rng as _;
use tokio::net::{TcpListener, TcpStream};

/// The port whose listener at the last address claims a network.
const CLAIM: u16 = 7777;
const ATTEMPTS: usize = 64;

/// A claimed network: nobody else uses it while this lives.
pub struct Network {
    base: [u8; 3],
    _claim: TcpListener,
}

impl Network {
    /// Claims a free one.
    pub async fn claim() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let base = [
                127,
                rand::rng().random_range(64..=126),
                rand::rng().random(),
            ];
            let [a, b, c] = base;
            match TcpListener::bind((Ipv4Addr::new(a, b, c, 254), CLAIM)).await {
                Ok(claim) => {
                    return Ok(Self {
                        base,
                        _claim: claim,
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => bail!(
                    "cannot listen on 127.{b}.{c}.254: {error}\n\
                     hint: the lab needs all of 127/8 on loopback, as Linux has it"
                ),
            }
        }
        bail!("no free network in 127/8 after {ATTEMPTS} attempts: end some labs")
    }

    /// The bastion: the agent listens and dials from here.
    pub fn bastion(&self) -> IpAddr {
        self.host(1)
    }

    /// The emulated AWS.
    pub fn aws(&self) -> IpAddr {
        self.host(2)
    }

    /// `web-1`: a Linux host with an sshd.
    pub fn web(&self) -> IpAddr {
        self.host(10)
    }

    /// `app-1`: a Linux host that only SSM reaches.
    pub fn app(&self) -> IpAddr {
        self.host(20)
    }

    /// `db-1`: the database.
    pub fn db(&self) -> IpAddr {
        self.host(30)
    }

    /// `win-1`: a Windows host.
    pub fn win(&self) -> IpAddr {
        self.host(40)
    }

    /// `echo-1`: the benchmark's SSH host.
    pub fn echo(&self) -> IpAddr {
        self.host(50)
    }

    /// The network of the private hosts, as the agent's list of exceptions names it.
    pub fn cidr(&self) -> String {
        let [a, b, c] = self.base;
        format!("{a}.{b}.{c}.0/24")
    }

    fn host(&self, number: u8) -> IpAddr {
        let [a, b, c] = self.base;
        Ipv4Addr::new(a, b, c, number).into()
    }
}

/// A private host's listener: connections from anywhere but the bastion and named neighbours are
/// reset.
pub struct PrivateListener {
    listener: TcpListener,
    bastion: Option<IpAddr>,
    neighbours: Vec<IpAddr>,
}

impl PrivateListener {
    /// Listens at `address` (port 0: a free one) for connections from `bastion`.
    pub async fn bind(address: SocketAddr, bastion: IpAddr) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            bastion: Some(bastion),
            neighbours: Vec::new(),
        })
    }

    /// One that lets in everybody: for what Postern is measured against.
    pub async fn bind_open(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            bastion: None,
            neighbours: Vec::new(),
        })
    }

    /// Lets in these too: the host itself, and others of its network.
    #[must_use]
    pub fn letting_in(mut self, neighbours: &[IpAddr]) -> Self {
        self.neighbours = neighbours.to_vec();
        self
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The only stranger that gets in, if there is one.
    pub fn bastion(&self) -> Option<IpAddr> {
        self.bastion
    }

    /// The next connection that gets in.
    pub async fn accept(&self) -> std::io::Result<TcpStream> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            if self.lets_in(peer.ip()) {
                return Ok(stream);
            }
            tracing::debug!(%peer, "refused: not the bastion");
            // A reset, as a firewall's reject would look: not a polite end of file.
            stream.set_zero_linger()?;
        }
    }

    fn lets_in(&self, peer: IpAddr) -> bool {
        self.bastion.is_none_or(|bastion| peer == bastion) || self.neighbours.contains(&peer)
    }
}
