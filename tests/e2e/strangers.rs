//! Connections that prove nothing: they cost little, end soon, and stop nobody.

use std::net::{IpAddr, Ipv4Addr};

use lab::stack::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::by_hand::wire::{ENROLL, dial, settings};
use crate::harness::{PATIENCE, eventually, get, lab, postern};

/// As many as the agent takes from one address.
const MANY: usize = 64;

async fn connect_from(lab: &Lab, source: IpAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(lab.agent.address).await.unwrap()
}

/// Waits until the agent closes; `false` if it says anything first.
async fn ends_in_silence(mut stream: TcpStream) -> bool {
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    // A reset is an end too.
    let _ = tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the agent closes in time");
    said.is_empty()
}

#[tokio::test]
async fn idle_strangers_stop_no_session_and_are_shown_out() {
    let lab = lab().await;
    let mut strangers = Vec::new();
    for source in 1..=4 {
        for _ in 0..MANY {
            let source = Ipv4Addr::new(127, 0, 9, source).into();
            strangers.push(connect_from(&lab, source).await);
        }
    }
    // Some begin to speak TLS, and stop.
    for stream in strangers.iter_mut().step_by(2) {
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    }
    eventually("the strangers are counted", async || {
        let (_, metrics) = get(&lab, "/metrics").await;
        let all = format!("postern_connections_unauthenticated {}", 4 * MANY);
        metrics.contains(&all).then_some(())
    })
    .await;
    // One more from the same address is shown out at once, and nobody else is.
    let one_more = connect_from(&lab, Ipv4Addr::new(127, 0, 9, 1).into()).await;
    assert!(ends_in_silence(one_more).await);
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(0);
    for stream in strangers {
        assert!(ends_in_silence(stream).await);
    }
    let metrics = eventually("nobody is counted any more", async || {
        let (_, metrics) = get(&lab, "/metrics").await;
        let none = metrics.contains("postern_connections_unauthenticated 0");
        none.then_some(metrics)
    })
    .await;
    for kind in ["slow handshake", "limit of strangers"] {
        let counted = format!("postern_unauthenticated_total{{kind=\"{kind}\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_stranger_who_asks_to_enrol_and_says_nothing_is_shown_out() {
    let lab = lab().await;
    let mut stream = dial(&lab, &settings(&lab, ENROLL, None)).await.unwrap();
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    let _ = tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the agent closes in time");
    let text = String::from_utf8(said).unwrap();
    assert_eq!(text.lines().count(), 1, "the challenge alone: {text}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn who_speaks_no_known_protocol_or_has_no_certificate_gets_no_answer() {
    let lab = lab().await;
    for protocol in [&b"h2"[..], b"postern/2", b"postern/1", b"http/1.1"] {
        let refused = match dial(&lab, &settings(&lab, protocol, None)).await {
            Err(_) => true,
            // TLS 1.3 tells a client about its certificate with the first read.
            Ok(mut stream) => stream.read_u8().await.is_err(),
        };
        assert!(refused, "{}", String::from_utf8_lossy(protocol));
    }
    lab.stop().await.unwrap();
}
