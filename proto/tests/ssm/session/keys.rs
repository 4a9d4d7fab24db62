//! Encrypted sessions.

use super::*;

#[test]
fn an_encrypted_session_proves_its_key_and_hides_its_data() {
    let mut pair = pair();
    let now = pair.now;
    let asked = pair.begin_encrypted(Session::StandardStream, Some("AAAA"));
    let [Event::KeyNeeded(asked)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (asked.key_id.as_str(), asked.challenge.as_deref()),
        ("alias/key", Some("AAAA"))
    );
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.client.provide_key(now, &key, b"sealed key");
    let (_, offered) = pair.settle();
    let [Event::KeyOffered(offer)] = &offered[..] else {
        panic!("{offered:?}")
    };
    assert_eq!(offer.ciphertext, b"sealed key");
    assert_eq!(offer.challenge.as_deref(), Some("AAAA"));
    pair.agent.provide_key(now, &key, b"");
    let (of_client, of_agent) = pair.settle();
    for seen in [of_client, of_agent] {
        let [Event::Opened(opened)] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert!(opened.is_encrypted);
        assert_eq!(opened.notice, "This session is encrypted using AWS KMS.");
    }
    pair.client.write(now, b"secret").unwrap();
    let sent = frames(&mut pair.client, now);
    assert!(!sent[0].windows(6).any(|window| window == b"secret"));
    // Plain data in an encrypted session is the end of it.
    let plain = Message {
        payload: Bytes::from_static(b"secret"),
        ..messages(&sent)[0].clone()
    };
    pair.agent.handle_message(now, &plain.encode()).unwrap();
    assert_eq!(ended(&mut pair.agent).reason, CloseReason::Encryption);
}

#[test]
fn another_key_fails_the_challenge_and_a_refused_one_the_handshake() {
    let mut pair = pair();
    let now = pair.now;
    pair.begin_encrypted(Session::StandardStream, None);
    pair.client
        .provide_key(now, &SessionKey::new(&[5; 64]).unwrap(), b"sealed");
    pair.settle();
    pair.agent
        .provide_key(now, &SessionKey::new(&[6; 64]).unwrap(), b"");
    let (seen, _) = pair.settle();
    assert!(
        matches!(
            &seen[..],
            [Event::Closed(Closed {
                reason: CloseReason::Encryption,
                ..
            })]
        ),
        "{seen:?}"
    );

    let mut pair = super::pair();
    pair.begin_encrypted(Session::StandardStream, None);
    pair.client.refuse_key(now, "AccessDenied");
    let (_, seen) = pair.settle();
    let [Event::Closed(Closed { reason, .. })] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        reason.to_string(),
        "the client did not do KMSEncryption (status 2): AccessDenied"
    );
}

#[test]
fn a_port_session_asks_for_a_key_and_does_not_use_it() {
    let mut pair = pair();
    let now = pair.now;
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.begin_encrypted(Session::Port(Default::default()), None);
    pair.client.provide_key(now, &key, b"sealed");
    pair.settle();
    pair.agent.provide_key(now, &key, b"");
    let (seen, _) = pair.settle();
    let [Event::Opened(opened)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (opened.port, opened.is_encrypted),
        (Some(PortMode::Stream), false)
    );
    pair.client.write(now, b"plain").unwrap();
    assert!(frames(&mut pair.client, now)[0].ends_with(b"plain"));
}

#[test]
fn data_instead_of_the_rest_of_a_handshake_is_refused() {
    let mut pair = pair();
    let now = pair.now;
    pair.begin_encrypted(Session::StandardStream, None);
    let data = numbered(MessageKind::OutputStreamData, 1, PayloadKind::Output, b"$ ");
    pair.client.handle_message(now, &data).unwrap();
    assert!(
        pair.client.is_closed(),
        "an unencrypted shell in place of an encrypted one"
    );
}

#[test]
fn an_encrypted_session_without_a_challenge_is_refused() {
    let mut pair = pair();
    let now = pair.now;
    pair.begin_encrypted(Session::StandardStream, None);
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.client.provide_key(now, &key, b"sealed");
    let complete = numbered(
        MessageKind::OutputStreamData,
        1,
        PayloadKind::HandshakeComplete,
        br#"{"HandshakeTimeToComplete":1,"CustomerMessage":""}"#,
    );
    pair.client.handle_message(now, &complete).unwrap();
    let closed = ended(&mut pair.client);
    assert!(matches!(closed.reason, CloseReason::Violation(_)));
}
