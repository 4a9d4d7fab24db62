//! Port sessions with one connection at a time: a raw stream, or basic forwarding.

use std::net::IpAddr;

use bytes::Bytes;
use postern_proto::ssm::payload::Flag;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::places::Places;
use super::work::{Emit, Ends, Input, Output};

/// Where a port session goes.
#[derive(Clone)]
pub(super) struct Destination {
    pub(super) places: Places,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
}

impl Destination {
    pub(super) async fn dial(&self) -> std::io::Result<TcpStream> {
        self.places.dial(&self.addresses, self.port).await
    }

    async fn first(&self) -> Result<TcpStream, String> {
        self.dial().await.map_err(|error| {
            format!("Failed to start port session: Unable to connect to specified port: {error}")
        })
    }
}

/// AWS-StartSSHSession: one connection for the life of the session, made before the first byte.
/// Its end is the session's.
pub(super) async fn stream(mut ends: Ends, to: Destination) -> Result<(), String> {
    let (reader, writer) = to.first().await?.into_split();
    tokio::select! {
        () = answers(reader, &ends.emit) => {}
        _ = questions(writer, &mut ends.inputs) => {}
    }
    Ok(())
}

/// Forwarding with old versions: after the end of a connection, from whichever side, the next data
/// makes a new one. The client is not told of the server's end.
pub(super) async fn basic(mut ends: Ends, to: Destination) -> Result<(), String> {
    let mut connection = Some(to.first().await?);
    let mut first: Option<Bytes> = None;
    loop {
        if let Some(stream) = connection.take() {
            let (reader, mut writer) = stream.into_split();
            if let Some(bytes) = first.take()
                && writer.write_all(&bytes).await.is_err()
            {
                continue;
            }
            tokio::select! {
                () = answers(reader, &ends.emit) => {}
                is_over = questions(writer, &mut ends.inputs) => if is_over { return Ok(()) },
            }
        }
        let bytes = loop {
            match ends.inputs.recv().await {
                None => return Ok(()),
                Some(Input::Data(bytes)) => break bytes,
                Some(Input::Size(_) | Input::Disconnect) => {}
            }
        };
        match to.dial().await {
            Ok(stream) => (connection, first) = (Some(stream), Some(bytes)),
            Err(_) => ends.emit.send(Output::Flag(Flag::ConnectToPortError)).await,
        }
    }
}

/// The server's bytes, until it ends.
async fn answers(mut reader: OwnedReadHalf, emit: &Emit) {
    let mut buffer = vec![0; emit.payload];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        emit.data(buffer.get(..length).unwrap_or_default()).await;
    }
}

/// The client's bytes, until its connection is over. True when the session is.
async fn questions(mut writer: OwnedWriteHalf, inputs: &mut mpsc::Receiver<Input>) -> bool {
    loop {
        match inputs.recv().await {
            None => return true,
            Some(Input::Disconnect) => return false,
            Some(Input::Size(_)) => {}
            Some(Input::Data(bytes)) => {
                if writer.write_all(&bytes).await.is_err() {
                    return false;
                }
            }
        }
    }
}
