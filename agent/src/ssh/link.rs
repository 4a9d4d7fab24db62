//! A transport on a stream, for the part of a connection where one message follows another.

use std::io;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::transport::{Transport, TransportError};

/// Bytes that are read at once before there is a reason for more.
const READ: usize = 4 * 1024;

/// Why a connection did not get through its start.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    /// The network.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer's messages.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// One SSH connection.
pub(super) struct Link<S> {
    pub(super) stream: S,
    pub(super) transport: Transport,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(super) fn new(stream: S, transport: Transport) -> Self {
        Self { stream, transport }
    }

    /// Sends what waits, then reads until keys for sending are there.
    pub(super) async fn exchange_keys(&mut self) -> Result<(), LinkError> {
        loop {
            // Nothing but the exchange may come before it is through.
            if self.transport.next()?.is_some() {
                return Err(TransportError::Framing("order").into());
            }
            if self.transport.may_send() {
                return Ok(());
            }
            self.flush().await?;
            self.read().await?;
        }
    }

    /// The next message of the layers above.
    pub(super) async fn receive(&mut self) -> Result<Bytes, LinkError> {
        loop {
            if let Some(message) = self.transport.next()? {
                return Ok(message);
            }
            self.flush().await?;
            self.read().await?;
        }
    }

    /// Sends everything that waits.
    pub(super) async fn flush(&mut self) -> Result<(), LinkError> {
        let (_, output) = self.transport.buffers();
        while !output.is_empty() {
            if self.stream.write_buf(output).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
        Ok(self.stream.flush().await?)
    }

    async fn read(&mut self) -> Result<(), LinkError> {
        let (input, _) = self.transport.buffers();
        input.reserve(READ);
        match self.stream.read_buf(input).await? {
            0 => Err(LinkError::Closed),
            _ => Ok(()),
        }
    }
}
