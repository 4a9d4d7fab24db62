//! Several connections that want one pipe at the same moment.

use futures_util::future::join_all;
use postern_proto::gateway::frame::{FrameKind, Piece};
use postern_proto::gateway::message::CloseReason;
use postern_proto::gateway::resume::Claim;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::testing::*;

const RACERS: usize = 16;

/// All ask at once; who was answered with a yes, and who was not.
async fn race(asking: Vec<(Client, postern_proto::gateway::resume::Resume)>) -> [Vec<Client>; 2] {
    let asked = asking.into_iter().map(|(mut client, resume)| async move {
        client.ask(&resume).await;
        let answer = client.next().await;
        let yes = matches!(answer, Some(Piece::Frame(FrameKind::Resumed, _)));
        (client, yes)
    });
    let (won, lost): (Vec<_>, Vec<_>) =
        join_all(asked).await.into_iter().partition(|(_, yes)| *yes);
    [won, lost].map(|side| side.into_iter().map(|(client, _)| client).collect())
}

#[tokio::test]
async fn racing_resumes_leave_one_owner_whose_bytes_alone_arrive() {
    let agent = Agent::start().await;
    let (mut old, mut target, granted) = agent.tunnel().await;
    let claim = || {
        let secret = granted.secret.bytes().unwrap();
        Claim::new(&secret, granted.session, granted.pipe)
    };
    old.send(&framed(b"before ")).await;
    target.read_exact(&mut [0; 7]).await.unwrap();

    // The same attempt from all: a client that was copied, or one that lost count.
    let mut asking = Vec::new();
    for _ in 0..RACERS {
        let client = agent.connect("alice").await;
        let resume = claim().resume(&client.exporter(), 0);
        asking.push((client, resume));
    }
    let [won, lost] = race(asking).await;
    assert_eq!((won.len(), lost.len()), (1, RACERS - 1));

    // Attempts that overtake each other: of those that were taken the last one has the pipe.
    let (mut asking, mut late) = (Vec::new(), claim());
    late.resume(&[0; 32], 0);
    for _ in 0..RACERS {
        let client = agent.connect("alice").await;
        let resume = late.resume(&client.exporter(), 0);
        asking.push((client, resume));
    }
    let [taken, refused] = race(asking).await;
    assert!(!taken.is_empty());
    let mut owner = None;
    let fenced = [won, lost, refused].into_iter().flatten().chain([old]);
    for mut other in fenced {
        let _ = other.stream.write_all(&framed(b"INJECTED")).await;
        let _ = other.stream.flush().await;
    }
    for mut client in taken {
        // Who still answers has it.
        let ping = postern_proto::gateway::frame::control(FrameKind::Ping, &[7; 8]).unwrap();
        let _ = client.stream.write_all(&ping).await;
        let _ = client.stream.flush().await;
        let alive = loop {
            match client.next().await {
                Some(Piece::Frame(FrameKind::Pong, _)) => break true,
                Some(_) => {}
                None => break false,
            }
        };
        if alive {
            assert!(owner.replace(client).is_none(), "two have the pipe");
        }
    }
    let mut owner = owner.expect("one has the pipe");
    owner.send(&framed(b"after")).await;
    let mut arrived = [0; 5];
    target.read_exact(&mut arrived).await.unwrap();
    assert_eq!(&arrived, b"after");
    owner.close(CloseReason::Done).await;
    assert_eq!(owner.closed().await.received, 12);
    agent.stopped().await;
}
