//! Channels that were not granted, not opened, or not ended in order.

use super::*;

#[tokio::test]
async fn channels_that_were_not_granted_do_not_reach_the_user() {
    let mut scene = Scene::new().await;
    for (kind, rest) in [
        ("forwarded-tcpip", tcp("127.0.0.1", 8080)),
        ("auth-agent@openssh.com", vec![]),
        ("x11", tcp("127.0.0.1", 1)[13..].to_vec()),
        ("session", vec![]),
        ("direct-tcpip", tcp("10.0.0.1", 22)),
        ("forwarded-streamlocal@openssh.com", vec![]),
        ("tun@openssh.com", vec![]),
    ] {
        scene.target_says(&open(kind, 1, &rest)).await;
        let answer = scene.target_heard().await;
        assert_eq!(
            answer[..5],
            [message::CHANNEL_OPEN_FAILURE, 0, 0, 0, 1],
            "{kind}"
        );
    }
    // The user has heard of none: the next thing is what the user asks for.
    scene.shell().await;
}

#[tokio::test]
async fn a_listener_that_was_refused_by_the_target_forwards_nothing() {
    let mut scene = Scene::new().await;
    let listen = Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(b"tcpip-forward")
        .u8(1)
        .vec32(b"localhost")
        .u32(8080)
        .finish();
    scene.say(&listen).await;
    assert_eq!(scene.target_heard().await, listen);
    scene.target_says(&[message::REQUEST_FAILURE]).await;
    assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    scene
        .target_says(&open("forwarded-tcpip", 1, &tcp("localhost", 8080)))
        .await;
    assert_eq!(scene.target_heard().await[0], message::CHANNEL_OPEN_FAILURE);
    // Granted, it does.
    scene.say(&listen).await;
    scene.target_heard().await;
    scene.target_says(&[message::REQUEST_SUCCESS]).await;
    scene.heard().await;
    let wanted = open("forwarded-tcpip", 1, &tcp("localhost", 8080));
    scene.target_says(&wanted).await;
    assert_eq!(scene.heard().await, wanted);
}

#[tokio::test]
async fn data_for_no_program_does_not_pass() {
    let mut scene = Scene::new().await;
    scene.say(&open("session", 3, b"")).await;
    scene.target_heard().await;
    // Before the channel is confirmed, and before anything runs in it.
    scene.target_says(&data(3, b"early")).await;
    scene.target_says(&confirm(3, 8)).await;
    assert_eq!(scene.heard().await, confirm(3, 8));
    scene.say(&data(8, b"early")).await;
    scene.target_says(&data(3, b"early")).await;
    // The answer to this comes after that was looked at.
    let ask = Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(b"x")
        .u8(1)
        .finish();
    scene.target_says(&ask).await;
    assert_eq!(scene.target_heard().await[..], [message::REQUEST_FAILURE]);
    scene.say(&request(8, "shell", true, b"")).await;
    assert_eq!(scene.target_heard().await, request(8, "shell", true, b""));
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_SUCCESS, 3));
    // After the channel is closed by its sender.
    scene.target_says(&plain(message::CHANNEL_CLOSE, 3)).await;
    scene.target_says(&data(3, b"late")).await;
    scene.target_says(&[message::REQUEST_FAILURE]).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_CLOSE, 3));
    let end = scene.end().await;
    assert_eq!((end.reason, end.down), (CloseReason::Target, 0), "{end:?}");
}

#[tokio::test]
async fn the_end_of_a_channel_arrives_in_the_targets_order() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    let status = Writer::new().u32(7).finish();
    let signal = Writer::new()
        .vec32(b"KILL")
        .u8(1)
        .vec32(b"out of memory")
        .vec32(b"en")
        .finish();
    let mut said = Vec::new();
    for n in 0..20 {
        said.push(data(3, &[n; 3000]));
        said.push(message::stderr(3, "e"));
    }
    said.extend([
        request(3, "exit-status", false, &status),
        data(3, b"after the status"),
        request(3, "exit-signal", false, &signal),
        plain(message::CHANNEL_EOF, 3),
        plain(message::CHANNEL_CLOSE, 3),
    ]);
    for message in &said {
        scene.target.transport.send(message).unwrap();
    }
    within(scene.target.flush()).await.unwrap();
    for message in said {
        assert_eq!(scene.heard().await, message);
    }
    scene.say(&plain(message::CHANNEL_CLOSE, 8)).await;
    assert_eq!(scene.target_heard().await, plain(message::CHANNEL_CLOSE, 8));
    // The numbers are free again.
    scene.shell().await;
    drop(scene.user);
    let end = within(scene.served).await.unwrap();
    assert_eq!(end.exit_status, Some(128 + 9));
    assert_eq!(end.reason, CloseReason::Client);
}

#[tokio::test]
async fn a_program_that_fails_to_start_leaves_room_for_another() {
    let mut scene = Scene::new().await;
    scene.say(&open("session", 3, b"")).await;
    scene.target_heard().await;
    scene.target_says(&confirm(3, 8)).await;
    scene.heard().await;
    let sftp = request(8, "subsystem", true, &Writer::new().vec32(b"sftp").finish());
    scene.say(&sftp).await;
    assert_eq!(scene.target_heard().await, sftp);
    scene.target_says(&plain(message::CHANNEL_FAILURE, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene.say(&data(8, b"nobody listens")).await;
    scene.say(&request(8, "shell", true, b"")).await;
    assert_eq!(scene.target_heard().await, request(8, "shell", true, b""));
    // And no second one beside it.
    scene.say(&request(8, "shell", true, b"")).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_SUCCESS, 3));
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
}

#[tokio::test]
async fn a_user_who_asks_without_end_is_ended() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    for _ in 0..400 {
        let env = Writer::new().vec32(b"A").vec32(b"B").finish();
        scene
            .user
            .transport
            .send(&request(8, "env", true, &env))
            .unwrap();
    }
    within(scene.user.flush()).await.unwrap();
    let end = scene.end().await;
    assert_eq!(end.reason, CloseReason::Protocol, "{end:?}");
}

#[tokio::test]
async fn channels_of_a_session_are_counted() {
    let mut scene = Scene::new().await;
    for n in 0..512 {
        scene.user.transport.send(&open("session", n, b"")).unwrap();
    }
    scene.say(&open("session", 512, b"")).await;
    let answer = scene.heard().await;
    assert_eq!(
        answer[..9],
        [message::CHANNEL_OPEN_FAILURE, 0, 0, 2, 0, 0, 0, 0, 4]
    );
}
