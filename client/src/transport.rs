//! TLS to an agent: the one place that dials.
//!
//! The server must show a certificate from the pinned CA with the pinned agent id as its name; the
//! client shows the certificate that the agent issued to it. TLS 1.3 only, X25519MLKEM768 first,
//! no 0-RTT. Session tickets live in this process's memory and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::{ALPN_HTTP, ALPN_PIPE, buffers};
use rustls::client::Resumption;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::AgentProfile;
use crate::identity::ClientCertificate;

/// An authenticated connection. The reader below TLS takes a frame at a time, where TLS itself
/// would ask the kernel for 4.
pub type Connection = TlsStream<BufReader<TcpStream>>;

/// From the first packet to the end of the handshake.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// For one of several addresses of a name.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(4);
/// How long unacknowledged bytes, or a closed window, may go without a sign of the agent's kernel.
const SILENT_KERNEL: Duration = Duration::from_secs(120);
/// Servers whose tickets are kept: one process talks to very few.
const TICKETS: usize = 8;

/// Why there is no connection to an agent.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The address does not resolve, or nothing there accepts connections.
    #[error("agent `{agent}` at {address} could not be reached: {reason}")]
    Unreachable {
        /// Its id.
        agent: String,
        /// Where it was looked for.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Nothing answered in time.
    #[error("agent `{agent}` at {address} did not answer within {seconds} s")]
    TimedOut {
        /// Its id.
        agent: String,
        /// Where it was looked for.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// The server's certificate is not from the pinned CA.
    #[error(
        "the server at {address} is not agent `{agent}`: its certificate is not from the pinned CA"
    )]
    WrongCa {
        /// The id that was expected.
        agent: String,
        /// Where the server is.
        address: String,
    },
    /// The server is another agent of the same CA.
    #[error("the server at {address} is not agent `{agent}`: its certificate is for another name")]
    WrongName {
        /// The id that was expected.
        agent: String,
        /// Where the server is.
        address: String,
    },
    /// The server's certificate is over.
    #[error("the certificate of agent `{agent}` at {address} has expired")]
    Expired {
        /// Its id.
        agent: String,
        /// Where it is.
        address: String,
    },
    /// The server's certificate begins in the future.
    #[error("the certificate of agent `{agent}` at {address} is not valid yet")]
    NotYetValid {
        /// Its id.
        agent: String,
        /// Where it is.
        address: String,
    },
    /// The agent does not take this client's certificate.
    #[error("agent `{agent}` refused the client certificate: {reason}")]
    ClientRefused {
        /// Its id.
        agent: String,
        /// The alert.
        reason: String,
    },
    /// The server speaks no protocol of ours.
    #[error(
        "the server at {address} does not speak `{protocol}`: it is no agent, or of another version"
    )]
    Protocol {
        /// Where the server is.
        address: String,
        /// The ALPN name.
        protocol: String,
    },
    /// Any other failure of TLS.
    #[error("no TLS connection to agent `{agent}` at {address}: {reason}")]
    Tls {
        /// Its id.
        agent: String,
        /// Where it is.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The pinned profile, or our own certificate, is unusable.
    #[error("the profile of agent `{agent}` is unusable: {reason}")]
    Profile {
        /// Its id.
        agent: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl TransportError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                "check the agent's address in the configuration, your network or VPN, and that the agent runs"
            }
            Self::WrongCa { .. } => {
                "somebody may stand between you and the agent; if the agent got a new CA, take the profile from its operator again"
            }
            Self::WrongName { .. } => {
                "compare `id` and `address` of the agent in the configuration with what its operator gave you"
            }
            Self::Expired { .. } => {
                "tell the agent's operator: `postern-agent check` says how to renew it"
            }
            Self::NotYetValid { .. } => "check the clock of this computer",
            Self::ClientRefused { .. } => "postern login",
            Self::Protocol { .. } => "check the agent's address and port, and both versions",
            Self::Tls { .. } => "try again; if it stays, run with -v and ask the agent's operator",
            Self::Profile { .. } => "take the agent's profile from its operator again",
        }
    }

    /// Whether a new certificate may help.
    pub fn wants_new_certificate(&self) -> bool {
        matches!(self, Self::ClientRefused { .. })
    }
}

/// Dials one agent with one client certificate, any number of times.
pub struct Dialer {
    agent: AgentProfile,
    name: ServerName<'static>,
    pipe: Arc<ClientConfig>,
    http: Arc<ClientConfig>,
}

impl Dialer {
    /// Prepares both protocols. Touches no network.
    pub fn new(
        agent: &AgentProfile,
        certificate: &ClientCertificate,
    ) -> Result<Self, TransportError> {
        let unusable = |reason: String| TransportError::Profile {
            agent: agent.id.to_string(),
            reason,
        };
        let name = ServerName::try_from(agent.id.to_string())
            .map_err(|_| unusable("its id is not a DNS name".to_owned()))?;
        let config = |protocol: &[u8]| client_config(agent, certificate, protocol).map(Arc::new);
        Ok(Self {
            agent: agent.clone(),
            name,
            pipe: config(ALPN_PIPE).map_err(unusable)?,
            http: config(ALPN_HTTP).map_err(unusable)?,
        })
    }

