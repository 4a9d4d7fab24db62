//! Entry points for fuzzers: pure functions of bytes that must not panic. The suite feeds them
//! random bytes and damaged frames; a fuzz target calls one of them and nothing else.

use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::channel::{
    Config, DataChannel, Encryption, Event, Plan, Seed, Session, Transmit,
};
use postern_proto::ssm::crypt::SessionKey;
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::handshake::{
    Challenge, HandshakeComplete, HandshakeRequest, HandshakeResponse, KmsResult,
};
use postern_proto::ssm::payload::{
    Acknowledge, AgentSessionState, ChannelClosed, Flag, OpenDataChannel, SecretText, TerminalSize,
    exit_code,
};
use postern_proto::ssm::smux::{self, Limits, Mux};
use postern_proto::ssm::{AGENT_VERSION, CLIENT_VERSION, Role};

/// Every parser of one message.
pub(crate) fn message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(&Bytes::copy_from_slice(bytes)) {
        let again = Message::decode(&message.encode());
        assert!(again.is_ok() || message.payload.is_empty(), "{again:?}");
        payload(&message.payload);
    }
    payload(bytes);
}

fn payload(bytes: &[u8]) {
    let _ = Acknowledge::from_payload(bytes);
    let _ = AgentSessionState::from_payload(bytes);
    let _ = ChannelClosed::from_payload(bytes);
    let _ = Challenge::from_payload(bytes);
    let _ = Flag::from_payload(bytes);
    let _ = HandshakeComplete::from_payload(bytes);
    let _ = TerminalSize::from_payload(bytes);
    let _ = exit_code(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = OpenDataChannel::from_text(text);
    }
    if let Ok(request) = HandshakeRequest::from_payload(bytes) {
        let back = HandshakeRequest::from_payload(&request.payload());
        assert_eq!(back.as_ref(), Ok(&request));
    }
    if let Ok(response) = HandshakeResponse::from_payload(bytes) {
        for action in response.actions {
            if let Ok(result) = KmsResult::from_value(action.action_result) {
                let _ = result.ciphertext();
            }
        }
    }
}

/// The multiplexer: bytes of the other side, between calls of the owner.
pub(crate) fn mux(bytes: &[u8]) {
    let now = Instant::now();
    for role in [Role::Client, Role::Agent] {
        let limits = Limits {
            streams: 4,
            send: 100,
            receive: 300,
        };
        let mut mux = Mux::new(role, limits, true, now);
        let mut ids = Vec::new();
        for chunk in bytes.chunks(13) {
            let _ = mux.handle_data(now, Bytes::copy_from_slice(chunk));
            while let Some(event) = mux.poll_event() {
                let (smux::Event::Opened(id)
                | smux::Event::Readable(id)
                | smux::Event::Finished(id)) = event;
                ids.push(id);
            }
            let id = ids.get(usize::from(chunk[0]) % ids.len().max(1)).copied();
            match (chunk[0] >> 5, id) {
                (0, _) => ids.extend(mux.open()),
                (1, Some(id)) => drop(mux.read(id, 7)),
                (2, Some(id)) => mux.finish(id),
                (3, Some(id)) => mux.reset(id),
                (4, Some(id)) => drop(mux.write(id, chunk)),
                _ => mux.poll_transmit(&mut Vec::new(), 40),
            }
            assert!(mux.len() <= 4);
            assert!(mux.holds_up().is_none_or(|(_, held)| held < 300 + 13));
        }
    }
}

/// Connects both and opens a session, of a kind that the byte chooses; or does nothing.
fn open(channels: &mut [DataChannel; 2], now: Instant, key: &SessionKey, kind: u8) {
    let [client, agent] = channels;
    if kind.is_multiple_of(4) {
        return;
    }
    for channel in [&mut *client, &mut *agent] {
        let token = SecretText::new("token".into());
        channel.handle_connected(now, Duration::from_secs(1), token);
    }
    let encryption = (kind % 4 == 3).then(|| Encryption {
        key_id: "key".into(),
        challenge: None,
    });
    let plan = Plan {
        session: Session::StandardStream,
        encryption,
    };
    if kind % 4 == 1 {
        agent.begin_unnamed().unwrap();
        agent.write(now, b"$ ").unwrap();
    } else {
        agent.begin(now, plan).unwrap();
    }
    for _ in 0..8 {
        pass(agent, client, now, key);
        pass(client, agent, now, key);
    }
    assert!(client.is_open() && agent.is_open());
}

