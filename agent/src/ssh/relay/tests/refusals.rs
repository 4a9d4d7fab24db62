//! What is refused reaches nobody, and its sender learns why.

use super::*;

#[tokio::test]
async fn a_denied_forward_is_refused_with_the_reason_and_the_target_hears_nothing() {
    use futures_util::StreamExt;
    let mut stage = Stage::new();
    stage.user_says(&direct()).unwrap();
    let asked = stage.relay.decisions.next().await.unwrap();
    // Not even while it is being decided.
    assert_eq!(stage.heard(), (vec![], vec![]));
    let refused = Decided {
        result: Err(denied()),
        ..asked
    };
    stage.relay.on_decided(refused).unwrap();
    let expected = message::open_failure(3, message::PROHIBITED, "policy no-tunnels forbids it");
    assert_eq!(stage.heard(), (vec![expected.into()], vec![]));
    // The number is free again.
    stage.channel();
}

#[tokio::test]
async fn a_denied_program_is_refused_in_words_and_the_target_hears_nothing() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let refused = stage.refused().await;
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let words = "postern: policy no-tunnels forbids it\r\nhint: ask for access\r\n";
    let expected: Vec<Bytes> = vec![
        message::stderr(3, words).into(),
        plain(message::CHANNEL_FAILURE, 3).into(),
    ];
    assert_eq!(stage.heard(), (expected, vec![]));
}

#[tokio::test]
async fn nothing_of_ours_follows_the_close_of_a_target() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let refused = stage.refused().await;
    let closed: Bytes = plain(message::CHANNEL_CLOSE, 3).into();
    stage.target_says(&closed).unwrap();
    stage.relay.on_landed(Way::Up, refused).unwrap();
    assert_eq!(stage.heard(), (vec![closed], vec![]));
}

#[tokio::test]
async fn words_of_ours_take_room_that_the_target_was_never_promised() {
    let mut stage = Stage::new();
    stage.user_says(&open("session", b"")).unwrap();
    let opened = message::Open::parse(&stage.heard().1[0]).unwrap();
    assert!(opened.window < 100_000);
    let confirmed = Writer::new().u8(91).u32(3).u32(8).u32(100_000).u32(32_768);
    stage.target_says(&confirmed.finish()).unwrap();
    stage.heard();
    stage.user_says(&request("shell")).unwrap();
    let refused = stage.refused().await;
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let (user, _) = stage.heard();
    // Number, channel, type and length stand before the words.
    let words = u32::try_from(user[0].len() - 13).unwrap();
    assert!(words <= 100_000 - opened.window);
    // When the user takes more, that is made good first.
    for (more, passes) in [(words - 1, None), (11, Some(10)), (7, Some(7))] {
        stage.user_says(&message::window_adjust(8, more)).unwrap();
        let passes = passes.map(|passes| message::window_adjust(8, passes));
        let expected: Vec<Bytes> = passes.into_iter().map(Bytes::from).collect();
        assert_eq!(stage.heard(), (vec![], expected));
    }
}

#[tokio::test]
async fn a_denied_agent_is_not_lent() {
    let mut stage = Stage::new();
    stage.channel();
    stage
        .user_says(&request("auth-agent-req@openssh.com"))
        .unwrap();
    let refused = stage.refused().await;
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let failed: Bytes = plain(message::CHANNEL_FAILURE, 3).into();
    assert_eq!(stage.heard(), (vec![failed], vec![]));
    stage
        .target_says(&open("auth-agent@openssh.com", b""))
        .unwrap();
    let (user, target) = stage.heard();
    assert_eq!(
        (user.len(), target[0][0]),
        (0, message::CHANNEL_OPEN_FAILURE)
    );
}

#[tokio::test]
async fn a_decision_that_cannot_be_logged_ends_the_session() {
    use futures_util::StreamExt;
    let mut stage = Stage::new();
    stage.user_says(&direct()).unwrap();
    let asked = stage.relay.decisions.next().await.unwrap();
    let failed = Decided {
        result: Err(ChannelRefused::Evidence(broken())),
        ..asked
    };
    let end = stage.relay.on_decided(failed).unwrap_err();
    assert_eq!(end.reason, CloseReason::Evidence);
    assert_eq!(stage.heard(), (vec![], vec![]));
}