    /// The pinned agent.
    pub fn agent(&self) -> &AgentProfile {
        &self.agent
    }

    /// A connection for one pipe.
    pub async fn pipe(&self) -> Result<Connection, TransportError> {
        self.dial(&self.pipe, ALPN_PIPE).await
    }

    /// A connection for HTTP requests.
    pub async fn http(&self) -> Result<Connection, TransportError> {
        self.dial(&self.http, ALPN_HTTP).await
    }

    /// Names what an error on a running connection means: with TLS 1.3 a refused client
    /// certificate shows only when the client reads.
    pub fn explain(&self, error: &io::Error) -> TransportError {
        let agent = self.agent.id.to_string();
        let address = self.agent.address.clone();
        let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        else {
            let reason = error.to_string();
            return TransportError::Unreachable {
                agent,
                address,
                reason,
            };
        };
        match tls {
            rustls::Error::InvalidCertificate(fault) => certificate_fault(agent, address, fault),
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                let protocol = String::from_utf8_lossy(ALPN_PIPE).into_owned();
                TransportError::Protocol { address, protocol }
            }
            rustls::Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
                let reason = format!("{alert:?}");
                TransportError::ClientRefused { agent, reason }
            }
            other => {
                let reason = other.to_string();
                TransportError::Tls {
                    agent,
                    address,
                    reason,
                }
            }
        }
    }

    async fn dial(
        &self,
        config: &Arc<ClientConfig>,
        alpn: &[u8],
    ) -> Result<Connection, TransportError> {
        let deadline = Instant::now() + DIAL_DEADLINE;
        let timed_out = |_| TransportError::TimedOut {
            agent: self.agent.id.to_string(),
            address: self.agent.address.clone(),
            seconds: DIAL_DEADLINE.as_secs(),
        };
        let socket = timeout_at(deadline, reach(&self.agent.address))
            .await
            .map_err(timed_out)?
            .map_err(|error| self.explain(&error))?;
        let socket = BufReader::with_capacity(buffers::READ, socket);
        let handshake = TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), socket);
        let connection = timeout_at(deadline, handshake)
            .await
            .map_err(timed_out)?
            .map_err(|error| self.explain(&error))?;
        // A server without ALPN completes the handshake too; it is none of ours.
        if connection.get_ref().1.alpn_protocol() != Some(alpn) {
            return Err(TransportError::Protocol {
                address: self.agent.address.clone(),
                protocol: String::from_utf8_lossy(alpn).into_owned(),
            });
        }
        tracing::debug!(
            agent = %self.agent.id,
            group = ?connection.get_ref().1.negotiated_key_exchange_group().map(|group| group.name()),
            resumed = ?connection.get_ref().1.handshake_kind(),
            "connected"
        );
        Ok(connection)
    }
}

/// Whether a running connection ended since the agent does not take our certificate.
pub(crate) fn refuses_certificate(error: &io::Error) -> bool {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::AlertReceived(alert)) if is_about_our_certificate(*alert))
}

/// The first address of `host:port` that accepts.
pub(crate) async fn reach(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in tokio::net::lookup_host(address).await? {
        match tokio::time::timeout(ADDRESS_DEADLINE, TcpStream::connect(candidate)).await {
            Ok(Ok(socket)) => {
                socket.set_nodelay(true)?;
                notice_death(&socket)?;
                return Ok(socket);
            }
            Ok(Err(error)) => last = error,
            Err(_) => {
                last = io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{candidate} did not answer"),
                )
            }
        }
    }
    Err(last)
}

/// The heartbeat above notices a dead path within seconds. The kernel is asked as well, for when
/// the heartbeat cannot tell; patiently, since a closed window counts as silence here.
fn notice_death(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let timeout = u32::try_from(SILENT_KERNEL.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, timeout)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, SILENT_KERNEL)?;
    Ok(())
}

fn client_config(
    agent: &AgentProfile,
    certificate: &ClientCertificate,
    protocol: &[u8],
) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&agent.ca) {
        let ca = ca.map_err(|error| format!("its CA is not PEM: {error}"))?;
        roots
            .add(ca)
            .map_err(|error| format!("its CA cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("it holds no CA certificate".to_owned());
    }
    // The provider's default groups begin with X25519MLKEM768 (feature `prefer-post-quantum`).
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate.chain.clone(), certificate.key.clone_key())
        .map_err(|error| format!("the client certificate cannot be used: {error}"))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::in_memory_sessions(TICKETS);
    config.enable_early_data = false;
    Ok(config)
}

fn certificate_fault(agent: String, address: String, fault: &CertificateError) -> TransportError {
    use CertificateError as Fault;
    match fault {
        Fault::UnknownIssuer | Fault::BadSignature => TransportError::WrongCa { agent, address },
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => {
            TransportError::WrongName { agent, address }
        }
        Fault::Expired | Fault::ExpiredContext { .. } => TransportError::Expired { agent, address },
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => {
            TransportError::NotYetValid { agent, address }
        }
        other => TransportError::Tls {
            agent,
            address,
            reason: format!("its certificate is not acceptable: {other}"),
        },
    }
}

fn is_about_our_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::DecryptError
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

#[cfg(test)]
mod tests;
