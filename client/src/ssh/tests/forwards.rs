//! Forwards beside a shell: local, remote and SOCKS.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

use super::super::forward::spec::{Dynamic, Local, Remote};
use super::super::forward::{Forwards, Running};
use super::*;
use crate::gateway::Gateway;
use crate::output::Printer;

async fn forwarding(agent: &FakeAgent, forwards: Forwards) -> (Arc<Gateway>, Link, Running) {
    let gateway = agent.gateway().await;
    let link = Link::open(&gateway, &request(), None).await.unwrap();
    let request = request();
    let open = Link::open(&gateway, &request, link.membership());
    let running = forwards.start(open, Printer::plain_json()).await.unwrap();
    (gateway, link, running)
}

async fn echo() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn free_port() -> u16 {
    echo().await.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_local_forward_reaches_what_the_target_reaches_on_a_pipe_of_its_own() {
    let target = echo().await;
    let to = target.local_addr().unwrap().port();
    let port = free_port().await;
    let agent = FakeAgent::start().await;
    let local = vec![Local::parse(&format!("{port}:db.internal:{to}")).unwrap()];
    let (_gateway, mut link, _running) = forwarding(
        &agent,
        Forwards {
            local,
            ..Forwards::default()
        },
    )
    .await;
    let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = String::new();
    within(far.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "ping");
    // A connection that nobody reads from does not stop the shell.
    let stalled = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut flood, _) = target.accept().await.unwrap();
    let flooding = tokio::spawn(async move { flood.write_all(&vec![0; 100 << 20]).await });
    let ran = within(run_job(&mut link, job("both"), b"")).await;
    assert_eq!(ran.output, b"out\n");
    flooding.abort();
    drop(stalled);
    let state = agent.state.lock().unwrap();
    assert!(state.opens[0].join.is_none() && state.opens[1].join.is_some());
}

#[tokio::test]
async fn a_socks_forward_connects_by_name() {
    let target = echo().await;
    let to = target.local_addr().unwrap().port();
    let port = free_port().await;
    let agent = FakeAgent::start().await;
    let dynamic = vec![Dynamic::parse(&port.to_string()).unwrap()];
    let (_gateway, _link, _running) = forwarding(
        &agent,
        Forwards {
            dynamic,
            ..Forwards::default()
        },
    )
    .await;
    let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    near.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    near.read_exact(&mut method).await.unwrap();
    let mut connect = vec![5, 1, 0, 3, 11];
    connect.extend_from_slice(b"db.internal");
    connect.extend_from_slice(&to.to_be_bytes());
    near.write_all(&connect).await.unwrap();
    let mut reply = [0; 10];
    within(near.read_exact(&mut reply)).await.unwrap();
    assert_eq!((method, reply[1]), ([5, 0], 0));
    let (mut far, _) = target.accept().await.unwrap();
    far.write_all(b"pong").await.unwrap();
    let mut got = [0; 4];
    within(near.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"pong");
}

#[tokio::test]
async fn a_listener_that_the_target_refuses_is_an_error() {
    let agent = FakeAgent::start().await;
    let gateway = agent.gateway().await;
    let link = Link::open(&gateway, &request(), None).await.unwrap();
    let remote = vec![Remote::parse("1:localhost:2").unwrap()];
    let forwards = Forwards {
        remote,
        ..Forwards::default()
    };
    let request = request();
    let open = Link::open(&gateway, &request, link.membership());
    let started = forwards.start(open, Printer::plain_json()).await;
    let Err(error) = started else {
        panic!("it listens")
    };
    insta::assert_snapshot!(error, @"a listener on the target at port 1 was refused: not allowed, or the port is taken");
}
