//! `CONNECT`: a connection to a host through a proxy, over which TLS to that host is spoken.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;

use super::{HINT, Proxies, Proxy};
use crate::transport::reach;

/// A connection to a host, of its own or through a proxy, which may be spoken to over TLS itself.
pub(crate) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The longest head of a proxy's answer.
const HEAD: usize = 8 * 1024;

/// Why a host is not reached.
#[derive(Debug, Error)]
pub(crate) enum TunnelError {
    /// The host itself, without a proxy.
    #[error("{0}")]
    Direct(std::io::Error),
    /// The proxy.
    #[error("the proxy {proxy} could not be reached: {cause}")]
    Unreachable { proxy: String, cause: String },
    /// The proxy asks who we are.
    #[error("the proxy {proxy} wants other credentials (407)")]
    Credentials { proxy: String },
    /// The proxy says no.
    #[error("the proxy {proxy} refused it: {status}")]
    Refused { proxy: String, status: StatusCode },
    /// It is none, or breaks off.
    #[error("the proxy {proxy} gave no answer that can be used: {cause}")]
    Answer { proxy: String, cause: String },
}

impl TunnelError {
    /// Whether somebody answered, so that asking again at once cannot help.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Direct(_) | Self::Unreachable { .. } => false,
            Self::Credentials { .. } | Self::Answer { .. } => true,
            // It could not reach the host itself: that may change.
            Self::Refused { status, .. } => status.is_client_error(),
        }
    }

    /// What to do, where the proxy is to blame.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Direct(_) => None,
            Self::Credentials { .. } => {
                Some("put them into HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT, with %40 for an @")
            }
            Self::Unreachable { .. } | Self::Refused { .. } | Self::Answer { .. } => Some(HINT),
        }
    }
}

impl Proxies {
    /// Connects to `host:port`. `tls` is for the proxy, where that is spoken to over TLS. The caller
    /// has the deadline.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        tls: &Arc<ClientConfig>,
    ) -> Result<Stream, TunnelError> {
        let host = format!("{host}:{port}");
        let Some(proxy) = self.toward(&host) else {
            let direct = reach(&host).await.map_err(TunnelError::Direct)?;
            return Ok(Either::Left(direct));
        };
        let unreachable = |error: std::io::Error| TunnelError::Unreachable {
            proxy: proxy.to_string(),
            cause: error.to_string(),
        };
        let address = format!("{}:{}", proxy.host(), proxy.port());
        let tcp = reach(&address).await.map_err(unreachable)?;
        let stream = if proxy.is_encrypted() {
            let name = proxy.host().trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(name.to_owned())
                .map_err(|error| unreachable(std::io::Error::other(error)))?;
            let tls = TlsConnector::from(Arc::clone(tls)).connect(name, tcp);
            Either::Right(Box::new(tls.await.map_err(unreachable)?))
        } else {
            Either::Left(tcp)
        };
        through(stream, &proxy, &host).await
    }
}

/// Has the proxy at the other end of `stream` connect to `host`.
pub(super) async fn through<S>(stream: S, proxy: &Proxy, host: &str) -> Result<S, TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let unusable = |cause: &dyn std::fmt::Display| TunnelError::Answer {
        proxy: proxy.to_string(),
        cause: cause.to_string(),
    };
    let broken = |error: hyper::Error| unusable(&crate::identity::sts::deepest(&error));
    let mut builder = http1::Builder::new();
    let handshake = builder
        .max_header_size(HEAD)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let _carrying = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
    let mut request = Request::connect(host).header(header::HOST, host);
    if let Some(authorization) = proxy.authorization() {
        request = request.header(header::PROXY_AUTHORIZATION, authorization);
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| unusable(&error))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Err(TunnelError::Credentials {
                proxy: proxy.to_string(),
            });
        }
        status => {
            return Err(TunnelError::Refused {
                proxy: proxy.to_string(),
                status,
            });
        }
    }
    let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
    let Ok(parts) = upgraded.downcast::<TokioIo<S>>() else {
        return Err(unusable(&"it is another stream"));
    };
    // Who speaks TLS waits for its client's first word.
    if !parts.read_buf.is_empty() {
        return Err(unusable(&"it speaks before it was spoken to"));
    }
    Ok(parts.io.into_inner())
}
