//! Messages that break the protocol, or that nobody knows.

use super::*;

/// A global request that wants an answer.
fn ask(name: &[u8]) -> Vec<u8> {
    Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(name)
        .u8(1)
        .finish()
}

#[tokio::test]
async fn peers_that_break_the_protocol_end_the_session_with_their_name() {
    for (says, message) in [
        // Numbers that exist already, or do not exist.
        ("user", open("session", 3, b"")),
        ("user", confirm(99, 1)),
        ("target", confirm(99, 1)),
        ("target", confirm(3, 9)),
        ("target", message::open_failure(3, 1, "no")),
        // Replies that nobody waits for.
        ("target", plain(message::CHANNEL_SUCCESS, 3)),
        ("target", vec![message::REQUEST_SUCCESS]),
        // Fields that do not fit.
        ("user", vec![message::CHANNEL_DATA, 0, 0, 0]),
        ("user", data(8, b"x")[..9].to_vec()),
        ("target", request(3, "exit-status", false, b"")),
        ("target", vec![message::CHANNEL_WINDOW_ADJUST, 0, 0, 0, 3]),
        ("user", open("direct-tcpip", 4, b"\0\0\xff\xff")),
        ("user", request(8, "pty-req", true, &[0xff; 8])),
        // Transport messages.
        ("user", vec![21]),
        ("target", vec![31, 0]),
    ] {
        let mut scene = Scene::new().await;
        scene.shell().await;
        let reason = match says {
            "user" => {
                scene.say(&message).await;
                CloseReason::Protocol
            }
            _ => {
                scene.target_says(&message).await;
                CloseReason::Target
            }
        };
        let end = scene.end().await;
        assert_eq!(end.reason, reason, "{message:?}: {end:?}");
        assert!(end.message.is_some());
    }
}

#[tokio::test]
async fn unknown_messages_and_requests_are_refused_and_pass_to_nobody() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    scene.say(&[200, 1, 2]).await;
    scene.say(&request(8, "x11-req", true, b"")).await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene
        .say(&request(8, "invented@example.com", true, b""))
        .await;
    assert_eq!(scene.heard().await, plain(message::CHANNEL_FAILURE, 3));
    scene
        .target_says(&request(3, "invented@example.com", true, b""))
        .await;
    assert_eq!(
        scene.target_heard().await,
        plain(message::CHANNEL_FAILURE, 8)
    );
    for name in [
        &b"hostkeys-prove-00@openssh.com"[..],
        b"streamlocal-forward@openssh.com",
    ] {
        scene.say(&ask(name)).await;
        assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    }
    scene.target_says(&ask(b"hostkeys-00@openssh.com")).await;
    assert_eq!(scene.target_heard().await[..], [message::REQUEST_FAILURE]);
    scene.say(&data(8, b"still there")).await;
    assert_eq!(scene.target_heard().await, data(8, b"still there"));
}

#[tokio::test]
async fn our_answers_keep_their_place_among_the_targets() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    scene.say(&ask(b"keepalive@openssh.com")).await;
    scene.say(&ask(b"streamlocal-forward@openssh.com")).await;
    scene
        .say(&request(
            8,
            "env",
            true,
            &Writer::new().vec32(b"A").vec32(b"\xff").finish(),
        ))
        .await;
    scene.say(&request(8, "x11-req", true, b"")).await;
    scene
        .say(&request(
            8,
            "signal",
            true,
            &Writer::new().vec32(b"INT").finish(),
        ))
        .await;
    for _ in 0..3 {
        scene.target_heard().await;
    }
    scene.target_says(&[message::REQUEST_SUCCESS]).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    scene.target_says(&plain(message::CHANNEL_SUCCESS, 3)).await;
    assert_eq!(scene.heard().await[..], [message::REQUEST_SUCCESS]);
    assert_eq!(scene.heard().await[..], [message::REQUEST_FAILURE]);
    for kind in [
        message::CHANNEL_SUCCESS,
        message::CHANNEL_FAILURE,
        message::CHANNEL_SUCCESS,
    ] {
        assert_eq!(scene.heard().await, plain(kind, 3));
    }
}
