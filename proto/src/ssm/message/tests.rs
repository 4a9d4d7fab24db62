use super::*;

fn message() -> Message {
    Message::numbered(
        MessageKind::InputStreamData,
        7,
        MessageId(*b"0123456789abcdef"),
        1,
        PayloadKind::Output,
        Bytes::from_static(b"hello"),
    )
}

fn patched(place: usize, byte: u8) -> Bytes {
    let mut frame = message().encode().to_vec();
    frame[place] = byte;
    frame.into()
}

#[test]
fn the_halves_of_the_id_change_places() {
    assert_eq!(&message().encode()[64..80], b"89abcdef01234567");
    assert_eq!(
        MessageId(*b"0123456789abcdef").to_string(),
        "30313233-3435-3637-3839-616263646566"
    );
}

#[test]
fn an_id_from_random_bytes_is_a_version_4_uuid() {
    assert_eq!(
        MessageId::from_random([0xff; 16]).to_string(),
        "ffffffff-ffff-4fff-bfff-ffffffffffff"
    );
    assert_eq!(
        MessageId::from_random([0; 16]).to_string(),
        "00000000-0000-4000-8000-000000000000"
    );
}

#[test]
fn padding_with_nul_is_read() {
    let mut frame = message().encode().to_vec();
    for byte in &mut frame[4 + 17..36] {
        *byte = 0;
    }
    assert_eq!(Message::decode(&frame.into()), Ok(message()));
}

#[test]
fn a_changed_payload_is_refused() {
    assert_eq!(
        Message::decode(&patched(120, b'H')),
        Err(MessageError::Digest)
    );
    assert_eq!(Message::decode(&patched(80, 0)), Err(MessageError::Digest));
}

#[test]
fn the_payload_length_field_is_not_believed() {
    assert_eq!(Message::decode(&patched(119, 200)), Ok(message()));
    assert_eq!(Message::decode(&patched(116, 0xff)), Ok(message()));
}

#[test]
fn a_longer_header_is_skipped_and_a_wrong_one_refused() {
    let mut frame = message().encode().to_vec();
    frame[3] = 118;
    frame.splice(120..120, *b"xy");
    assert_eq!(Message::decode(&frame.into()), Ok(message()));
    assert_eq!(
        Message::decode(&patched(3, 115)),
        Err(MessageError::HeaderLength(115))
    );
    assert_eq!(
        Message::decode(&patched(0, 0xff)),
        Err(MessageError::HeaderLength(0xff00_0074))
    );
}

#[test]
fn a_negative_number_and_a_time_of_zero_are_refused() {
    assert_eq!(
        Message::decode(&patched(48, 0x80)),
        Err(MessageError::Sequence(i64::MIN + 7))
    );
    assert_eq!(Message::decode(&patched(47, 0)), Err(MessageError::Created));
}

#[test]
fn an_unknown_type_stays_visible() {
    let mut frame = message().encode().to_vec();
    frame[4..36].copy_from_slice(b"agent_task_complete             ");
    let decoded = Message::decode(&frame.clone().into()).unwrap();
    assert_eq!(format!("{:?}", decoded.kind), "Other(agent_task_complete)");
    assert_eq!(decoded.encode(), frame);
}

#[test]
fn publication_control_is_taken_with_any_header() {
    let mut frame = vec![0xff; 4];
    frame.extend_from_slice(b"pause_publication               rest");
    let decoded = Message::decode(&frame.into()).unwrap();
    assert_eq!(decoded.kind, MessageKind::PausePublication);
}
