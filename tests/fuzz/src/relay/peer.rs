//! One end of a relay: an SSH connection in memory, and the channels as this end knows them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use futures_util::FutureExt;
use postern_proto::wire::Writer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::ssh::message;
use crate::ssh::transport::{Transport, TransportError};

/// What an end tells of the packets that it takes.
pub(super) const PACKET: u32 = 32 * 1024;

/// Channels have numbers by what they carry, at both ends: who sees one knows what must be
/// recorded.
pub(super) const CLASSES: u32 = 4;
pub(super) const PROGRAM: u32 = 0;
pub(super) const STREAM: u32 = 1;
pub(super) const SFTP: u32 = 2;

pub(super) struct Peer {
    pub(super) transport: Transport,
    /// Until it hangs up.
    pub(super) stream: Option<DuplexStream>,
    pub(super) reads: bool,
    /// It was told goodbye, or the connection ended.
    pub(super) gone: bool,
    /// By its own numbers.
    pub(super) channels: BTreeMap<u32, Channel>,
    /// Numbers and windows of channels that the other end wants to open.
    pub(super) asked_to_open: VecDeque<(u32, u32)>,
    /// Its own global requests without an answer, and those that it is to answer.
    pub(super) asked: VecDeque<u32>,
    pub(super) to_answer: VecDeque<Asked>,
}

#[derive(Default)]
pub(super) struct Channel {
    /// Its number at the other end, once both know it.
    pub(super) remote: Option<u32>,
    /// A program runs in it, as far as this end knows.
    pub(super) started: bool,
    /// What was asked for once cannot be told from the same again.
    pub(super) once: bool,
    /// A program was asked for, or a terminal before it.
    pub(super) wanted: bool,
    pub(super) terminal: bool,
    /// Bytes that it may send, and that it takes.
    pub(super) may_send: u64,
    pub(super) takes: u64,
    pub(super) sent_eof: bool,
    pub(super) sent_close: bool,
    pub(super) got_eof: bool,
    pub(super) got_close: bool,
    /// Requests without an answer, and those that it is to answer.
    pub(super) asked: VecDeque<u32>,
    pub(super) to_answer: VecDeque<Asked>,
}

/// A request that arrived.
pub(super) struct Asked {
    pub(super) tag: u32,
    /// It starts a program, or it wants a port of the target's choice.
    pub(super) special: bool,
}

impl Peer {
    pub(super) fn new(transport: Transport, stream: DuplexStream) -> Self {
        Self {
            transport,
            stream: Some(stream),
            reads: true,
            gone: false,
            channels: BTreeMap::new(),
            asked_to_open: VecDeque::new(),
            asked: VecDeque::new(),
            to_answer: VecDeque::new(),
        }
    }

    /// The lowest number that is free, as OpenSSH takes it.
    pub(super) fn free(&self, class: u32) -> u32 {
        (0..)
            .map(|n| n * CLASSES + class)
            .find(|id| !self.channels.contains_key(id))
            .expect("there are more numbers than operations")
    }

    /// Moves bytes between the buffers and the connection. Whether there were any.
    pub(super) fn carry(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let (input, output) = self.transport.buffers();
        let mut moved = false;
        while !output.is_empty() {
            match stream.write_buf(output).now_or_never() {
                Some(Ok(length)) if length > 0 => moved = true,
                _ => break,
            }
        }
        while self.reads && !self.gone {
            input.reserve(64 * 1024);
            match stream.read_buf(input).now_or_never() {
                Some(Ok(length)) if length > 0 => moved = true,
                Some(_) => {
                    self.gone = true;
                    moved = true;
                }
                None => break,
            }
        }
        moved
    }

    /// The next message that arrived.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        match self.transport.next() {
            Ok(message) => message,
            Err(TransportError::Disconnected { .. }) => {
                self.gone = true;
                None
            }
            Err(error) => panic!("the relay broke the protocol: {error}"),
        }
    }
}

/// Policy of these targets: what passes of an end's channel opens.
pub(super) fn open(kind: &str, sender: u32, window: u32, port: Option<u32>) -> Bytes {
    let open = Writer::new()
        .u8(message::CHANNEL_OPEN)
        .vec32(kind.as_bytes())
        .u32(sender)
        .u32(window)
        .u32(PACKET);
    let open = match port {
        Some(port) => open.vec32(b"10.0.0.1").u32(port).vec32(b"::1").u32(1),
        None => open,
    };
    open.finish().into()
}

pub(super) fn confirmation(recipient: u32, sender: u32, window: u32) -> Bytes {
    Writer::new()
        .u8(message::CHANNEL_OPEN_CONFIRMATION)
        .u32(recipient)
        .u32(sender)
        .u32(window)
        .u32(PACKET)
        .finish()
        .into()
}

pub(super) fn data(kind: u8, recipient: u32, content: &[u8]) -> Bytes {
    let head = Writer::new().u8(kind).u32(recipient);
    let head = match kind {
        message::CHANNEL_EXTENDED_DATA => head.u32(message::STDERR),
        _ => head,
    };
    head.vec32(content).finish().into()
}

/// Content that says what it is: stamp, length, channel.
pub(super) fn stamped(stamp: u32, recipient: u32, length: usize) -> Vec<u8> {
    let length = length.max(crate::agent::STAMP);
    let number = u32::try_from(length).expect("short");
    let mut content = Writer::new().u32(stamp).u32(number).u32(recipient).finish();
    content.resize(length, stamp as u8);
    content
}

/// A request on a channel, or a global one.
pub(super) fn request(recipient: Option<u32>, name: &str, want: bool, fields: &[u8]) -> Bytes {
    let head = match recipient {
        Some(recipient) => Writer::new().u8(message::CHANNEL_REQUEST).u32(recipient),
        None => Writer::new().u8(message::GLOBAL_REQUEST),
    };
    head.vec32(name.as_bytes())
        .u8(want.into())
        .raw(fields)
        .finish()
        .into()
}
