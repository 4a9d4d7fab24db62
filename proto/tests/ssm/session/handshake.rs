//! How a session opens.

use super::*;

#[test]
fn nothing_is_written_before_the_session_is_open() {
    let mut pair = pair();
    let now = pair.now;
    assert_eq!(pair.client.room(), 0);
    assert_eq!(pair.client.write(now, b"x"), Err(CommandError::NotOpen));
    assert_eq!(
        pair.client.flag(now, Flag::TerminateSession),
        Err(CommandError::NotOpen)
    );
    let size = TerminalSize { cols: 1, rows: 1 };
    assert_eq!(pair.client.resize(size), Err(CommandError::NotOpen));
    assert_eq!(pair.client.exit(now, 0), Err(CommandError::WrongRole));
    assert_eq!(pair.client.begin_unnamed(), Err(CommandError::WrongRole));
    assert_eq!(pair.agent.resize(size), Err(CommandError::WrongRole));
}

#[test]
fn an_agent_takes_no_data_before_the_handshake_is_over() {
    let mut pair = pair();
    let now = pair.now;
    let early = numbered(
        MessageKind::InputStreamData,
        0,
        PayloadKind::Output,
        b"early",
    );
    assert_eq!(
        pair.agent.handle_message(now, &early),
        Err(ChannelError::NoRoom(0))
    );
    pair.open(Session::NonInteractiveCommands);
}

#[test]
fn the_response_is_padded_and_goes_bare_when_that_does_not_get_through() {
    let bare_length = |frames: &[Bytes]| messages(frames)[0].payload.trim_ascii_end().len();
    for through in [true, false] {
        let mut pair = pair();
        let now = pair.now;
        let answer = pair.asked(Session::NonInteractiveCommands);
        let response = vec![answer[1].clone()];
        assert_eq!(messages(&response)[0].payload.len(), 16 * 1024);
        if through {
            pair.agent.handle_message(now, &response[0]).unwrap();
            pair.settle();
            assert_eq!(pair.client.payload(), 16 * 1024);
            continue;
        }
        let mut last = Vec::new();
        while last.is_empty() || messages(&last)[0].payload.len() == 16 * 1024 {
            pair.now = pair.client.poll_timeout().unwrap();
            last = frames(&mut pair.client, pair.now);
            assert!(pair.now < now + Duration::from_secs(2));
        }
        assert_eq!(messages(&last)[0].payload.len(), bare_length(&response));
        pair.agent.handle_message(pair.now, &last[0]).unwrap();
        pair.settle();
        assert!(pair.client.is_open());
        assert_eq!(pair.client.payload(), 1024, "nothing longer until the end");
    }
}

#[test]
fn a_path_that_closes_on_the_padded_response_gets_it_bare() {
    let mut pair = pair();
    let now = pair.now;
    let answer = pair.asked(Session::NonInteractiveCommands);
    assert!(answer[1].len() > 16 * 1024);
    pair.client.handle_disconnected();
    pair.client.handle_connected(now, UNIX, token());
    assert!(frames(&mut pair.client, now)[0].len() < 1024);
}

#[test]
fn a_handshake_that_does_not_come_ends_in_time() {
    let mut pair = pair();
    let due = pair.client.poll_timeout().unwrap();
    assert_eq!(due, pair.now + Duration::from_secs(30));
    pair.client.handle_timeout(due - Duration::from_millis(1));
    assert!(!pair.client.is_closed());
    pair.client.handle_timeout(due);
    assert_eq!(
        ended(&mut pair.client).reason,
        CloseReason::HandshakeTimeout
    );
}
