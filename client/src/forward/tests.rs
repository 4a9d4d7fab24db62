//! Tunnels through an agent in this process, to a real socket.

use std::time::Duration;

use postern_proto::gateway::message::{CloseReason, Denied, DenyCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::spec::Forward;
use super::{Totals, Tunnel};
use crate::error::{Error, Kind};
use crate::output::Printer;
use crate::testing::{FakeAgent, Script, pattern};

struct Running {
    address: std::net::SocketAddr,
    endings: mpsc::Receiver<Error>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Totals>,
}

async fn open(agent: &FakeAgent, forward: &str) -> Result<Running, Error> {
    let gateway = agent.gateway().await;
    let (ended, endings) = mpsc::channel(1);
    let forward = Forward::parse(forward).unwrap();
    let target = "db-1".parse().unwrap();
    let tunnel = Tunnel::open(&gateway, &target, &forward, Printer::plain_json(), ended).await?;
    let (address, stop) = (tunnel.address(), CancellationToken::new());
    let serving = tokio::spawn(tunnel.serve(stop.clone()));
    Ok(Running {
        address,
        endings,
        stop,
        serving,
    })
}

async fn target(agent: &FakeAgent) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    agent.state.lock().unwrap().tunnel = Some(listener.local_addr().unwrap());
    listener
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_is_a_pipe_of_one_session_and_bytes_arrive_identical() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    for round in 0..2u64 {
        let near = TcpStream::connect(running.address).await.unwrap();
        let (far, _) = within(listener.accept()).await.unwrap();
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let up = tokio::spawn(async move {
            near_out.write_all(&pattern(LENGTH, round)).await.unwrap();
            near_out.shutdown().await.unwrap();
        });
        let down = tokio::spawn(async move {
            far_out
                .write_all(&pattern(LENGTH, round + 100))
                .await
                .unwrap();
            far_out.shutdown().await.unwrap();
        });
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        within(async {
            tokio::try_join!(
                far_in.read_to_end(&mut got_up),
                near_in.read_to_end(&mut got_down)
            )
        })
        .await
        .unwrap();
        assert!(got_up == pattern(LENGTH, round) && got_down == pattern(LENGTH, round + 100));
        up.await.unwrap();
        down.await.unwrap();
    }
    running.stop.cancel();
    let totals = within(running.serving).await.unwrap();
    let length = 2 * LENGTH as u64;
    assert_eq!(
        totals,
        Totals {
            connections: 2,
            up: length,
            down: length
        }
    );
    let state = agent.state.lock().unwrap();
    let joined: Vec<bool> = state.opens.iter().map(|open| open.join.is_some()).collect();
    assert_eq!(
        joined,
        [false, true],
        "one session, the second connection joins it"
    );
}

#[tokio::test]
async fn a_direction_that_nobody_reads_does_not_stop_the_other() {
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    let mut near = TcpStream::connect(running.address).await.unwrap();
    let (far, _) = within(listener.accept()).await.unwrap();
    let (mut far_in, mut far_out) = far.into_split();
    // The target talks and nobody here listens, until far more is written than any buffer holds.
    let flood = tokio::spawn(async move { far_out.write_all(&pattern(8 << 20, 7)).await });
    let sent = pattern(40 << 20, 8);
    let reader = tokio::spawn(async move {
        let mut got = vec![0; 40 << 20];
        far_in.read_exact(&mut got).await.unwrap();
        got
    });
    within(near.write_all(&sent)).await.unwrap();
    assert!(within(reader).await.unwrap() == sent);
    let mut got = vec![0; 8 << 20];
    within(near.read_exact(&mut got)).await.unwrap();
    assert!(got == pattern(8 << 20, 7));
    flood.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_end_of_file_passes_one_way_alone() {
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    let mut near = TcpStream::connect(running.address).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let (mut question, mut answer) = (String::new(), String::new());
    within(far.read_to_string(&mut question)).await.unwrap();
    far.write_all(b"answer").await.unwrap();
    drop(far);
    within(near.read_to_string(&mut answer)).await.unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
}

#[tokio::test]
async fn a_denial_is_told_before_anything_connects() {
    let denied = Denied {
        code: DenyCode::Policy,
        message: "alice may not reach port 5432 of db-1".to_owned(),
        hint: Some("postern why db-1 tunnel --port 5432".to_owned()),
        session: None,
        open_hash: None,
        candidates: vec![],
    };
    let agent = FakeAgent::start().await.script([Script::Deny(denied)]);
    let Err(error) = open(&agent, "0:5432").await else {
        panic!("it opened")
    };
    assert_eq!(
        (error.kind, error.message.as_str()),
        (Kind::Denied, "alice may not reach port 5432 of db-1")
    );
}

#[tokio::test]
async fn a_session_that_policy_ends_ends_the_forward() {
    let agent = FakeAgent::start()
        .await
        .script([Script::End(CloseReason::Policy, 1)]);
    let listener = target(&agent).await;
    let mut running = open(&agent, "0:5432").await.unwrap();
    let _near = TcpStream::connect(running.address).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    far.write_all(b"x").await.unwrap();
    let error = within(running.endings.recv()).await.unwrap();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (
            Kind::Denied,
            "the tunnel was ended: policy no longer allows it"
        )
    );
}

