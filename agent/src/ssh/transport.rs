//! The SSH transport (RFC 4253) as a state machine for either role: bytes in, messages out.
//!
//! Why not russh here (as of 0.65.1): it owns a connection from end to end, and a relay needs the
//! parts below the channels. It refills a window when data arrives, before anybody took it
//! (`session.rs`, `adjust_window_size`), and hands data over by waiting for a bounded queue inside
//! the task that reads the connection, so one channel that is not drained stops all of them
//! (`client/encrypted.rs`, `CHANNEL_DATA`). While one channel waits for its window, it takes no
//! output from any other (`client/mod.rs`, `can_receive_outbound`). And while it writes it does not
//! read (`client/mod.rs`, `flush_or_timeout`), so two ends that both write can stand still for
//! ever. This module therefore stops below the channels: key exchange, packets, re-keying.
//! [`super::relay`] passes channel messages from one transport to the other with the windows that
//! the two ends granted each other.
//!
//! ```text
//! input ─▶ packet ─▶ kex messages ─▶ (answered here)
//!                  └▶ others ──────▶ next()
//! send() ─▶ packet ─▶ output          held back while keys are exchanged
//! ```
//!
//! No I/O and no clock; randomness and cryptography are aws-lc-rs's, key formats `ssh-key`'s.

mod exchange;
mod keys;
mod negotiation;
mod packet;
pub(in crate::ssh) mod signing;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use postern_proto::wire::{Reader, WireError, Writer};
use thiserror::Error;

use keys::Kex;
use negotiation::KEXINIT;
use packet::{Opening, Sealing};
use signing::HostKey;

