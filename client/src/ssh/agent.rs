//! Lending the local SSH agent: bytes between a channel and `SSH_AUTH_SOCK`.

use std::path::PathBuf;

use russh::client::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Requests to the agent at the same time; more are refused.
const AT_ONCE: usize = 8;

/// Lends the agent behind a socket, for as long as it lives.
pub(super) struct Lender {
    socket: PathBuf,
    relays: JoinSet<()>,
}

impl Lender {
    /// Lends the agent behind `socket` (`SSH_AUTH_SOCK`).
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            relays: JoinSet::new(),
        }
    }

    /// Connects one channel with the agent, or refuses it.
    pub(super) async fn lend(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        while self.relays.try_join_next().is_some() {}
        let agent = if self.relays.len() < AT_ONCE {
            UnixStream::connect(&self.socket).await.ok()
        } else {
            None
        };
        let Some(mut agent) = agent else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        };
        reply.accept().await;
        self.relays.spawn(async move {
            let mut channel = channel.into_stream();
            // Either side may end it; there is nobody to tell.
            let _ended = tokio::io::copy_bidirectional(&mut channel, &mut agent).await;
        });
    }
}
