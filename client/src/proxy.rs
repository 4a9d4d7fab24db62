//! HTTP proxies on the way to AWS: `HTTPS_PROXY` and `NO_PROXY`, as curl and the `aws` command read them.
//!
//! What speaks with AWS asks here, the SDKs' HTTP client and the streams of SSM sessions alike.
//! Connections to an agent go to its address directly: it is no web server, and `HTTPS_PROXY` is
//! about those.

mod tunnel;

use std::fmt;

use http::Uri;
use http::header::HeaderValue;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::config::{ConfigError, Environment};
use crate::identity::secret::Secret;

pub(crate) use self::tunnel::Stream;

/// Variables in the order in which they count: curl's and Python's lower case first.
const PROXY: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const DIRECT: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// Of https.
const PORT: u16 = 443;

/// What the environment says about proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The proxy's URL with its credentials.
    url: Option<Secret>,
    /// Hosts that are reached without it.
    direct: String,
}

/// A proxy that leads to one host.
#[derive(Clone)]
pub(crate) struct Proxy {
    url: Secret,
    intercept: Intercept,
}

impl Proxies {
    /// Reads the variables. An empty one counts as absent.
    pub fn of(environment: &Environment) -> Result<Self, ConfigError> {
        let find = |names: [&'static str; 2]| -> Result<_, ConfigError> {
            let name = names
                .into_iter()
                .find(|name| environment.os(name).is_some());
            let named = name.map(|name| Ok((name, environment.text(name)?.unwrap_or_default())));
            named.transpose()
        };
        let direct = find(DIRECT)?.map_or_else(String::new, |(_, hosts)| hosts.to_owned());
        let Some((name, text)) = find(PROXY)? else {
            return Ok(Self { url: None, direct });
        };
        let url = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        if intercept(&url, "", "example.com").is_none_or(|it| !is_http(it.uri())) {
            return Err(ConfigError::Value {
                place: name.to_owned(),
                // What stands there may hold a password.
                problem: "it is no URL of an HTTP proxy: http://HOST:PORT or https://HOST:PORT"
                    .to_owned(),
            });
        }
        Ok(Self {
            url: Some(url.into()),
            direct,
        })
    }

    /// The proxy that leads to `host[:port]`, 443 by default; `None`: it is reached directly.
    pub(crate) fn toward(&self, host: &str) -> Option<Proxy> {
        let url = self.url.as_ref()?;
        let (name, port) = split(host);
        let direct = rules(&self.direct, port.unwrap_or(PORT))?;
        Some(Proxy {
            intercept: intercept(url.expose(), &direct, name)?,
            url: url.clone(),
        })
    }

    /// Why `host` cannot be reached, with the proxy that is to blame perhaps.
    pub(crate) fn explain(&self, host: &str, cause: String) -> String {
        match self.toward(host) {
            Some(proxy) => format!("{THROUGH} {proxy}: {cause}"),
            None => cause,
        }
    }
}

/// How [`Proxies::explain`] begins.
const THROUGH: &str = "through the proxy";

/// What to do where a proxy is to blame.
pub(crate) fn hint(cause: &str) -> Option<&'static str> {
    cause.starts_with(THROUGH).then_some(HINT)
}

const HINT: &str = "check HTTPS_PROXY, and that the proxy lets this host through; NO_PROXY names \
                    hosts that are reached without it";

impl Proxy {
    /// Its URL, with the credentials.
    pub(crate) fn url(&self) -> &str {
        self.url.expose()
    }

    fn authorization(&self) -> Option<&HeaderValue> {
        self.intercept.basic_auth()
    }

    fn is_encrypted(&self) -> bool {
        self.intercept.uri().scheme_str() == Some("https")
    }

    fn host(&self) -> &str {
        self.intercept.uri().host().unwrap_or_default()
    }

    fn port(&self) -> u16 {
        let default = if self.is_encrypted() { PORT } else { 80 };
        self.intercept.uri().port_u16().unwrap_or(default)
    }
}

/// Where it is, without credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}:{}`", self.host(), self.port())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

fn is_http(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
}

fn intercept(url: &str, direct: &str, name: &str) -> Option<Intercept> {
    let to = format!("https://{name}").parse().ok()?;
    Matcher::builder()
        .https(url)
        .no(direct)
        .build()
        .intercept(&to)
}

/// What of `NO_PROXY` is about this port, without ports; `None`: nothing goes through the proxy.
/// The matcher knows names, their subdomains, addresses and networks, but neither ports nor a star
/// that stands for addresses too.
fn rules(direct: &str, port: u16) -> Option<String> {
    let entries = direct.split([',', ' ']).filter(|entry| !entry.is_empty());
    let mut kept = Vec::new();
    for entry in entries {
        let (name, of) = split(entry);
        if of.is_some_and(|of| of != port) {
            continue;
        }
        if name == "*" {
            return None;
        }
        let name = name.strip_prefix('*').unwrap_or(name);
        kept.push(name.trim_start_matches('[').trim_end_matches(']'));
    }
    Some(kept.join(","))
}

/// `host[:port]`; an IPv6 address without brackets has no port.
fn split(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests;
