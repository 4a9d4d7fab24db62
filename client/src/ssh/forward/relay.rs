//! One forwarded connection: a socket and a channel.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};
use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes from the target that one connection may hold before it holds up the others on its pipe.
const SPILL: usize = 16 * 1024 * 1024;
/// Bytes taken from the socket at once.
const READ: usize = 32 * 1024;

/// Copies until both directions ended or one failed.
pub(super) async fn run(mut socket: TcpStream, channel: Channel<Msg>) {
    let _delayed = socket.set_nodelay(true);
    let (mut reader, writer) = channel.split();
    let (mut from, mut to) = socket.split();
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match from.read_buf(&mut buffer).await {
                Ok(0) => return writer.eof().await.is_ok(),
                Ok(_) if writer.data_bytes(buffer.split().freeze()).await.is_ok() => {}
                _ => return false,
            }
        }
    };
    let down = async {
        let (mut spill, mut held, mut open) = (VecDeque::<Bytes>::new(), 0, true);
        while open || held > 0 {
            tokio::select! {
                message = reader.wait(), if open && held < SPILL => match message {
                    Some(ChannelMsg::Data { data }) => {
                        held += data.len();
                        spill.push_back(data);
                    }
                    Some(ChannelMsg::Eof | ChannelMsg::Close) | None => open = false,
                    Some(_) => {}
                },
                written = write_some(&mut to, &spill), if held > 0 => {
                    let Ok(written) = written else { return false };
                    held -= written;
                    if let Some(first) = spill.front_mut() {
                        first.advance(written);
                        if first.is_empty() {
                            spill.pop_front();
                        }
                    }
                }
            }
        }
        to.shutdown().await.is_ok()
    };
    // A direction that failed ends the other; one that ended in order leaves it open.
    tokio::pin!(up, down);
    let clean = tokio::select! {
        clean = &mut up => clean && down.await,
        clean = &mut down => clean && up.await,
    };
    tracing::trace!(clean, "a forwarded connection ended");
    // A connection that is gone already needs no close.
    let _gone = writer.close().await;
}

async fn write_some(
    to: &mut tokio::net::tcp::WriteHalf<'_>,
    spill: &VecDeque<Bytes>,
) -> std::io::Result<usize> {
    match spill.iter().find(|bytes| !bytes.is_empty()) {
        Some(first) => to.write(first).await,
        None => Ok(0),
    }
}
