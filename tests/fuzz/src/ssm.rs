//! The data channel of Session Manager.

use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::channel::{Config, DataChannel, Seed};
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::{PayloadKind, SecretText};
use postern_proto::ssm::smux::{Limits, Mux};
use postern_proto::ssm::{CLIENT_VERSION, Role};

use crate::pieces;

/// Entry points that the suite feeds with random bytes.
#[path = "../../../proto/tests/ssm/any_bytes.rs"]
pub(crate) mod any_bytes;

const KINDS: [MessageKind; 7] = [
    MessageKind::InputStreamData,
    MessageKind::OutputStreamData,
    MessageKind::Acknowledge,
    MessageKind::ChannelClosed,
    MessageKind::StartPublication,
    MessageKind::PausePublication,
    MessageKind::AgentSessionState,
];

const PAYLOADS: [PayloadKind; 8] = [
    PayloadKind::Output,
    PayloadKind::Size,
    PayloadKind::HandshakeRequest,
    PayloadKind::HandshakeResponse,
    PayloadKind::HandshakeComplete,
    PayloadKind::ChallengeRequest,
    PayloadKind::Flag,
    PayloadKind::ExitCode,
];

/// A peer of either role that sends raw frames, and messages with any payload.
pub(crate) fn ssm_channel(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else {
        return;
    };
    let (mut now, unix) = (Instant::now(), Duration::from_secs(1_700_000_000));
    let config = Config::new(Seed::new([7; 32]), CLIENT_VERSION, "fuzz");
    let mut channel = match mode & 1 {
        0 => DataChannel::client(config, now, unix),
        _ => DataChannel::agent(config, now, unix),
    };
    channel.handle_connected(now, unix, SecretText::new("token".into()));
    for (number, piece) in pieces(input).enumerate() {
        let Some((how, rest)) = piece.split_first() else {
            channel.handle_disconnected();
            channel.handle_connected(now, unix, SecretText::new("token".into()));
            continue;
        };
        let payload = Bytes::copy_from_slice(rest);
        let id = MessageId::from_random([number as u8; 16]);
        let frame = match how & 7 {
            7 => payload,
            kind => {
                let kind = KINDS[usize::from(kind) % KINDS.len()];
                let carried = PAYLOADS[usize::from(how >> 3) % PAYLOADS.len()];
                match kind.is_numbered() {
                    true => Message::numbered(kind, number as u64, id, 1, carried, payload),
                    false => Message::unnumbered(kind, id, 1, payload),
                }
                .encode()
            }
        };
        let _ = channel.handle_message(now, &frame);
        while channel.poll_event().is_some() {}
        now += Duration::from_millis(u64::from(*how) * 8);
        channel.handle_timeout(now);
        let mut turns = 0;
        while channel.poll_transmit(now).is_some() {
            turns += 1;
            assert!(turns < 10_000, "it never stops sending");
        }
    }
}

/// A peer of the multiplexer.
pub(crate) fn ssm_mux(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else {
        return;
    };
    let mut now = Instant::now();
    let role = if mode & 1 == 0 {
        Role::Client
    } else {
        Role::Agent
    };
    let limits = Limits {
        streams: 8,
        send: 4096,
        receive: 4096,
    };
    let mut mux = Mux::new(role, limits, mode & 2 == 0, now);
    let own = mux.open();
    for piece in pieces(input) {
        if mux.handle_data(now, Bytes::copy_from_slice(piece)).is_err() {
            return;
        }
        assert!(mux.len() <= 16, "streams are not bounded");
        if let Ok(id) = &own {
            let _ = mux.write(*id, piece);
            let _ = mux.read(*id, 100);
        }
        while mux.poll_event().is_some() {}
        let mut out = Vec::new();
        mux.poll_transmit(&mut out, 4096);
        now += Duration::from_millis(500);
        if mux.handle_timeout(now).is_err() {
            return;
        }
    }
}
