//! Who may go on with a pipe: the protocol spoken by hand to the real agent, with the whole secret
//! in the hands of several.

use std::sync::Arc;

use futures_util::future::join_all;
use lab::stack::{DATABASE_PORT, Lab};
use postern_proto::gateway::message::{DenyCode, Granted, Open, OpenKind};
use postern_proto::gateway::resume::Claim;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::by_hand::enrolment::enrol;
use crate::by_hand::sts::Keys;
use crate::by_hand::wire::{Answer, PIPE, Pipe, settings};
use crate::harness::{PATIENCE, events, lab, postern};

/// A tunnel to `db-1`, whose port is in our hands.
struct Story {
    lab: Lab,
    settings: Arc<ClientConfig>,
    granted: Granted,
    old: Pipe,
    target: TcpStream,
}

impl Story {
    async fn new() -> Self {
        let lab = lab().await;
        let address = (lab.network.db(), DATABASE_PORT);
        let database = TcpListener::bind(address).await.unwrap();
        let keys = Keys::with_mfa(&lab, "alice").await;
        let certified = enrol(&lab, &keys, None).await;
        let settings = settings(&lab, PIPE, Some(&certified));
        let mut old = Pipe::dial(&lab, &settings).await;
        let wanted = open();
        let (granted, target) = tokio::join!(old.open(&wanted), database.accept());
        let Answer::Granted(granted) = granted else {
            panic!("{granted:?}");
        };
        Self {
            lab,
            settings,
            granted: *granted,
            old,
            target: target.unwrap().0,
        }
    }

    /// The client's end of the secret: everybody who holds it can make as many.
    fn claim(&self) -> Claim {
        let secret = self.granted.secret.bytes().unwrap();
        Claim::new(&secret, self.granted.session, self.granted.pipe)
    }

    async fn dial(&self) -> Pipe {
        Pipe::dial(&self.lab, &self.settings).await
    }

    /// The next bytes at the target, which must be these.
    async fn arrives(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        let read = self.target.read_exact(&mut got);
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.expect("bytes at the target").unwrap();
        assert_eq!(got, expected, "{}", String::from_utf8_lossy(&got));
    }

    /// The log holds; returns its events.
    async fn end(self) -> String {
        let told = events(&self.lab).await;
        let store = self.lab.agent.audit_store.display().to_string();
        postern(&self.lab, &["audit", "verify", "--store", &store])
            .await
            .status(0);
        self.lab.stop().await.unwrap();
        told
    }
}

fn open() -> Open {
    Open {
        target: "db-1".parse().unwrap(),
        kind: OpenKind::Tunnel {
            host: None,
            port: DATABASE_PORT,
        },
        join: None,
        approved: None,
        known_size: None,
        once: false,
        client: "by hand".to_owned(),
    }
}

/// The bytes that the agent has got; a yes alone will do.
fn resumed(answer: &Answer) -> u64 {
    match answer {
        Answer::Resumed(resumed) => resumed.received,
        other => panic!("not resumed: {other:?}"),
    }
}

/// The same words for every reason: who does not own a session learns nothing of it.
fn refused(answer: &Answer) {
    match answer {
        Answer::Denied(denied) => {
            assert_eq!(denied.code, DenyCode::Policy, "{denied:?}");
            assert!(denied.message.contains("no such session"), "{denied:?}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn after_a_takeover_the_bytes_of_the_old_connection_are_refused() {
    let mut story = Story::new().await;
    assert!(story.old.send_data(b"before ").await);
    story.arrives(b"before ").await;
    story.target.write_all(b"hello").await.unwrap();

    let (mut claim, mut new) = (story.claim(), story.dial().await);
    let answer = new.resume(&mut claim, 0).await;
    assert_eq!(resumed(&answer), 7);
    claim.accepted(&new.exporter());
    // As often as it likes, until it notices that nobody is there.
    for _ in 0..100 {
        if !story.old.send_data(b"INJECTED ").await {
            break;
        }
    }
    story.old.ended().await;
    assert!(new.send_data(b"after ").await);
    story.arrives(b"after ").await;
    // Whoever comes back is told to go, and takes over nothing either.
    let mut third = story.dial().await;
    let answer = third.resume(&mut claim, 0).await;
    assert_eq!(resumed(&answer), 13);
    assert!(third.send_data(b"and on").await);
    story.arrives(b"and on").await;
    new.ended().await;
    let told = story.end().await;
    assert!(!told.contains("INJECTED"), "{told}");
}

#[tokio::test]
async fn the_resume_secret_moves_on_and_an_old_one_is_refused() {
    let mut story = Story::new().await;
    let (mut owner, mut thief) = (story.claim(), story.claim());
    let mut new = story.dial().await;
    resumed(&new.resume(&mut owner, 0).await);
    owner.accepted(&new.exporter());
    // The first frame under the next secret: the agent has forgotten the one in `Granted`.
    assert!(new.send_data(b"mine").await);
    story.arrives(b"mine").await;
    // Whatever number its attempt has.
    for _ in 0..3 {
        let mut stolen = story.dial().await;
        refused(&stolen.resume(&mut thief, 0).await);
    }
    // The owner was not disturbed, and still has the way back.
    assert!(new.send_data(b" and still mine").await);
    story.arrives(b" and still mine").await;
    drop(new);
    let mut back = story.dial().await;
    assert_eq!(resumed(&back.resume(&mut owner, 0).await), 19);
    let told = story.end().await;
    assert!(told.contains("resume of session"), "an event tells: {told}");
}

#[tokio::test]
async fn of_resumes_that_race_exactly_one_wins() {
    let mut story = Story::new().await;
    let mut racers = Vec::new();
    for _ in 0..6 {
        let pipe = story.dial().await;
        // All of them the first attempt, each with a proof that is good on its own connection.
        let resume = pipe.prove(&mut story.claim(), 0);
        racers.push((pipe, resume));
    }
    let raced = racers.into_iter().map(|(mut pipe, resume)| async move {
        let answer = pipe.ask_resume(&resume).await;
        (pipe, answer)
    });
    let mut winners = Vec::new();
    for (pipe, answer) in join_all(raced).await {
        match answer {
            Answer::Resumed(_) => winners.push(pipe),
            other => refused(&other),
        }
    }
    assert_eq!(winners.len(), 1);
    assert!(winners[0].send_data(b"the winner's").await);
    story.arrives(b"the winner's").await;
    story.old.ended().await;
    story.end().await;
}
