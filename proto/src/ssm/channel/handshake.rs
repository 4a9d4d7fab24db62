//! The handshake of either role, as steps: no numbering, no time.

mod agent;
mod client;

use bytes::Bytes;

pub(super) use agent::AgentHandshake;
pub use agent::{Encryption, Plan};
pub(super) use client::{ClientHandshake, Key};

use super::event::{CloseReason, Event, Opened, Session};
use crate::ssm::crypt::Cipher;
use crate::ssm::payload::PayloadKind;
use crate::ssm::version::PortMode;

/// What follows from a handshake message.
#[derive(Debug)]
pub(super) enum Step {
    Send(PayloadKind, Bytes),
    Tell(Event),
    Open(Opened, Option<Cipher>),
    Fail(CloseReason),
}

/// A message that has no place at this point.
const OUT_OF_PLACE: &str = "a handshake message out of place";
/// One that cannot be read.
const MALFORMED: &str = "a malformed handshake message";

fn violation(what: &'static str) -> Vec<Step> {
    vec![Step::Fail(CloseReason::Violation(what))]
}

/// How a port session is spoken, when these say whether they multiplex and do without keepalive.
fn port_mode(session: &Session, multiplexes: bool, without_keepalive: bool) -> Option<PortMode> {
    let Session::Port(properties) = session else {
        return None;
    };
    Some(if !properties.is_forwarding() {
        PortMode::Stream
    } else if multiplexes {
        PortMode::Multiplexed {
            keepalive: !without_keepalive,
        }
    } else {
        PortMode::Basic
    })
}
