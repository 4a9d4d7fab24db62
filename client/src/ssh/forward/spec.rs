//! What is typed behind `-L`, `-R` and `-D`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::ssh::SshError;

/// A host and a port, for whoever resolves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// A name or an address.
    pub host: String,
    /// The TCP port, not 0.
    pub port: u16,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `-L [BIND:]PORT:HOST:PORT`: listens here, the target connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Where to listen; loopback unless told otherwise.
    pub bind: SocketAddr,
    /// Where the target connects to.
    pub destination: Destination,
}

/// `-R [BIND:]PORT:HOST:PORT`: the target listens, this computer connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The address on the target; its loopback unless told otherwise.
    pub bind: String,
    /// The port on the target; 0 lets it choose.
    pub port: u16,
    /// Where this computer connects to.
    pub destination: Destination,
}

/// `-D [BIND:]PORT`: listens here as a SOCKS5 proxy, the target connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// Where to listen; loopback unless told otherwise.
    pub bind: SocketAddr,
}

impl Local {
    /// Reads what is behind `-L`.
    pub fn parse(text: &str) -> Result<Self, SshError> {
        let (bind, port, destination) = three(text)?;
        Ok(Self {
            bind: SocketAddr::new(address(text, bind)?, port),
            destination,
        })
    }
}

impl Remote {
    /// Reads what is behind `-R`.
    pub fn parse(text: &str) -> Result<Self, SshError> {
        let (bind, port, destination) = three(text)?;
        let bind = match bind {
            None => "localhost",
            Some("" | "*") => "",
            Some(bind) => bind,
        };
        Ok(Self {
            bind: bind.to_owned(),
            port,
            destination,
        })
    }
}

impl Dynamic {
    /// Reads what is behind `-D`.
    pub fn parse(text: &str) -> Result<Self, SshError> {
        let (bind, port) = match fields(text).as_slice() {
            [number] => (None, port(text, number)?),
            [bind, number] => (Some(*bind), port(text, number)?),
            _ => return Err(wrong(text, "expected [BIND:]PORT")),
        };
        Ok(Self {
            bind: SocketAddr::new(address(text, bind)?, port),
        })
    }
}

fn three(text: &str) -> Result<(Option<&str>, u16, Destination), SshError> {
    let (bind, listen, host, to) = match *fields(text).as_slice() {
        [listen, host, to] => (None, listen, host, to),
        [bind, listen, host, to] => (Some(bind), listen, host, to),
        _ => return Err(wrong(text, "expected [BIND:]PORT:HOST:PORT")),
    };
    let destination = Destination {
        host: host.to_owned(),
        port: port(text, to)?,
    };
    if destination.host.is_empty() || destination.port == 0 {
        return Err(wrong(text, "expected a host and a port other than 0"));
    }
    Ok((bind, port(text, listen)?, destination))
}

/// Parts between colons; brackets keep an IPv6 address together and are taken off.
fn fields(text: &str) -> Vec<&str> {
    let (mut fields, mut start, mut within) = (Vec::new(), 0, false);
    let mut end_of = |from: usize, to: usize| {
        let field = text.get(from..to).unwrap_or_default();
        fields.push(
            field
                .strip_prefix('[')
                .and_then(|f| f.strip_suffix(']'))
                .unwrap_or(field),
        );
    };
    for (at, c) in text.char_indices() {
        match c {
            '[' => within = true,
            ']' => within = false,
            ':' if !within => {
                end_of(start, at);
                start = at + 1;
            }
            _ => {}
        }
    }
    end_of(start, text.len());
    fields
}

fn port(text: &str, number: &str) -> Result<u16, SshError> {
    number
        .parse()
        .map_err(|_| wrong(text, "expected a port from 0 to 65535"))
}

fn address(text: &str, bind: Option<&str>) -> Result<IpAddr, SshError> {
    match bind {
        None | Some("localhost") => Ok(Ipv4Addr::LOCALHOST.into()),
        Some("" | "*") => Ok(Ipv4Addr::UNSPECIFIED.into()),
        Some(bind) => bind
            .parse()
            .map_err(|_| wrong(text, "the address to listen on is no IP address")),
    }
}

fn wrong(text: &str, reason: &str) -> SshError {
    SshError::Forward {
        spec: text.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_ssh_reads_them() {
        let local = Local::parse("8080:db.internal:80").unwrap();
        assert_eq!(
            (
                local.bind.to_string().as_str(),
                local.destination.to_string().as_str()
            ),
            ("127.0.0.1:8080", "db.internal:80")
        );
        let local = Local::parse("[::1]:0:[fd00::5]:22").unwrap();
        assert_eq!(
            (
                local.bind.to_string().as_str(),
                local.destination.to_string().as_str()
            ),
            ("[::1]:0", "[fd00::5]:22")
        );
        assert_eq!(
            Local::parse("*:1:h:2").unwrap().bind.to_string(),
            "0.0.0.0:1"
        );
        assert_eq!(
            Dynamic::parse("1080").unwrap().bind.to_string(),
            "127.0.0.1:1080"
        );
        let remote = Remote::parse("9000:localhost:3000").unwrap();
        assert_eq!((remote.bind.as_str(), remote.port), ("localhost", 9000));
        assert_eq!(Remote::parse("*:9000:localhost:3000").unwrap().bind, "");
    }

    #[test]
    fn what_cannot_be_understood_says_what_was_expected() {
        for (text, expected) in [
            ("80", "[BIND:]PORT:HOST:PORT"),
            ("x:h:80", "a port from 0"),
            ("1:h:0", "other than 0"),
            ("host:1:h:2", "no IP address"),
            ("1:2:3:4:5", "[BIND:]PORT:HOST:PORT"),
        ] {
            let error = Local::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
