//! Administration and audit reading: HTTP/1.1 over mutual TLS (ALPN `http/1.1`).

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::assemble::Core;
use crate::session::Peer;

/// Serves HTTP.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) core: Arc<Core>,
}

impl Api {
    /// Serves one connection to its end.
    pub(crate) async fn serve<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _ = (stream, peer, &self.core);
    }
}
