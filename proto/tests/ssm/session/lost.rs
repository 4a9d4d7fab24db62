//! Messages and connections that are lost, and sides that are away.

use super::*;

#[test]
fn a_lost_connection_with_data_in_flight_makes_messages_shorter_for_a_while() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    assert_eq!(pair.client.payload(), 16 * 1024);
    pair.client.write(now, &[0; 100_000]).unwrap();
    frames(&mut pair.client, now);
    pair.client.handle_disconnected();
    assert_eq!(pair.client.payload(), 8 * 1024);
    assert_eq!(pair.client.poll_transmit(now), None);
    assert_eq!(pair.client.poll_timeout(), None);
    pair.client.handle_connected(now, UNIX, token());
    pair.settle();
    for _ in 0..20 {
        let room = pair.client.room().min(60_000);
        pair.client.write(now, &vec![0; room]).unwrap();
        pair.settle();
    }
    assert_eq!(pair.client.payload(), 16 * 1024);
}

#[test]
fn a_resumed_session_has_a_new_token_and_the_same_client_id_and_goes_on() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.handle_disconnected();
    assert_eq!(pair.client.write(now, b"typed while away"), Ok(16));
    let fresh = SecretText::new("fresh".into());
    pair.client.handle_connected(now, UNIX, fresh);
    let Some(Transmit::Text(text)) = pair.client.poll_transmit(now) else {
        panic!("no opening text")
    };
    for part in [
        r#""TokenValue":"fresh""#,
        r#""ClientId":"id""#,
        CLIENT_VERSION,
    ] {
        assert!(text.expose().contains(part), "{}", text.expose());
    }
    let (_, seen) = pair.settle();
    assert_eq!(seen, [Event::Data(Bytes::from_static(b"typed while away"))]);
}

#[test]
fn after_a_reconnect_all_that_is_unacknowledged_goes_out_at_once() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.write(now, &[0; 100_000]).unwrap();
    let lost = frames(&mut pair.client, now);
    assert_eq!(lost.len(), 7);
    pair.client.handle_disconnected();
    pair.client.handle_connected(now, UNIX, token());
    assert_eq!(frames(&mut pair.client, now), lost);
}

#[test]
fn while_the_other_side_is_away_one_message_asks_for_it() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    let say = |kind| Message::unnumbered(kind, MessageId([0; 16]), 1, publication("s")).encode();
    pair.client
        .handle_message(now, &say(MessageKind::PausePublication))
        .unwrap();
    assert!(pair.client.is_peer_away());
    for piece in [b"a", b"b", b"c"] {
        pair.client.write(now, piece).unwrap();
    }
    assert_eq!(frames(&mut pair.client, now).len(), 1);
    pair.client
        .handle_message(now, &say(MessageKind::StartPublication))
        .unwrap();
    assert_eq!(frames(&mut pair.client, now).len(), 2);
    assert!(!pair.client.is_peer_away());
}

#[test]
fn a_target_that_vanishes_ends_the_session_and_time_without_connection_does_not_count() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    pair.client.write(pair.now, b"hello?").unwrap();
    let mut now = pair.now;
    while now < pair.now + Duration::from_secs(299) {
        frames(&mut pair.client, now);
        now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(now);
    }
    assert!(!pair.client.is_closed());
    pair.client.handle_disconnected();
    now += Duration::from_secs(3600);
    pair.client.handle_timeout(now);
    pair.client.handle_connected(now, UNIX, token());
    assert!(!pair.client.is_closed());
    let back = now;
    while !pair.client.is_closed() {
        frames(&mut pair.client, now);
        now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(now);
    }
    assert_eq!(now, back + Duration::from_secs(300));
    assert_eq!(ended(&mut pair.client).reason, CloseReason::Silent);
}

#[test]
fn an_end_with_messages_missing_says_so() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.agent.write(now, b"lost").unwrap();
    pair.agent.write(now, b"kept").unwrap();
    let sent = frames(&mut pair.agent, now);
    pair.client.handle_message(now, &sent[1]).unwrap();
    pair.client
        .handle_message(now, &closed_message("bye\n"))
        .unwrap();
    let closed = ended(&mut pair.client);
    assert!(closed.is_incomplete);
    assert_eq!(closed.reason.to_string(), "the session ended: bye");
}

#[test]
fn the_first_data_comes_again_soon() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.write(now, b"first").unwrap();
    let lost = frames(&mut pair.client, now);
    assert_eq!(lost.len(), 1);
    assert_eq!(
        pair.client.poll_timeout(),
        Some(now + Duration::from_millis(20))
    );
    assert_eq!(
        frames(&mut pair.client, now + Duration::from_millis(20)),
        lost
    );
}

#[test]
fn a_repeated_message_is_acknowledged_again() {
    let mut pair = pair();
    pair.open(Session::StandardStream);
    let now = pair.now;
    pair.agent.write(now, b"data").unwrap();
    let sent = frames(&mut pair.agent, now);
    pair.client.handle_message(now, &sent[0]).unwrap();
    events(&mut pair.client);
    assert_eq!(
        frames(&mut pair.client, now).len(),
        1,
        "and this one is lost"
    );
    let later = now + Duration::from_secs(1);
    let again = frames(&mut pair.agent, later);
    assert_eq!(again, sent, "the same bytes");
    pair.client.handle_message(later, &again[0]).unwrap();
    assert_eq!(frames(&mut pair.client, later).len(), 1);
    assert_eq!(events(&mut pair.client), []);
}