use super::HostIdentity;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// We dialled.
    Client,
    /// We were dialled.
    Server,
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransportError {
    /// The peer does not speak SSH 2.0, or talks too much before.
    #[error("the peer does not identify itself as SSH 2.0")]
    Identification,
    /// A packet that the peer did not make, or not in this place.
    #[error("a packet was changed on its way")]
    Forged,
    /// A packet above the limit.
    #[error("a packet of {0} bytes is too long")]
    TooLong(usize),
    /// A message that cannot be read.
    #[error("the {0} of a message is malformed")]
    Framing(&'static str),
    /// A message that cannot be read.
    #[error("malformed message: {0}")]
    Wire(#[from] WireError),
    /// A message that is not allowed now.
    #[error("message {0} came out of order")]
    Unexpected(u8),
    /// Both sides offered different algorithms only.
    #[error("no {what} algorithm in common: the client offers {client}, the server {server}")]
    NothingInCommon {
        /// For what.
        what: &'static str,
        /// The client's names.
        client: String,
        /// The server's names.
        server: String,
    },
    /// The server's host key.
    #[error("the host key was refused: {0}")]
    HostKey(&'static str),
    /// The peer said goodbye.
    #[error("the peer disconnected ({code}): {message}")]
    Disconnected {
        /// RFC 4253 section 11.1.
        code: u32,
        /// Its words, without control characters.
        message: String,
    },
    /// The peer does not finish an exchange of keys and goes on sending under the old ones.
    #[error("the peer uses its keys for too long")]
    WornKeys,
    /// More was queued during a key exchange than may be.
    #[error("a key exchange took too long")]
    Backlog,
    /// Cryptography failed for a reason that is not the peer's.
    #[error("cryptography failed")]
    Crypto,
}

/// Message numbers of the transport layer (RFC 4253 section 12).
pub(super) mod message {
    pub(in crate::ssh) const DISCONNECT: u8 = 1;
    pub(super) const IGNORE: u8 = 2;
    pub(super) const UNIMPLEMENTED: u8 = 3;
    pub(super) const DEBUG: u8 = 4;
    pub(in crate::ssh) const SERVICE_REQUEST: u8 = 5;
    pub(in crate::ssh) const SERVICE_ACCEPT: u8 = 6;
    pub(super) const EXT_INFO: u8 = 7;
    pub(super) const NEWKEYS: u8 = 21;
    pub(super) const KEX_INIT: u8 = 30;
    pub(super) const KEX_REPLY: u8 = 31;
    /// The last number that is a key exchange method's own.
    pub(super) const LAST_KEX: u8 = 49;
    /// The first number of user authentication; from here on messages are the caller's.
    pub(super) const FIRST_ABOVE: u8 = 50;
}

/// RFC 4253 section 9: new keys after a gigabyte.
const REKEY_BYTES: u64 = 1 << 30;

/// Packets under one key after which a peer that takes no new ones is cut off: half of the numbers
/// that there are.
const WORN_PACKETS: u32 = 1 << 31;

/// What may wait for the end of a key exchange: more than the relay lets in.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;

/// Lines that a server may send before its identification, and their length (RFC 4253
/// section 4.2 names 255 bytes for the identification; OpenSSH reads 1,024 lines).
const MAX_LINES: usize = 50;
const MAX_LINE: usize = 255;

/// A buffer larger than this is given back once it is empty.
const KEEP_CAPACITY: usize = 8 * 1024;

/// One end of one SSH connection.
pub(super) struct Transport {
    role: Role,
    identity: Option<HostIdentity>,
    host_key_algorithms: Vec<String>,
    identification: Vec<u8>,
    peer_identification: Option<Vec<u8>>,
    lines: usize,
    input: BytesMut,
    output: BytesMut,
    opening: Opening,
    sealing: Sealing,
    kex: Kex,
    skip_guess: bool,
    strict: bool,
    session: Vec<u8>,
    host_key: Option<(Vec<u8>, HostKey)>,
    held: VecDeque<Bytes>,
    held_bytes: usize,
    /// The first exchange is through: what arrives is encrypted.
    secured: bool,
    authenticated: bool,
    rekey_bytes: u64,
    worn_packets: u32,
    failed: Option<TransportError>,
}

impl Transport {
    /// A client that verifies host keys of these algorithms, best first.
    pub(super) fn client(host_key_algorithms: Vec<String>) -> Result<Self, TransportError> {
        Self::new(Role::Client, None, host_key_algorithms)
    }

    /// A server that shows this identity.
    pub(super) fn server(identity: HostIdentity) -> Result<Self, TransportError> {
        let algorithms = identity.algorithms();
        Self::new(Role::Server, Some(identity), algorithms)
    }

    fn new(
        role: Role,
        identity: Option<HostIdentity>,
        host_key_algorithms: Vec<String>,
    ) -> Result<Self, TransportError> {
        let identification = concat!("SSH-2.0-Postern_", env!("CARGO_PKG_VERSION"))
            .as_bytes()
            .to_vec();
        let mut transport = Self {
            role,
            identity,
            host_key_algorithms,
            output: BytesMut::from([&identification, &b"\r\n"[..]].concat().as_slice()),
            identification,
            peer_identification: None,
            lines: 0,
            input: BytesMut::new(),
            opening: Opening::clear(),
            sealing: Sealing::clear(),
            kex: Kex::Idle,
            skip_guess: false,
            strict: false,
            session: Vec::new(),
            host_key: None,
            held: VecDeque::new(),
            held_bytes: 0,
            secured: false,
            authenticated: false,
            rekey_bytes: REKEY_BYTES,
            worn_packets: WORN_PACKETS,
            failed: None,
        };
        // Identification and offer travel together: no round trip for the first alone.
        transport.start_exchange()?;
        Ok(transport)
    }

    /// Where received bytes are put, and the bytes to send, which the caller takes as it sends.
    pub(super) fn buffers(&mut self) -> (&mut BytesMut, &mut BytesMut) {
        (&mut self.input, &mut self.output)
    }

    /// Bytes that are waiting to be sent.
    pub(super) fn backlog(&self) -> usize {
        self.output.len() + self.held_bytes
    }

    /// Bytes that were received and not handled.
    pub(super) fn received(&self) -> usize {
        self.input.len()
    }

    /// Bytes that the input must hold before the next message can be complete.
    pub(super) fn wanted(&self) -> usize {
        self.opening.wanted()
    }

    /// Whether messages can be sent: no exchange of ours is open, and the first is through.
    pub(super) fn may_send(&self) -> bool {
        !self.session.is_empty() && matches!(self.kex, Kex::Idle | Kex::AwaitNewKeys { .. })
    }

    /// Whether keys are being exchanged.
    pub(super) fn exchanging(&self) -> bool {
        !matches!(self.kex, Kex::Idle)
    }

    /// The session identifier (the first exchange hash); empty before.
    pub(super) fn session(&self) -> &[u8] {
        &self.session
    }

    /// What the server proved to own: a client's caller must check it before it goes on.
    pub(super) fn host_key(&self) -> Option<&HostKey> {
        self.host_key.as_ref().map(|(_, key)| key)
    }

    /// Whether the peer is the client that comes with this agent.
    pub(super) fn peer_is_postern(&self) -> bool {
        let peer = self.peer_identification.as_deref();
        peer.is_some_and(|peer| peer.starts_with(b"SSH-2.0-postern_"))
    }

    /// From now on the peer is authenticated: longer packets and new keys by volume.
    pub(super) fn authenticated(&mut self) {
        self.authenticated = true;
        self.opening.raise_limit();
    }

    /// New keys after this many bytes.
    #[cfg(test)]
    pub(super) fn rekey_after(&mut self, bytes: u64) {
        self.rekey_bytes = bytes;
    }

    /// Gives empty buffers back: an idle session holds almost nothing.
    pub(super) fn shrink(&mut self) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() && buffer.capacity() > KEEP_CAPACITY {
                *buffer = BytesMut::new();
            }
        }
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
    }

    /// Sends a message, or keeps it until the keys are exchanged.
    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), TransportError> {
        if !self.may_send() {
            self.held_bytes += payload.len();
            if self.held_bytes > MAX_HELD_BYTES {
                return Err(TransportError::Backlog);
            }
            self.held.push_back(Bytes::copy_from_slice(payload));
            return Ok(());
        }
        self.sealing.seal(payload, &mut self.output)?;
        self.rekey_when_due()
    }

    /// Says goodbye (RFC 4253 section 11.1). What follows it is not sent.
    pub(super) fn disconnect(&mut self, code: u32, message: &str) -> Result<(), TransportError> {
        let payload = Writer::new()
            .u8(message::DISCONNECT)
            .u32(code)
            .vec32(message.as_bytes())
            .vec32(b"")
            .finish();
        // Also in the middle of an exchange: nothing comes after it.
        self.sealing.seal(&payload, &mut self.output)
    }

    /// The next message for the layers above, when all of it is there. An error is final: it
    /// comes again.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let next = self.try_next();
        self.failed = next.as_ref().err().cloned();
        next
    }

    fn try_next(&mut self) -> Result<Option<Bytes>, TransportError> {
        if self.peer_identification.is_none() && !self.identify()? {
            return Ok(None);
        }
        while let Some(payload) = self.opening.open(&mut self.input)? {
            // New keys were asked for long before; the number of packets must not come round.
            if self.opening.used().packets >= self.worn_packets {
                return Err(TransportError::WornKeys);
            }
            if let Some(payload) = self.handle(payload.freeze())? {
                return Ok(Some(payload));
            }
        }
        Ok(None)
    }

    /// Reads the peer's identification (RFC 4253 section 4.2).
    fn identify(&mut self) -> Result<bool, TransportError> {
        loop {
            let end = self
                .input
                .iter()
                .take(MAX_LINE + 1)
                .position(|b| *b == b'\n');
            let Some(end) = end else {
                return match self.input.len() {
                    length if length > MAX_LINE => Err(TransportError::Identification),
                    _ => Ok(false),
                };
            };
            let mut line = self.input.split_to(end + 1);
            line.truncate(end);
            if line.last() == Some(&b'\r') {
                line.truncate(end - 1);
            }
            if line.starts_with(b"SSH-") {
                // RFC 4253 section 4.2 has no NUL in it.
                if line.contains(&0) {
                    return Err(TransportError::Identification);
                }
                if !line.starts_with(b"SSH-2.0-") && !line.starts_with(b"SSH-1.99-") {
                    return Err(TransportError::Identification);
                }
                self.peer_identification = Some(line.to_vec());
                return Ok(true);
            }
            self.lines += 1;
            if self.role == Role::Server || self.lines > MAX_LINES {
                return Err(TransportError::Identification);
            }
        }
    }

    /// Handles a message of this layer, or returns it for the ones above.
    fn handle(&mut self, payload: Bytes) -> Result<Option<Bytes>, TransportError> {
        let kind = *payload.first().ok_or(TransportError::Framing("type"))?;
        if kind == message::DISCONNECT {
            return Err(disconnected(&payload));
        }
        if std::mem::take(&mut self.skip_guess) {
            // Only a message of an exchange can be a guess (RFC 4253 section 7): nothing else may
            // be made to disappear.
            return match kind {
                message::KEX_INIT..=message::LAST_KEX => Ok(None),
                _ => Err(TransportError::Unexpected(kind)),
            };
        }
        match kind {
            KEXINIT => self.on_offer(&payload)?,
            message::KEX_INIT | message::KEX_REPLY | message::NEWKEYS => {
                self.on_exchange(kind, &payload)?;
            }
            // The first exchange is not authenticated yet: nothing else may be slipped into it.
            // OpenSSH demands that when both sides are strict (CVE-2023-48795); we always do.
            _ if !self.secured => return Err(TransportError::Unexpected(kind)),
            message::IGNORE | message::DEBUG | message::UNIMPLEMENTED | message::EXT_INFO => {}
            message::SERVICE_REQUEST | message::SERVICE_ACCEPT | message::FIRST_ABOVE.. => {
                // After the peer's offer nothing of these layers may come until its new keys.
                if !matches!(self.kex, Kex::Idle | Kex::Offered { .. }) {
                    return Err(TransportError::Unexpected(kind));
                }
                self.rekey_when_due()?;
                return Ok(Some(payload));
            }
            _ => self.refuse_message()?,
        }
        Ok(None)
    }

    /// Answers the last message with `UNIMPLEMENTED`.
    pub(super) fn refuse_message(&mut self) -> Result<(), TransportError> {
        let payload = Writer::new()
            .u8(message::UNIMPLEMENTED)
            .u32(self.opening.last_sequence())
            .finish();
        self.sealing.seal(&payload, &mut self.output)
    }
}

/// A peer's goodbye; its words may be shown to a person.
fn disconnected(payload: &[u8]) -> TransportError {
    let mut reader = Reader::new(payload);
    let read = (|| {
        reader.u8("message")?;
        let code = reader.u32("code")?;
        let message = reader.vec32("message", 16 * 1024)?;
        Ok::<_, WireError>((code, printable(message, 200)))
    })();
    match read {
        Ok((code, message)) => TransportError::Disconnected { code, message },
        Err(error) => error.into(),
    }
}

/// A peer's text as it may appear in a message: one line, no control characters, cut.
pub(super) fn printable(text: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(text)
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests;