fn pass(from: &mut DataChannel, to: &mut DataChannel, now: Instant, key: &SessionKey) {
    while let Some(transmit) = from.poll_transmit(now) {
        if let Transmit::Binary(frame) = transmit {
            to.handle_message(now, &frame).unwrap();
        }
    }
    while let Some(event) = to.poll_event() {
        if matches!(event, Event::KeyNeeded(_) | Event::KeyOffered(_)) {
            to.provide_key(now, key, b"sealed");
        }
    }
}

/// Both roles: the first byte says how far they are, then each is an operation, and some take the
/// bytes that follow.
pub(crate) fn operations(bytes: &[u8]) {
    let start = Instant::now();
    let mut now = start;
    let unix = Duration::from_secs(1);
    let token = || SecretText::new("token".into());
    let key = SessionKey::new(&[1; 64]).unwrap();
    let config = |version| {
        let mut config = Config::new(Seed::new([0; 32]), version, "id");
        config.event_bytes = 4096;
        config.limits.held_bytes = 4096;
        config
    };
    let mut channels = [
        DataChannel::client(config(CLIENT_VERSION), now, unix),
        DataChannel::agent(config(AGENT_VERSION), now, unix),
    ];
    let mut wire: [Vec<Bytes>; 2] = [Vec::new(), Vec::new()];
    let mut left = bytes.iter().copied();
    open(&mut channels, now, &key, left.next().unwrap_or_default());
    while let Some(operation) = left.next() {
        let at = usize::from(operation & 1);
        let argument = left.next().unwrap_or_default();
        let channel = &mut channels[at];
        match operation >> 1 & 15 {
            0 => channel.handle_connected(now, unix, token()),
            1 => channel.handle_disconnected(),
            2 | 3 => {
                while let Some(transmit) = channel.poll_transmit(now) {
                    if let Transmit::Binary(frame) = transmit {
                        wire[1 - at].push(frame);
                    }
                }
            }
            4 | 5 => {
                for frame in std::mem::take(&mut wire[at]) {
                    let _ = channel.handle_message(now, &frame);
                }
            }
            6 => {
                // Out of order, and one too many.
                let place = usize::from(argument) % wire[at].len().max(1);
                if let Some(frame) = wire[at].get(place).cloned() {
                    let _ = channel.handle_message(now, &frame);
                }
            }
            7 => wire[at].clear(),
            8 => {
                while let Some(event) = channel.poll_event() {
                    if matches!(event, Event::KeyNeeded(_) | Event::KeyOffered(_)) {
                        channel.provide_key(now, &key, b"sealed");
                    }
                }
            }
            9 => drop(channel.write(now, &vec![argument; usize::from(argument) * 9])),
            10 => now += Duration::from_millis(u64::from(argument)),
            11 => {
                now += Duration::from_secs(u64::from(argument));
                channel.handle_timeout(now);
            }
            12 => {
                let encryption = (argument & 1 == 1).then(|| Encryption {
                    key_id: "key".into(),
                    challenge: None,
                });
                let session = match argument & 6 {
                    0 => Session::StandardStream,
                    2 => Session::NonInteractiveCommands,
                    _ => Session::Port(Default::default()),
                };
                let plan = Plan {
                    session,
                    encryption,
                };
                let _ = channel.begin(now, plan);
            }
            13 => drop(channel.begin_unnamed()),
            14 => drop(channel.flag(now, Flag::Unknown(u32::from(argument)))),
            _ => {
                let kinds = [
                    MessageKind::InputStreamData,
                    MessageKind::OutputStreamData,
                    MessageKind::Acknowledge,
                    MessageKind::StartPublication,
                    MessageKind::PausePublication,
                ];
                let mut forged = Message::unnumbered(
                    kinds[usize::from(argument) % kinds.len()],
                    MessageId([0; 16]),
                    1,
                    left.by_ref()
                        .take(usize::from(argument))
                        .collect::<Vec<_>>()
                        .into(),
                );
                forged.sequence = u64::from(argument >> 4);
                let frame = forged.encode().to_vec();
                let mut frame = frame;
                frame[115] = argument & 15;
                let _ = channel.handle_message(now, &frame.into());
            }
        }
        assert!(channels[at].poll_timeout().is_none_or(|due| due >= start));
    }
}
