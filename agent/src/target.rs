//! Where the agent dials: one resolution, every address checked, and only a checked one dialled.
//!
//! A name that answers otherwise a second time gains nothing: it is never asked a second time.
//! Loopback, link-local, metadata and the agent's own addresses are refused whatever policy says,
//! in every form that an IPv6 address can give them; the list in `agent.toml` is the exception.

mod address;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use postern_proto::gateway::message::DenyCode;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

pub use self::address::Rule;

/// How the agent dials.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to dial from; the system's choice when absent. Only targets of its family are
    /// reached then.
    pub source_address: Option<IpAddr>,
    /// Networks that may be dialled although a rule forbids them. An address where this agent
    /// listens stays refused.
    pub allow: Vec<IpNet>,
    /// Where this agent listens, and further addresses that lead to it (a public address that is
    /// mapped to it): with port 0, all ports.
    pub own: Vec<SocketAddr>,
    /// For the resolution, and again for the connection.
    pub deadline: Duration,
}

/// Resolves, checks and dials.
pub struct Dialer {
    settings: Settings,
    resolver: Resolver,
}

/// A host's addresses, each of which may be dialled. Only [`Dialer::resolve`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    host: String,
    addresses: Vec<SocketAddr>,
}

/// Why a host was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve `{host}`: {reason}")]
    Unresolvable {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
    /// One of its addresses may not be dialled, whatever policy says.
    #[error("`{host}` is at {address}, which the agent never dials: {rule}")]
    Forbidden {
        /// The name.
        host: String,
        /// The address.
        address: IpAddr,
        /// The rule.
        rule: Rule,
    },
    /// Whether an address is the agent's own cannot be told, so it is not dialled.
    #[error("cannot tell whether {address} of `{host}` is the agent's own: {source}")]
    Unchecked {
        /// The name.
        host: String,
        /// The address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// No address has the family of the address to dial from.
    #[error("no address of `{host}` can be reached from {source_address}")]
    Family {
        /// The name.
        host: String,
        /// The address to dial from.
        source_address: IpAddr,
    },
    /// Something answered, with a reset.
    #[error("{address} (`{host}`) refused the connection")]
    Refused {
        /// The name.
        host: String,
        /// The address.
        address: SocketAddr,
    },
    /// Nothing answered.
    #[error("{address} (`{host}`) did not answer within {seconds} s")]
    TimedOut {
        /// The name.
        host: String,
        /// The address.
        address: SocketAddr,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The network or this machine did not let it happen.
    #[error("cannot reach {address} (`{host}`): {source}")]
    Unreachable {
        /// The name.
        host: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl DialError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unresolvable { .. } => {
                "the name must resolve on the bastion: check its spelling, and the VPC's DNS".into()
            }
            Self::Forbidden { address, .. } => format!(
                "if this address is meant, an administrator can add {address} to `dial.allow` in \
                 agent.toml"
            ),
            Self::Unchecked { .. } => "look at the agent's log, and its limit of open files".into(),
            Self::Family { .. } => {
                "an administrator can change `dial.source_address` in agent.toml".into()
            }
            Self::Refused { address, .. } => {
                format!("is something listening on port {} there?", address.port())
            }
            Self::TimedOut { address, .. } => format!(
                "is it running, and does its security group let the bastion in on port {}?",
                address.port()
            ),
            Self::Unreachable { .. } => "check the route from the bastion to it".into(),
        }
    }

    /// How the client is told.
    pub fn code(&self) -> DenyCode {
        match self {
            Self::Forbidden { .. } | Self::Unchecked { .. } => DenyCode::ForbiddenAddress,
            Self::Unresolvable { .. }
            | Self::Family { .. }
            | Self::Refused { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. } => DenyCode::TargetUnreachable,
        }
    }
}

impl Checked {
    /// The name that was resolved.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The addresses, in the order in which they are tried.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Dialer {
    /// With the system's resolver.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            resolver: Resolver::System,
        }
    }

    /// Resolves a name (or takes an address), once, and checks every address that it has: one
    /// that is forbidden refuses the host, since nobody could say which one would be dialled.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Checked, DialError> {
        let unresolvable = |reason: String| DialError::Unresolvable {
            host: shown(host),
            reason,
        };
        if port == 0 {
            return Err(unresolvable("port 0 is nowhere".to_owned()));
        }
        let lookup = self.resolver.lookup(host, port);
        let found = match tokio::time::timeout(self.settings.deadline, lookup).await {
            Ok(found) => found.map_err(|error| unresolvable(error.to_string()))?,
            Err(_) => {
                let seconds = self.settings.deadline.as_secs();
                return Err(unresolvable(format!("no answer within {seconds} s")));
            }
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            // The IPv4 address inside a mapped one is what would be dialled.
            let address = SocketAddr::new(address.ip().to_canonical(), port);
            self.check(host, address)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(unresolvable("it has no address".to_owned()));
        }
        addresses.truncate(MAX_ADDRESSES);
        Ok(Checked {
            host: shown(host),
            addresses,
        })
    }

    /// Dials the checked addresses in their order, and names the one that answered. The deadline
    /// is shared among them.
    pub async fn dial(&self, checked: &Checked) -> Result<(TcpStream, SocketAddr), DialError> {
        let source = self.settings.source_address;
        let fits = |address: &&SocketAddr| {
            source.is_none_or(|source| source.is_ipv4() == address.is_ipv4())
        };
        let addresses: Vec<_> = checked.addresses.iter().filter(fits).collect();
        let end = Instant::now() + self.settings.deadline;
        let mut last = None;
        for (tried, address) in addresses.iter().enumerate() {
            // Each gets an equal part of what is left, so that a dead first one leaves time.
            let left = end.saturating_duration_since(Instant::now());
            let waiting = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let until = Instant::now() + left / waiting;
            match timeout_at(until, connect(**address, source)).await {
                Ok(Ok(stream)) => return Ok((stream, **address)),
                Ok(Err(error)) => last = Some(failed(checked, **address, error)),
                Err(_) => {
                    last = Some(DialError::TimedOut {
                        host: checked.host.clone(),
                        address: **address,
                        seconds: self.settings.deadline.as_secs(),
                    });
                }
            }
        }
        Err(match (last, source) {
            (Some(error), _) => error,
            (None, Some(source_address)) => DialError::Family {
                host: checked.host.clone(),
                source_address,
            },
            (None, None) => DialError::Unresolvable {
                host: checked.host.clone(),
                reason: "it has no address".to_owned(),
            },
        })
    }

    fn check(&self, host: &str, address: SocketAddr) -> Result<(), DialError> {
        let ip = address.ip();
        let forbidden = |rule| DialError::Forbidden {
            host: shown(host),
            address: ip,
            rule,
        };
        let unchecked = |source| DialError::Unchecked {
            host: shown(host),
            address: ip,
            source,
        };
        if self.listens_at(address).map_err(unchecked)? {
            return Err(forbidden(Rule::Own));
        }
        if self.settings.allow.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        match address::forbids(ip).map_err(unchecked)? {
            Some(rule) => Err(forbidden(rule)),
            None => Ok(()),
        }
    }

    /// Whether a connection there would come back to this agent.
    fn listens_at(&self, address: SocketAddr) -> io::Result<bool> {
        for own in &self.settings.own {
            let same_port = own.port() == 0 || own.port() == address.port();
            if !same_port {
                continue;
            }
            let here = if own.ip().is_unspecified() {
                address.ip().is_loopback() || address::is_own(address.ip())?
            } else {
                own.ip().to_canonical() == address.ip()
            };
            if here {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Who knows a name's addresses.
enum Resolver {
    /// The operating system.
    System,
    /// A test: what it answers may change from one question to the next.
    #[cfg(test)]
    Scripted(std::sync::Mutex<Vec<Vec<IpAddr>>>),
}

impl Resolver {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Scripted(answers) => {
                let mut answers = answers.lock().unwrap();
                assert!(!answers.is_empty(), "asked more often than expected");
                let answer = answers.remove(0).into_iter();
                Ok(answer.map(|ip| SocketAddr::new(ip, port)).collect())
            }
        }
    }
}

async fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(address).await?;
    // Keystrokes must not wait for each other.
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn failed(checked: &Checked, address: SocketAddr, source: io::Error) -> DialError {
    let host = checked.host.clone();
    if source.kind() == io::ErrorKind::ConnectionRefused {
        DialError::Refused { host, address }
    } else {
        DialError::Unreachable {
            host,
            address,
            source,
        }
    }
}

/// A name on its way to a log or a terminal.
fn shown(host: &str) -> String {
    host.chars()
        .take(253)
        .flat_map(char::escape_debug)
        .collect()
}

/// Addresses kept of one name.
const MAX_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests;
