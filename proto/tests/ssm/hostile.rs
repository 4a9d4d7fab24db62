//! No bytes make anything panic, and what arrives cannot make us hold much.

use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::channel::{ChannelError, Config, DataChannel, Event, Seed};
use postern_proto::ssm::message::{
    MESSAGE_LIMIT, Message, MessageError, MessageId, MessageKind, PAYLOAD_LIMIT,
};
use postern_proto::ssm::payload::{Acknowledge, PayloadKind, SecretText};
use proptest::prelude::*;

use crate::any_bytes;
use crate::vectors::sessions;

fn data(sequence: u64, payload: Bytes) -> Bytes {
    Message::numbered(
        MessageKind::OutputStreamData,
        sequence,
        MessageId([0; 16]),
        1,
        PayloadKind::Output,
        payload,
    )
    .encode()
}

fn client() -> (DataChannel, Instant) {
    let now = Instant::now();
    let config = Config::new(Seed::new([0; 32]), "1.2.700.0", "id");
    let mut client = DataChannel::client(config, now, Duration::from_secs(1));
    client.handle_connected(now, Duration::from_secs(1), SecretText::new("t".into()));
    (client, now)
}

#[test]
fn a_message_above_the_limit_is_refused() {
    let long = |length| Bytes::from(vec![b' '; length]);
    assert!(matches!(
        Message::decode(&long(MESSAGE_LIMIT + 1)),
        Err(MessageError::Wire(_))
    ));
    assert!(Message::decode(&data(0, long(PAYLOAD_LIMIT))).is_ok());
    assert!(matches!(
        Message::decode(&data(0, long(PAYLOAD_LIMIT + 1))),
        Err(MessageError::Wire(_))
    ));
}

#[test]
fn messages_behind_a_gap_are_kept_to_a_bound() {
    let (mut client, now) = client();
    let payload = Bytes::from(vec![0; 100_000]);
    let mut kept = 0;
    for sequence in 1..500 {
        match client.handle_message(now, &data(sequence, payload.clone())) {
            Ok(()) => kept += payload.len(),
            Err(error) => assert_eq!(error, ChannelError::NoRoom(sequence)),
        }
    }
    assert!(kept <= 8 * 1024 * 1024, "{kept}");
    assert_eq!(
        client.handle_message(now, &data(u64::MAX >> 1, Bytes::from_static(b"x"))),
        Err(ChannelError::NoRoom(u64::MAX >> 1))
    );
}

#[test]
fn a_flood_of_repeated_messages_makes_few_acknowledgements() {
    let (mut client, now) = client();
    let first = data(0, Bytes::from_static(b"$ "));
    for _ in 0..100_000 {
        client.handle_message(now, &first).unwrap();
        while client.poll_event().is_some() {}
    }
    assert!(
        !client.wants_message(),
        "the socket waits until they are sent"
    );
    let count = std::iter::from_fn(|| client.poll_transmit(now)).count();
    assert!(count < 5000, "{count}");
}

#[test]
fn a_second_handshake_ends_a_running_session() {
    let (mut client, now) = client();
    client
        .handle_message(now, &data(0, Bytes::from_static(b"$ ")))
        .unwrap();
    let again = Message::numbered(
        MessageKind::OutputStreamData,
        1,
        MessageId([0; 16]),
        1,
        PayloadKind::HandshakeRequest,
        Bytes::from_static(br#"{"AgentVersion":"3.3.0.0","RequestedClientActions":[]}"#),
    );
    client.handle_message(now, &again.encode()).unwrap();
    assert!(client.is_closed());
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_is_refused() {
    let (mut client, now) = client();
    let payload = Acknowledge::payload(MessageKind::InputStreamData, MessageId([0; 16]), 7);
    let forged = Message::unnumbered(MessageKind::Acknowledge, MessageId([1; 16]), 1, payload);
    assert!(matches!(
        client.handle_message(now, &forged.encode()),
        Err(ChannelError::Acknowledgement(_))
    ));
    let ours = Message::numbered(
        MessageKind::InputStreamData,
        0,
        MessageId([0; 16]),
        1,
        PayloadKind::Output,
        Bytes::from_static(b"reflected"),
    );
    assert_eq!(
        client.handle_message(now, &ours.encode()),
        Err(ChannelError::WrongSide(MessageKind::InputStreamData))
    );
    assert!(!matches!(client.poll_event(), Some(Event::Data(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        any_bytes::message(&bytes);
        any_bytes::mux(&bytes);
    }

    #[test]
    fn no_frames_make_the_multiplexer_panic(
        frames in proptest::collection::vec((0u8..5, 0u16..40, 0u32..9), 0..60)
    ) {
        let mut bytes = Vec::new();
        for (command, length, stream) in frames {
            bytes.extend_from_slice(&[1, command]);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&stream.to_le_bytes());
            bytes.resize(bytes.len() + usize::from(length), b'x');
        }
        any_bytes::mux(&bytes);
    }

    #[test]
    fn no_operations_make_a_channel_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        any_bytes::operations(&bytes);
    }

    #[test]
    fn no_damage_to_a_recorded_frame_makes_a_parser_panic(
        number in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        thread_local! {
            static FRAMES: Vec<Bytes> = sessions()
                .into_iter()
                .flat_map(|(_, entries)| entries)
                .filter_map(|entry| entry.frame)
                .collect();
        }
        let mut frame = FRAMES.with(|frames| frames[number.index(frames.len())].to_vec());
        for (place, byte) in damage {
            let place = place.index(frame.len());
            frame[place] = byte;
        }
        any_bytes::message(&frame);
        frame.truncate(cut.index(frame.len()));
        any_bytes::message(&frame);
    }
}
