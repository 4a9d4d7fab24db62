//! What the network of an instance looks like to its SSM Agent.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

/// How long a connection may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Metadata and DNS of an instance: the SSM Agent forwards to none of them.
const DENIED: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 253)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253)),
];

/// Where an SSM Agent lives.
#[derive(Clone, Debug)]
pub struct Places {
    /// The instance's own address: connections come from it, and `localhost` is there.
    pub own: IpAddr,
    /// Hosts that it can resolve.
    pub names: BTreeMap<String, IpAddr>,
    /// The home folder of its shells.
    pub home: PathBuf,
}

impl Places {
    /// Every address of a host, checked against the deny list.
    pub(super) fn resolve(&self, host: Option<&str>) -> Result<Vec<IpAddr>, String> {
        let found = match host {
            // Its shells are this machine's, so its loopback is too.
            None | Some("localhost" | "127.0.0.1") => {
                vec![self.own, IpAddr::V4(Ipv4Addr::LOCALHOST)]
            }
            Some(host) => match (self.names.get(host), host.parse::<IpAddr>()) {
                (Some(address), _) => vec![*address],
                (None, Ok(address)) => vec![address],
                (None, Err(_)) => {
                    return Err(format!("lookup {host}: no such host"));
                }
            },
        };
        for address in &found {
            let plain = address.to_canonical();
            if DENIED.contains(&plain) {
                return Err(format!("Forwarding to IP address {address} is forbidden."));
            }
            if !plain.is_loopback() {
                return Err(format!("dial tcp {address}: the lab has loopback only"));
            }
        }
        Ok(found)
    }

    /// Connects to the first address that answers.
    pub(super) async fn dial(&self, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match tokio::time::timeout(PATIENCE, self.connect(*address, port)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn connect(&self, address: IpAddr, port: u16) -> io::Result<TcpStream> {
        let socket = match address {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.own.is_ipv4() == address.is_ipv4() {
            socket.bind(SocketAddr::new(self.own, 0))?;
        }
        let stream = socket.connect(SocketAddr::new(address, port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_dns_are_refused_in_every_spelling() {
        let places = Places {
            own: Ipv4Addr::LOCALHOST.into(),
            names: BTreeMap::from([("sly".to_owned(), DENIED[0])]),
            home: PathBuf::new(),
        };
        for host in [
            "169.254.169.254",
            "169.254.169.253",
            "::ffff:169.254.169.254",
            "fd00:ec2::254",
            "sly",
        ] {
            let refused = places.resolve(Some(host)).expect_err(host);
            assert!(refused.contains("is forbidden"), "{refused}");
        }
        assert!(places.resolve(Some("nowhere")).is_err());
        assert!(places.resolve(None).is_ok());
    }
}
