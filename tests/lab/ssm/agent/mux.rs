//! Multiplexed forwarding: one connection for each smux stream, dialled when it opens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use postern_proto::ssm::Role;
use postern_proto::ssm::payload::Flag;
use postern_proto::ssm::smux::{Event, Limits, Mux, StreamId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::port::Destination;
use super::work::{Ends, Input, Output};

/// Pieces that wait for one connection.
const PIECES: usize = 8;
/// Bytes of a piece at most.
const PIECE: usize = 32 * 1024;

/// What a connection says.
enum Said {
    Data(Bytes),
    Refused,
    Over,
}

/// Serves streams until the session ends.
pub(super) async fn run(mut ends: Ends, to: Destination, keepalive: bool) -> Result<(), String> {
    let (said, mut heard) = mpsc::channel(PIECES);
    let mut streams = Streams {
        mux: Mux::new(Role::Agent, Limits::default(), keepalive, now()),
        to,
        said,
        taken: Arc::new(Notify::new()),
        open: BTreeMap::new(),
        readable: BTreeSet::new(),
        connections: JoinSet::new(),
        refused: 0,
    };
    // What a connection said and the multiplexer has no room for.
    let mut waiting: Option<(StreamId, Bytes)> = None;
    let mut rested = Instant::now();
    loop {
        streams.advance();
        if let Some((stream, bytes)) = &mut waiting {
            let taken = streams.mux.write(*stream, bytes);
            let _ = bytes.split_to(taken);
            // A stream that is over takes nothing any more.
            if bytes.is_empty() || !streams.open.contains_key(stream) {
                waiting = None;
            }
        }
        let deadline = streams.mux.poll_timeout().map(Instant::from_std);
        tokio::select! {
            input = ends.inputs.recv(), if streams.mux.wants_data() => match input {
                None => return Ok(()),
                Some(Input::Data(bytes)) => streams
                    .mux
                    .handle_data(now(), bytes)
                    .map_err(|error| format!("Unable to accept stream: {error}"))?,
                Some(Input::Size(_) | Input::Disconnect) => {}
            },
            place = ends.emit.place(rested), if streams.has_output() => match place {
                None => return Ok(()),
                Some(place) => {
                    place.send(streams.output(ends.emit.payload));
                    rested = ends.emit.rested();
                }
            },
            Some((stream, what)) = heard.recv(), if waiting.is_none() => match what {
                Said::Data(bytes) => waiting = Some((stream, bytes)),
                Said::Refused => {
                    streams.refused += 1;
                    streams.close(stream);
                }
                Said::Over => streams.close(stream),
            },
            () = streams.taken.notified() => {}
            () = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            } => streams
                .mux
                .handle_timeout(now())
                .map_err(|error| error.to_string())?,
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

struct Streams {
    mux: Mux,
    to: Destination,
    said: mpsc::Sender<(StreamId, Said)>,
    /// A connection has taken a piece.
    taken: Arc<Notify>,
    open: BTreeMap<StreamId, mpsc::Sender<Bytes>>,
    /// Streams with bytes for their connection.
    readable: BTreeSet<StreamId>,
    connections: JoinSet<()>,
    refused: usize,
}

impl Streams {
    fn has_output(&self) -> bool {
        self.refused > 0 || self.mux.has_output()
    }

    /// The next message. The flag comes before the FIN of the stream that it is about.
    fn output(&mut self, payload: usize) -> Output {
        if self.refused > 0 {
            self.refused -= 1;
            return Output::Flag(Flag::ConnectToPortError);
        }
        let mut out = Vec::new();
        self.mux.poll_transmit(&mut out, payload);
        Output::Data(out.into())
    }

    fn advance(&mut self) {
        while self.connections.try_join_next().is_some() {}
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Opened(stream) => self.connect(stream),
                Event::Readable(stream) => {
                    self.readable.insert(stream);
                }
                // The connection writes what it has, then closes.
                Event::Finished(stream) => self.close(stream),
            }
        }
        let readable = std::mem::take(&mut self.readable);
        self.readable = readable
            .into_iter()
            .filter(|stream| self.hand_on(*stream))
            .collect();
        // Reading the last of a stream may have finished it.
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Finished(stream) => self.close(stream),
                Event::Opened(stream) => self.connect(stream),
                Event::Readable(stream) => {
                    self.readable.insert(stream);
                }
            }
        }
    }

    /// Gives a connection what arrived for it. True if there is more than it takes now.
    fn hand_on(&mut self, stream: StreamId) -> bool {
        let Some(connection) = self.open.get(&stream) else {
            return false;
        };
        loop {
            match connection.try_reserve() {
                Err(mpsc::error::TrySendError::Full(())) => return true,
                // Its end is on the way here.
                Err(mpsc::error::TrySendError::Closed(())) => return false,
                Ok(place) => match self.mux.read(stream, PIECE) {
                    Some(bytes) => place.send(bytes),
                    None => return false,
                },
            }
        }
    }

    fn connect(&mut self, stream: StreamId) {
        let (pieces, taken) = mpsc::channel(PIECES);
        self.open.insert(stream, pieces);
        let (to, said) = (self.to.clone(), self.said.clone());
        let drained = Arc::clone(&self.taken);
        self.connections.spawn(async move {
            let last = match to.dial().await {
                Err(_) => Said::Refused,
                Ok(connection) => {
                    relay(connection, stream, taken, &said, &drained).await;
                    Said::Over
                }
            };
            // Gone with the session, else heard.
            let _ = said.send((stream, last)).await;
        });
    }

    /// Ends a stream, from whichever side. Both directions end together: there is no half-close.
    fn close(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        self.readable.remove(&stream);
        self.mux.finish(stream);
    }
}

/// Copies until either side ends; then both are over.
async fn relay(
    connection: tokio::net::TcpStream,
    stream: StreamId,
    mut taken: mpsc::Receiver<Bytes>,
    said: &mpsc::Sender<(StreamId, Said)>,
    drained: &Notify,
) {
    let (mut reader, mut writer) = connection.into_split();
    let up = async {
        while let Some(bytes) = taken.recv().await {
            drained.notify_one();
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
            if said.send((stream, Said::Data(bytes))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
