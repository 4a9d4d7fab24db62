//! Peers that say more than anybody asked for.

use tokio::io::{AsyncRead, AsyncWrite};

use super::logins::connect_within;
use super::*;

/// Far more than all buffers on the way to somebody who does not read.
const MUCH: usize = 48 * 1024 * 1024;

/// Says it over and over until nobody takes more of it; how many bytes were taken.
async fn pour<S>(link: &mut Link<S>, message: &[u8]) -> usize
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut taken = 0;
    while taken < 2 * MUCH {
        while link.transport.backlog() < 64 * 1024 {
            link.transport.send(message).unwrap();
        }
        let some = link.transport.backlog();
        let flushed = tokio::time::timeout(Duration::from_secs(1), link.flush());
        if !matches!(flushed.await, Ok(Ok(()))) {
            break;
        }
        taken += some;
    }
    taken
}

fn adjust(recipient: u32, by: u32) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_WINDOW_ADJUST)
        .u32(recipient)
        .u32(by)
        .finish()
}

#[tokio::test]
async fn a_flood_waits_for_whoever_does_not_read_and_piles_up_nowhere() {
    // What each passes on to the other end, or answers to the one who asks.
    let ask = Writer::new()
        .u8(message::GLOBAL_REQUEST)
        .vec32(b"flood@example.com")
        .u8(1)
        .finish();
    for (user_pours, what, flood) in [
        (true, "window adjustments", adjust(8, u32::MAX)),
        (true, "data beyond every window", data(8, &[7; 30_000])),
        (true, "questions", ask.clone()),
        (true, "channels that cannot be", open("x11", 77, b"")),
        (false, "window adjustments", adjust(3, u32::MAX)),
        (false, "data beyond every window", data(3, &[27; 30_000])),
        (false, "questions", ask),
        (false, "channels that cannot be", open("session", 77, b"")),
    ] {
        let mut scene = Scene::new().await;
        scene.shell().await;
        let taken = if user_pours {
            pour(&mut scene.user, &flood).await
        } else {
            pour(&mut scene.target, &flood).await
        };
        let who = if user_pours { "user" } else { "target" };
        assert!(
            taken < MUCH,
            "{taken} bytes of {what} were taken from the {who}"
        );
        drop((scene.user, scene.target));
        within(scene.served).await.unwrap();
    }
}

#[tokio::test]
async fn window_adjustments_beyond_what_a_window_holds_arrive_as_they_are() {
    let mut scene = Scene::new().await;
    scene.shell().await;
    for _ in 0..1000 {
        scene.user.transport.send(&adjust(8, u32::MAX)).unwrap();
        scene.target.transport.send(&adjust(3, u32::MAX)).unwrap();
    }
    within(scene.user.flush()).await.unwrap();
    within(scene.target.flush()).await.unwrap();
    for _ in 0..1000 {
        assert_eq!(scene.target_heard().await, adjust(8, u32::MAX));
        assert_eq!(scene.heard().await, adjust(3, u32::MAX));
    }
    scene.say(&data(8, b"still there")).await;
    assert_eq!(scene.target_heard().await, data(8, b"still there"));
}

#[tokio::test]
async fn a_target_that_talks_at_the_login_without_end_is_given_up() {
    let banner = Writer::new()
        .u8(53)
        .vec32(&[b'!'; 8000])
        .vec32(b"")
        .finish();
    let ignore = Writer::new().u8(2).vec32(&[0; 8000]).finish();
    for flood in [banner, ignore] {
        let deadline = Duration::from_secs(1);
        let error = connect_within(deadline, async |stream: TcpStream| {
            let identity = HostIdentity::new(key(66), None).unwrap();
            let mut link = Link::new(stream, Transport::server(identity).unwrap());
            link.exchange_keys().await.unwrap();
            link.receive().await.unwrap();
            let service = Writer::new().u8(6).vec32(b"ssh-userauth").finish();
            link.transport.send(&service).unwrap();
            while link.flush().await.is_ok() {
                link.transport.send(&flood).unwrap();
            }
        })
        .await;
        assert!(error.to_string().contains("web-1"), "{error}");
    }
}