#[tokio::test]
async fn a_session_that_the_agent_forgot_is_opened_again() {
    let forgotten = Denied {
        code: DenyCode::Policy,
        message: "there is no such session to join".to_owned(),
        hint: None,
        session: None,
        open_hash: None,
        candidates: vec![],
    };
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    let first = TcpStream::connect(running.address).await.unwrap();
    let _far = within(listener.accept()).await.unwrap();
    agent
        .state
        .lock()
        .unwrap()
        .script
        .push_back(Script::Deny(forgotten));
    let _second = TcpStream::connect(running.address).await.unwrap();
    let _far = within(listener.accept()).await.unwrap();
    drop(first);
    let state = agent.state.lock().unwrap();
    let joined: Vec<bool> = state.opens.iter().map(|open| open.join.is_some()).collect();
    assert_eq!(joined, [false, true, false]);
}

#[tokio::test]
async fn a_lost_network_resets_the_connection_and_not_the_forward() {
    let agent = FakeAgent::start().await.script([Script::Cut(1)]);
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    let mut near = TcpStream::connect(running.address).await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    far.write_all(b"x").await.unwrap();
    let mut got = Vec::new();
    // The byte may have arrived or not; an orderly end must not.
    let end = within(near.read_to_end(&mut got)).await;
    assert!(end.is_err(), "a lost network looks like an end of file");
    let _again = TcpStream::connect(running.address).await.unwrap();
    within(listener.accept()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_says_first_does_not_wait_for_the_grant() {
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    // The session's own pipe is granted before anybody connects, and serves the first.
    let _first = TcpStream::connect(running.address).await.unwrap();
    within(listener.accept()).await.unwrap();
    agent
        .state
        .lock()
        .unwrap()
        .script
        .push_back(Script::HearFirst);
    let mut near = TcpStream::connect(running.address).await.unwrap();
    near.write_all(b"hello").await.unwrap();
    let (mut far, _) = within(listener.accept()).await.unwrap();
    let mut heard = [0; 10];
    near.write_all(b"again").await.unwrap();
    within(far.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"helloagain");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_one_after_the_other_find_a_spare_each_time() {
    let agent = FakeAgent::start().await;
    let listener = target(&agent).await;
    let running = open(&agent, "0:5432").await.unwrap();
    let _first = TcpStream::connect(running.address).await.unwrap();
    within(listener.accept()).await.unwrap();
    for joined in 0..4 {
        // The session's own, one for each further connection, and one ready for the next.
        within(async {
            while agent.state.lock().unwrap().connections < joined + 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let _near = TcpStream::connect(running.address).await.unwrap();
        within(listener.accept()).await.unwrap();
    }
    assert_eq!(agent.state.lock().unwrap().opens.len(), 5);
}
