use super::*;

#[test]
fn an_unknown_action_keeps_its_name_and_a_malformed_known_one_is_refused() {
    let unknown = br#"{"AgentVersion":"4","RequestedClientActions":[{"ActionType":"Dance"}]}"#;
    let request = HandshakeRequest::from_payload(unknown).unwrap();
    assert_eq!(request.actions, [Action::Unknown("Dance".into())]);
    for malformed in [
        &br#"{"AgentVersion":"4","RequestedClientActions":[{"ActionType":"SessionType"}]}"#[..],
        br#"{"AgentVersion":"4","RequestedClientActions":[{"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":1}}]}"#,
        br#"{"AgentVersion":"4"}"#,
        br#"[]"#,
    ] {
        assert!(HandshakeRequest::from_payload(malformed).is_err());
    }
}

#[test]
fn properties_that_are_no_texts_are_read_as_such() {
    let request = HandshakeRequest::from_payload(
        br#"{"AgentVersion":"4","RequestedClientActions":[{"ActionType":"SessionType",
            "ActionParameters":{"SessionType":"Port","Properties":{"portNumber":22,"host":"h"}}}]}"#,
    )
    .unwrap();
    let [
        Action::SessionType {
            properties: Some(properties),
            ..
        },
    ] = &request.actions[..]
    else {
        panic!("{request:?}")
    };
    assert_eq!(
        (properties.port(), properties.host()),
        (Some(22), Some("h"))
    );
    assert!(!properties.is_forwarding());
}

#[test]
fn an_acknowledged_challenge_is_said_and_its_absence_is_not() {
    let json = |acknowledged| KmsResult::new(b"key", acknowledged).to_value().to_string();
    assert!(json(true).contains(r#""ChallengeAcknowledgement":true"#));
    assert!(!json(false).contains("ChallengeAcknowledgement"));
}

#[test]
fn more_actions_than_exist_are_refused() {
    let action = r#"{"ActionType":"x"}"#;
    let body = format!(
        r#"{{"AgentVersion":"4","RequestedClientActions":[{}]}}"#,
        vec![action; ACTION_LIMIT + 1].join(",")
    );
    assert!(HandshakeRequest::from_payload(body.as_bytes()).is_err());
}
