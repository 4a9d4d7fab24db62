//! Keys, notices and messages of any kind.

use super::*;

#[tokio::test]
async fn keys_change_on_both_sides_at_once_under_traffic_in_both_directions() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    stage.settle().await;
    stage.relay.user.transport.rekey_after(100_000);
    stage.relay.target.transport.rekey_after(100_000);
    let data = |id: u32, n: u32| {
        let body = [&n.to_be_bytes()[..], &[7; 8000]].concat();
        Writer::new().u8(94).u32(id).vec32(&body).finish()
    };
    let (mut at_user, mut at_target) = (vec![], vec![]);
    for round in 0..10 {
        // Everything is on its way before anybody reads: the windows allow that.
        for n in round * 100..(round + 1) * 100 {
            stage.user.send(&data(8, n)).unwrap();
            stage.target.send(&data(3, n)).unwrap();
        }
        let (user, target) = stage.settle().await;
        at_user.extend(user);
        at_target.extend(target);
    }
    let expected = |id: u32| {
        (0..1000)
            .map(|n| data(id, n).into())
            .collect::<Vec<Bytes>>()
    };
    assert!(at_target == expected(8), "{} arrived", at_target.len());
    assert!(at_user == expected(3), "{} arrived", at_user.len());
    assert!(!stage.relay.user.transport.exchanging());
    assert!(!stage.relay.target.transport.exchanging());
}

#[tokio::test]
async fn a_notice_reaches_terminals_and_no_pipes() {
    let mut stage = Stage::new();
    stage.channel();
    let terminal = Writer::new()
        .vec32(b"xterm")
        .u32(80)
        .u32(24)
        .u32(0)
        .u32(0)
        .vec32(b"")
        .finish();
    for (with_terminal, expected) in [(false, 0), (true, 1)] {
        if with_terminal {
            // The first program was refused by the target.
            stage
                .target_says(&plain(message::CHANNEL_FAILURE, 3))
                .unwrap();
            stage.heard();
            let fields = Writer::new().raw(&request("pty-req")).raw(&terminal);
            stage.user_says(&fields.finish()).unwrap();
            stage
                .target_says(&plain(message::CHANNEL_SUCCESS, 3))
                .unwrap();
        }
        stage.user_says(&request("shell")).unwrap();
        let granted = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, granted).unwrap();
        stage.heard();
        stage.relay.notify("this session ends in 5 minutes");
        if with_terminal {
            stage.relay.advance().unwrap();
            let recorded = stage.asked(Way::Down).await;
            stage.relay.on_landed(Way::Down, recorded).unwrap();
        }
        assert_eq!(stage.heard().0.len(), expected);
    }
}

#[tokio::test]
async fn any_messages_from_both_ends_end_the_session_at_most() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let one = proptest::collection::vec(proptest::num::u8::ANY, 0..40);
    let name = proptest::sample::select(vec![
        "session",
        "direct-tcpip",
        "forwarded-tcpip",
        "pty-req",
        "shell",
        "exec",
        "subsystem",
        "window-change",
        "tcpip-forward",
        "exit-status",
        "sftp",
    ]);
    // Mostly what these layers know, about channels that may exist.
    let message = (80_u8..102, 0_u32..10, name, one).prop_map(|(kind, id, name, rest)| {
        let start = Writer::new().u8(kind);
        let start = match kind {
            80 | 90 => start.vec32(name.as_bytes()).u32(id),
            98 => start.u32(id).vec32(name.as_bytes()),
            _ => start.u32(id),
        };
        start.raw(&rest).finish()
    });
    let steps = proptest::collection::vec((proptest::bool::ANY, message), 1..30);
    // The same messages each time: the fuzz targets look further.
    let mut runner = TestRunner::deterministic();
    let session = session("root", &target("web-1", 22));
    for _ in 0..300 {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        let mut stage = Stage::of(session.clone());
        stage.channel();
        for (up, message) in steps {
            let said = match up {
                true => stage.user_says(&message),
                false => stage.target_says(&message),
            };
            if said.is_err() {
                break;
            }
        }
    }
}
