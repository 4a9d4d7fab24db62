//! What cannot be recorded does not pass.

use super::*;

#[tokio::test]
async fn what_is_not_recorded_does_not_pass() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    let data = |id: u32| Writer::new().u8(94).u32(id).vec32(b"secret").finish();
    stage.heard();
    for (way, quota) in [(Way::Up, false), (Way::Down, true)] {
        match way {
            Way::Up => stage.user_says(&data(8)).unwrap(),
            Way::Down => stage.target_says(&data(3)).unwrap(),
        }
        // While the recording is being written, nothing has passed.
        assert_eq!(stage.heard(), (vec![], vec![]));
        let Flight::Recorded(Ok(())) = stage.asked(way).await else {
            panic!("nothing was recorded");
        };
        let (error, reason) = match quota {
            true => (EvidenceError::Quota(10), CloseReason::Quota),
            false => (broken(), CloseReason::Evidence),
        };
        let failed = Flight::Recorded(Err(error));
        let end = stage.relay.on_landed(way, failed).unwrap_err();
        assert_eq!(end.reason, reason);
        carry(&mut stage.relay.user.transport, &mut stage.user);
        carry(&mut stage.relay.target.transport, &mut stage.target);
        assert!(stage.user.next().unwrap().is_none());
        assert!(stage.target.next().unwrap().is_none());
    }
}

#[tokio::test]
async fn what_is_put_together_ahead_passes_after_its_own_recording_and_in_order() {
    let data = |text: &str| Writer::new().u8(94).u32(8).vec32(text.as_bytes()).finish();
    let eof = || plain(message::CHANNEL_EOF, 8);
    for lost in [false, true] {
        let mut stage = Stage::new();
        stage.channel();
        stage.user_says(&request("shell")).unwrap();
        let granted = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, granted).unwrap();
        stage.heard();
        for message in [data("one"), data("two"), eof()] {
            stage.user_says(&message).unwrap();
        }
        assert_eq!(stage.heard(), (vec![], vec![]));
        // The first is written: the second is not, and what changes the channel waits for both.
        let first = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, first).unwrap();
        assert_eq!(stage.heard(), (vec![], vec![data("one").into()]));
        let second = stage.asked(Way::Up).await;
        assert!(matches!(second, Flight::Recorded(Ok(()))));
        if lost {
            let failed = Flight::Recorded(Err(broken()));
            let end = stage.relay.on_landed(Way::Up, failed).unwrap_err();
            assert_eq!(end.reason, CloseReason::Evidence);
            carry(&mut stage.relay.target.transport, &mut stage.target);
            assert!(stage.target.next().unwrap().is_none());
            continue;
        }
        stage.relay.on_landed(Way::Up, second).unwrap();
        let rest = vec![data("two").into(), eof().into()];
        assert_eq!(stage.heard(), (vec![], rest));
    }
}

#[tokio::test]
async fn an_end_that_is_gone_is_told_once_all_that_it_sent_has_passed() {
    let data = |text: &str| Writer::new().u8(94).u32(8).vec32(text.as_bytes()).finish();
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    stage.heard();
    stage.user_says(&data("last words")).unwrap();
    stage.relay.lane(Way::Up).ended = true;
    assert_eq!(stage.heard(), (vec![], vec![]));
    assert!(
        stage.relay.up.fault.is_none(),
        "nothing of it is decided yet"
    );
    let written = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, written).unwrap();
    assert!(stage.relay.advance().is_err());
    carry(&mut stage.relay.target.transport, &mut stage.target);
    assert_eq!(
        stage.target.next().unwrap(),
        Some(data("last words").into())
    );
}

#[tokio::test]
async fn a_program_passes_once_its_recording_exists() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    assert_eq!(
        stage.heard(),
        (vec![], vec![]),
        "it passed before it was decided"
    );
    let granted = stage.asked(Way::Up).await;
    assert!(matches!(&granted, Flight::Decided(_, Ok(Some(_)))));
    stage.relay.on_landed(Way::Up, granted).unwrap();
    assert_eq!(stage.heard(), (vec![], vec![request("shell").into()]));
}

#[tokio::test]
async fn sftp_that_is_not_sftp_passes_and_is_recorded_byte_by_byte() {
    let mut stage = Stage::new();
    stage.channel();
    let name = Writer::new().vec32(b"sftp").finish();
    stage
        .user_says(&[request("subsystem"), name].concat())
        .unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    stage.heard();
    // SFTP is followed and its content is not recorded: no flight.
    let init = Writer::new().vec32(&[1, 0, 0, 0, 3]).finish();
    let data = |bytes: &[u8]| Writer::new().u8(94).u32(8).vec32(bytes).finish();
    stage.user_says(&data(&init)).unwrap();
    assert!(stage.relay.up.flight.is_none());
    assert_eq!(stage.heard().1, [data(&init)]);
    // Something else is recorded before it passes, from then on.
    for _ in 0..2 {
        stage.user_says(&data(b"SSH-2.0-tunnel\r\n")).unwrap();
        let recorded = stage.asked(Way::Up).await;
        assert!(matches!(recorded, Flight::Recorded(Ok(()))));
        assert_eq!(stage.heard().1, Vec::<Bytes>::new());
        stage.relay.on_landed(Way::Up, recorded).unwrap();
        assert_eq!(stage.heard().1, [data(b"SSH-2.0-tunnel\r\n")]);
    }
}
