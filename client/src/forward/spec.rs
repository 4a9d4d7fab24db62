//! What is typed behind `postern forward TARGET`, and the listener that it asks for.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use postern_proto::names::HostName;
use tokio::net::TcpListener;

use crate::error::Error;

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The local port: `Some(0)` is a free one; `None` the target's port, or a free one when
    /// that cannot be had.
    pub local: Option<u16>,
    /// A host behind the target; the target itself when absent.
    pub host: Option<HostName>,
    /// The port there.
    pub port: u16,
}

impl Forward {
    /// Reads `[LOCAL:]PORT` or `[LOCAL:]HOST:PORT`. An empty LOCAL, or 0, is a free port.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| {
            Error::usage(format!("forward `{text}`: {reason}"))
                .hint("a forward is [LOCAL:]PORT or [LOCAL:]HOST:PORT, like 5432, 15432:5432 or 0:db.internal:5432")
        };
        let (rest, port) = match text.rsplit_once(':') {
            Some((rest, port)) => (Some(rest), port),
            None => (None, text),
        };
        let port = number(port).filter(|port| *port != 0);
        let port = port.ok_or_else(|| wrong("the port on the target must be from 1 to 65535"))?;
        let Some(rest) = rest else {
            return Ok(Self {
                local: None,
                host: None,
                port,
            });
        };
        if rest.is_empty() {
            return Ok(Self {
                local: Some(0),
                host: None,
                port,
            });
        }
        if let Some(local) = number(rest) {
            return Ok(Self {
                local: Some(local),
                host: None,
                port,
            });
        }
        if is_digits(rest) {
            return Err(wrong("the local port must be from 0 to 65535"));
        }
        // LOCAL:HOST, or HOST alone; an IPv6 address stands in brackets.
        let (local, host) = match rest.split_once(':') {
            Some(("", host)) => (Some(0), host),
            Some((local, host)) if number(local).is_some() => (number(local), host),
            _ => (None, rest),
        };
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(wrong(
                "the local port must be from 0 to 65535, an IPv6 address in brackets",
            ));
        }
        let host = bracketed
            .unwrap_or(host)
            .parse::<HostName>()
            .map_err(|error| wrong(&error.to_string()))?;
        Ok(Self {
            local,
            host: Some(host),
            port,
        })
    }

    /// What it leads to, for people: `TARGET:PORT` or `HOST:PORT via TARGET`.
    pub fn destination(&self, target: &str) -> String {
        match &self.host {
            Some(host) => format!("{host}:{} through {target}", self.port),
            None => format!("{target}:{}", self.port),
        }
    }

    /// Listens on loopback.
    pub(crate) async fn listen(&self) -> Result<TcpListener, Error> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let bound = TcpListener::bind((loopback, self.local.unwrap_or(self.port))).await;
        let bound = match bound {
            Err(error) if self.local.is_none() && is_taken(&error) => {
                TcpListener::bind((loopback, 0)).await
            }
            bound => bound,
        };
        bound.map_err(|error| {
            let port = self.local.unwrap_or(self.port);
            Error::failed(format!(
                "this computer cannot listen on port {port}: {error}"
            ))
            .hint(format!(
                "choose another local port: 0:{} takes a free one",
                self.port
            ))
        })
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

/// Digits alone: `+5` is no port.
fn number(text: &str) -> Option<u16> {
    is_digits(text).then(|| text.parse().ok())?
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<u16>, Option<String>, u16) {
        let forward = Forward::parse(text).unwrap();
        (forward.local, forward.host.map(String::from), forward.port)
    }

    #[test]
    fn ports_hosts_and_both_are_read() {
        assert_eq!(parse("5432"), (None, None, 5432));
        assert_eq!(parse("15432:5432"), (Some(15432), None, 5432));
        assert_eq!(parse(":5432"), (Some(0), None, 5432));
        assert_eq!(parse("0:5432"), (Some(0), None, 5432));
        assert_eq!(
            parse("db.internal:5432"),
            (None, Some("db.internal".to_owned()), 5432)
        );
        assert_eq!(
            parse("0:db.internal:5432"),
            (Some(0), Some("db.internal".to_owned()), 5432)
        );
        assert_eq!(
            parse(":[fd00::5]:22"),
            (Some(0), Some("fd00::5".to_owned()), 22)
        );
        assert_eq!(
            parse("[fd00::5]:22"),
            (None, Some("fd00::5".to_owned()), 22)
        );
    }

    #[test]
    fn what_is_no_forward_says_so() {
        for text in [
            "",
            "0",
            "70000",
            "x",
            "1:",
            "a:b:c:1",
            "99999:5432",
            "70000:h:1",
            "ho st:1",
            "+5:80",
        ] {
            let error = Forward::parse(text).unwrap_err();
            assert!(error.hint.is_some(), "{text}: {error}");
        }
    }
}
