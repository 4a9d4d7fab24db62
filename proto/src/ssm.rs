//! The data channel of AWS Systems Manager Session Manager, as pure machines for either role.
//!
//! SSM-PROTOCOL.md, taken from the genuine programs running against each other, is the wire;
//! "plugin" in these pages is `session-manager-plugin` 1.2.677.0, "SSM Agent" is
//! `amazon-ssm-agent` 3.3.0.0. Layers, bottom up:
//!
//! ```text
//! WebSocket frames                the driver's: client, lab
//! message    header and payload   parse, encode, digest
//! reliable   send, receive        numbering, acknowledgement, resending, order
//! channel    DataChannel          connection, handshake, encryption, session types
//! smux       Mux                  many streams, in multiplexed port sessions
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`message`] | the binary message |
//! | [`payload`] | payload types and JSON bodies |
//! | [`version`] | what the peer's version number means |
//! | [`rtt`] | round trip and resend delay |
//! | [`reliable`] | one queue for each direction |
//! | [`crypt`] | AES-256-GCM under a KMS data key |
//! | [`channel`] | the whole, with deadlines and bounds |
//! | [`smux`] | the multiplexer |
//!
//! # Driving it
//!
//! One task owns the channel (and the [`smux::Mux`], where there is one) and the WebSocket:
//!
//! ```
//! # use std::time::{Duration, Instant};
//! # use bytes::Bytes;
//! use postern_proto::ssm::channel::{Config, DataChannel, Event, Seed, Transmit};
//! use postern_proto::ssm::payload::SecretText;
//! # fn random() -> [u8; 32] { [7; 32] }
//! # fn drive(now: Instant, unix: Duration, frame: Bytes, typed: &[u8]) {
//! let config = Config::new(Seed::new(random()), postern_proto::ssm::CLIENT_VERSION, "<uuid>");
//! let mut channel = DataChannel::client(config, now, unix);
//! // On every connection; later ones with the token of ResumeSession.
//! channel.handle_connected(now, unix, SecretText::new("<token>".into()));
//! // One turn of the loop: whichever of these happened,
//! if let Err(dropped) = channel.handle_message(now, &frame) {
//!     // a line in the log: it comes again
//! #   let _ = dropped;
//! }
//! if channel.room() > 0 {
//!     let taken = channel.write(now, typed).expect("room means open");
//! #   assert!(taken <= typed.len());
//! }
//! channel.handle_timeout(now);
//! // then what follows from it: events while they can be handed on,
//! while let Some(event) = channel.poll_event() {
//!     match event {
//!         Event::Opened(opened) => { /* opened.port says whether to make a Mux */ }
//!         Event::Data(bytes) => { /* to the terminal, or mux.handle_data(now, bytes) */ }
//!         Event::Closed(closed) => { /* closed.reason */ }
//!         _ => {}
//!     }
//! }
//! // and frames until there are none.
//! while let Some(transmit) = channel.poll_transmit(now) {
//!     match transmit {
//!         Transmit::Text(first) => { /* first.expose() */ }
//!         Transmit::Binary(frame) => { /* … */ }
//!     }
//! }
//! // Wait for a frame (only while channel.wants_message()), for input (only while
//! // channel.room() > 0), until channel.poll_timeout(). When the socket ends:
//! channel.handle_disconnected();
//! # }
//! ```
//!
//! With a multiplexer, poll channel events only while [`smux::Mux::wants_data`], and move its
//! output while the channel has room:
//!
//! ```
//! # use std::time::Instant;
//! # use postern_proto::ssm::{channel::{CommandError, DataChannel}, smux::{Mux, frame::HEADER}};
//! # fn pump(mux: &mut Mux, channel: &mut DataChannel, now: Instant) -> Result<(), CommandError> {
//! let mut out = Vec::new();
//! while mux.has_output() && channel.room() > HEADER {
//!     out.clear();
//!     mux.poll_transmit(&mut out, channel.room().min(channel.payload()));
//!     channel.write(now, &out)?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod channel;
pub mod crypt;
pub mod message;
pub mod payload;
pub mod reliable;
pub mod rtt;
pub mod smux;
pub mod version;

/// What our client calls itself: above every version on which SSM Agents decide, and numeric.
pub const CLIENT_VERSION: &str = "1.2.700.0";
/// What our SSM Agent in the lab calls itself: that of the one whose behaviour it follows.
pub const AGENT_VERSION: &str = "3.3.0.0";

/// Which end of a data channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who called StartSession.
    Client,
    /// AWS's agent on the target.
    Agent,
}
