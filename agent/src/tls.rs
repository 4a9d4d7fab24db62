//! TLS facing clients: 1.3 alone, one configuration for each protocol, chosen by ALPN.
//!
//! A resumed handshake does not run the certificate verifier, so [`PeerTrust::verify_peer`] runs
//! after every handshake, and again for every `Open`, `Resume` and HTTP request.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ServerSessionMemoryCache};
use rustls::{ConfigBuilder, ServerConfig, WantsVerifier};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::crypto::provider;
use crate::identity::{CertificateFault, PeerTrust, VerifiedPrincipal};

mod bounded;

pub use bounded::BoundedInput;

/// Bytes that a client may send before it is authenticated.
pub const UNAUTHENTICATED_INPUT: u64 = 32 * 1024;
/// Sessions that each ticket store remembers.
const TICKETS: usize = 8192;

/// A client's connection.
pub(crate) type Connection = TlsStream<BoundedInput<crate::socket::Socket>>;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Enrolment: no client certificate yet.
    Enroll,
    /// A pipe: frames.
    Pipe,
    /// Administration and audit reading.
    Http,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Enroll, Self::Pipe, Self::Http];

    /// The ALPN name.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Enroll => b"postern-enroll/1",
            Self::Pipe => b"postern/1",
            Self::Http => b"http/1.1",
        }
    }

    /// Exactly one known protocol must be offered: a client that offers two could be steered
    /// from one to the other.
    fn offered(hello: &ClientHello<'_>) -> Option<Self> {
        let mut known = hello
            .alpn()?
            .filter_map(|name| Self::ALL.into_iter().find(|p| p.alpn() == name));
        let first = known.next()?;
        known.next().is_none().then_some(first)
    }
}

/// The agent's side of TLS.
pub struct TlsSettings {
    enroll: Arc<ServerConfig>,
    pipe: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    trust: Arc<PeerTrust>,
    clock: fn() -> i64,
}

/// The agent's certificate and key do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("the server certificate cannot be used: {0}")]
pub struct TlsFault(#[from] rustls::Error);

/// A connection whose handshake is done.
pub struct Accepted<IO> {
    /// What is spoken.
    pub protocol: Protocol,
    /// The stream. For enrolment its input stays bounded.
    pub stream: TlsStream<BoundedInput<IO>>,
    /// Who is there; `None` for enrolment alone.
    pub peer: Option<VerifiedPrincipal>,
}

/// Why a connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptFault {
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
    /// Not exactly one known protocol was offered.
    #[error("the client offered no protocol that this agent speaks, or several")]
    Protocol,
    /// The certificate is not accepted.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
}

impl TlsSettings {
    /// Settings for a server certificate, and for clients that `trust` accepts.
    pub fn new(
        chain: &[CertificateDer<'static>],
        key: &PrivateKeyDer<'static>,
        trust: Arc<PeerTrust>,
    ) -> Result<Self, TlsFault> {
        let mutual = |protocol| {
            let verifier: Arc<PeerTrust> = trust.clone();
            let mut config = builder()?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.to_vec(), key.clone_key())?;
            config.session_storage = ServerSessionMemoryCache::new(TICKETS);
            Ok::<_, TlsFault>(finish(config, protocol))
        };
        let mut enroll = builder()?
            .with_no_client_auth()
            .with_single_cert(chain.to_vec(), key.clone_key())?;
        // The exporter of a resumed session would differ, but there is no reason to allow one.
        enroll.session_storage = Arc::new(NoServerSessionStorage {});
        enroll.send_tls13_tickets = 0;
        Ok(Self {
            enroll: finish(enroll, Protocol::Enroll),
            pipe: mutual(Protocol::Pipe)?,
            http: mutual(Protocol::Http)?,
            trust,
            clock: || OffsetDateTime::now_utc().unix_timestamp(),
        })
    }

    /// Shakes hands. The caller sets the deadline (10 seconds) and drops the future at it.
    pub async fn accept<IO>(&self, io: IO) -> Result<Accepted<IO>, AcceptFault>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let io = BoundedInput::new(io, UNAUTHENTICATED_INPUT);
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let protocol = Protocol::offered(&start.client_hello()).ok_or(AcceptFault::Protocol)?;
        let mut stream = start.into_stream(self.config(protocol)).await?;
        let peer = match protocol {
            Protocol::Enroll => None,
            Protocol::Pipe | Protocol::Http => {
                Some(self.trust.verify_peer(stream.get_ref().1, (self.clock)())?)
            }
        };
        if peer.is_some() {
            stream.get_mut().0.lift();
        }
        Ok(Accepted {
            protocol,
            stream,
            peer,
        })
    }

    /// Whom these settings trust.
    pub fn trust(&self) -> &Arc<PeerTrust> {
        &self.trust
    }

    fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        match protocol {
            Protocol::Enroll => self.enroll.clone(),
            Protocol::Pipe => self.pipe.clone(),
            Protocol::Http => self.http.clone(),
        }
    }
}

fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, TlsFault> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?)
}

fn finish(mut config: ServerConfig, protocol: Protocol) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    // No 0-RTT: early data can be replayed.
    config.max_early_data_size = 0;
    Arc::new(config)
}

#[cfg(test)]
mod tests;
