//! Ten thousand who prove nothing.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{MIB, Watch, echoes};
use crate::harness::{get, lab, postern, session};

/// Connections in all, and the addresses that they come from.
const CROWD: usize = 10_000;
const SOURCES: usize = 200;
/// As the agent's configuration has it by itself: at one time, and those on their way out.
const PLACES: u64 = 512 + 64;

/// The agent's patience with a handshake, and some.
const SHOWN_OUT: Duration = Duration::from_secs(15);

/// This process holds the other end of every connection.
fn allow_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        most >= wanted,
        "this test needs {wanted} descriptors and may have {most}; hint: ulimit -Hn {wanted}"
    );
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .unwrap();
}

/// The beginning of a handshake record of 16 KiB.
fn half_a_hello() -> Vec<u8> {
    let mut hello = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    hello.resize(15 * 1024, 0);
    hello
}

#[tokio::test]
async fn ten_thousand_strangers_cost_what_is_stated_and_stop_neither_sessions_nor_logins() {
    allow_descriptors(CROWD as u64 + 2_000);
    let lab = lab().await;
    let mut shell = session(&lab).await;
    let watch = Watch::start(&lab);
    let (address, hello) = (lab.agent.address, Arc::new(half_a_hello()));
    let (arrived, go_on) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(true)),
    );
    let mut crowd = JoinSet::new();
    for n in 0..SOURCES {
        let source = Ipv4Addr::new(127, 130, 0, u8::try_from(n).unwrap());
        let (hello, arrived, go_on) = (hello.clone(), arrived.clone(), go_on.clone());
        crowd.spawn(async move {
            let mut here: Vec<TcpStream> = Vec::new();
            // At least its part of the crowd, and then for as long as it is watched.
            while here.len() < CROWD / SOURCES || go_on.load(Ordering::Relaxed) {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((source, 0).into()).unwrap();
                let mut stream = socket.connect(address).await.unwrap();
                arrived.fetch_add(1, Ordering::Relaxed);
                // Some say nothing, some begin and stop; all that are shown out come again.
                if here.len().is_multiple_of(2) {
                    let _ = stream.write_all(&hello).await;
                }
                if here.len() == CROWD / SOURCES {
                    let mut first = here.remove(0);
                    // One that the kernel lost while it knocked is shown out by nobody.
                    let _ = timeout(SHOWN_OUT, first.read(&mut [0; 16])).await;
                }
                here.push(stream);
            }
            here
        });
    }
    let mut slowest = echoes(&mut shell).await;
    while arrived.load(Ordering::Relaxed) < CROWD {
        // One that fails ends the test.
        if let Some(ended) = crowd.try_join_next() {
            panic!("a stranger went away by itself: {:?}", ended.map(drop));
        }
        slowest = slowest.max(echoes(&mut shell).await);
    }
    // A login from elsewhere finds a place, whatever stands at the door.
    for _ in 0..3 {
        postern(&lab, &["connect", "web-1", "--", "true"])
            .await
            .status(0);
        slowest = slowest.max(echoes(&mut shell).await);
    }
    go_on.store(false, Ordering::Relaxed);
    let left = crowd.join_all().await;
    let most = watch.most().await;
    println!(
        "{} strangers: {} KiB, {} descriptors; slowest echo {slowest:?}",
        arrived.load(Ordering::Relaxed),
        most.memory / 1024,
        most.descriptors
    );
    assert!(most.memory <= 64 * MIB, "{most:?}");
    // Three logins with a connection to their target each, and files of theirs.
    assert!(most.descriptors <= PLACES + 32, "{most:?}");
    drop(left);
    let (_, metrics) = get(&lab, "/metrics").await;
    assert!(metrics.contains("kind=\"crowded out\""), "{metrics}");
    drop(shell);
    lab.stop().await.unwrap();
}
