//! Stands in for the TLS part until that is merged: same types, certificates of one CA.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::VerifiedPrincipal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Enroll,
    Pipe,
    Http,
}

pub struct BoundedInput<IO> {
    io: IO,
    left: Option<u64>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for BoundedInput<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == Some(0) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        let read = (buffer.filled().len() - before) as u64;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(read);
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for BoundedInput<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, b)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        b: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, b)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

pub struct TlsSettings {
    pub(crate) config: fn(&TlsSettings, Protocol) -> Arc<ServerConfig>,
    pub(crate) enroll: Arc<ServerConfig>,
    pub(crate) mutual: Arc<ServerConfig>,
    pub(crate) verify: Arc<dyn Fn(&CertificateDer<'static>) -> Option<VerifiedPrincipal> + Send + Sync>,
}

pub struct Accepted<IO> {
    pub protocol: Protocol,
    pub stream: TlsStream<BoundedInput<IO>>,
    pub peer: Option<VerifiedPrincipal>,
}

#[derive(Debug, thiserror::Error)]
pub enum AcceptFault {
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[from] io::Error),
    #[error("protocol")]
    Protocol,
    #[error("{0}")]
    Certificate(String),
}

impl TlsSettings {
    pub async fn accept<IO>(&self, io: IO) -> Result<Accepted<IO>, AcceptFault>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let io = BoundedInput { io, left: Some(32 * 1024) };
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let protocol = match start.client_hello().alpn().and_then(|mut a| a.next()) {
            Some(b"postern/1") => Protocol::Pipe,
            Some(b"http/1.1") => Protocol::Http,
            Some(b"postern-enroll/1") => Protocol::Enroll,
            _ => return Err(AcceptFault::Protocol),
        };
        let mut stream = start.into_stream((self.config)(self, protocol)).await?;
        let peer = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| (self.verify)(&chain.first()?.clone().into_owned()));
        if peer.is_some() {
            stream.get_mut().0.left = None;
        }
        Ok(Accepted { protocol, stream, peer })
    }
}
