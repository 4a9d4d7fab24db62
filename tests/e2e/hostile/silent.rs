//! Clients with a certificate that ask for much and take nothing, and targets that do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::stack::Lab;
use postern_proto::gateway::message::{Open, OpenKind};
use rustls::ClientConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{MIB, Watch, echoes};
use crate::by_hand::enrolment::enrol;
use crate::by_hand::sts::Keys;
use crate::by_hand::wire::{Answer, PIPE, Pipe, open_web, settings};
use crate::harness::{eventually, lab, postern, session};

const PIPES: usize = 48;
/// What all pipes of one principal keep for it at most (SECURITY.md), buffers on the way included.
const KEPT: u64 = 256 * MIB + PIPES as u64 * MIB;

/// A service on `web-1` that pours out all it can, or takes nothing: it counts what it gave.
async fn service(lab: &Lab, pours: bool) -> (SocketAddr, Arc<AtomicU64>, JoinSet<()>) {
    let listener = TcpListener::bind((lab.network.web(), 0)).await.unwrap();
    let (address, given) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let (mut tasks, count) = (JoinSet::new(), given.clone());
    tasks.spawn(async move {
        let mut running = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            running.spawn(async move {
                if !pours {
                    std::future::pending::<()>().await;
                }
                while let Ok(more) = stream.write(&[7; 65_536]).await {
                    count.fetch_add(more as u64, Ordering::Relaxed);
                }
            });
        }
    });
    (address, given, tasks)
}

async fn tunnels(lab: &Lab, settings: &Arc<ClientConfig>, port: u16) -> Vec<Pipe> {
    let open = Open {
        kind: OpenKind::Tunnel { host: None, port },
        ..open_web()
    };
    let mut pipes = Vec::new();
    for _ in 0..PIPES {
        let mut pipe = Pipe::dial(lab, settings).await;
        let answer = pipe.open(&open).await;
        assert!(matches!(answer, Answer::Granted(_)), "{answer:?}");
        pipes.push(pipe);
    }
    pipes
}

/// Waits until a number has stood still for a while.
async fn settles(what: &str, number: &AtomicU64) -> u64 {
    let mut last = (u64::MAX, 0);
    eventually(what, async || {
        let now = number.load(Ordering::Relaxed);
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        (last.1 == 50).then_some(now)
    })
    .await
}

#[tokio::test]
async fn clients_that_read_nothing_cost_their_principals_share_and_others_go_on() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "alice").await;
    let certified = enrol(&lab, &keys, None).await;
    let settings = settings(&lab, PIPE, Some(&certified));
    let (address, given, _service) = service(&lab, true).await;
    let mut shell = session(&lab).await;
    let watch = Watch::start(&lab);
    let pipes = tunnels(&lab, &settings, address.port()).await;
    let given = settles("the targets are held up", &given).await;
    // Of the same principal, whose share is used up.
    let slowest = echoes(&mut shell).await;
    postern(
        &lab,
        &["connect", "web-1", "--", "head -c 20000000 /dev/zero"],
    )
    .await
    .status(0);
    let most = watch.most().await;
    println!(
        "{PIPES} pipes that are not read: {} MiB given, {} MiB held, {} descriptors; echo {slowest:?}",
        given / MIB,
        most.memory / MIB,
        most.descriptors
    );
    assert!(most.memory <= KEPT, "{most:?}");
    assert!(most.descriptors <= 4 * PIPES as u64, "{most:?}");
    drop((pipes, shell));
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn targets_that_read_nothing_hold_up_their_client_and_cost_little() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "alice").await;
    let certified = enrol(&lab, &keys, None).await;
    let settings = settings(&lab, PIPE, Some(&certified));
    let (address, _, _service) = service(&lab, false).await;
    let mut shell = session(&lab).await;
    let watch = Watch::start(&lab);
    let mut senders = JoinSet::new();
    let sent = Arc::new(AtomicU64::new(0));
    for mut pipe in tunnels(&lab, &settings, address.port()).await {
        let sent = sent.clone();
        senders.spawn(async move {
            let bytes = [7; 65_000];
            let still = Duration::from_secs(3);
            while let Ok(true) = tokio::time::timeout(still, pipe.send_data(&bytes)).await {
                sent.fetch_add(65_000, Ordering::Relaxed);
            }
            pipe
        });
    }
    let sent = settles("the clients are held up", &sent).await;
    let slowest = echoes(&mut shell).await;
    let pipes = senders.join_all().await;
    let most = watch.most().await;
    println!(
        "{PIPES} targets that read nothing: {} MiB sent, {} MiB held; echo {slowest:?}",
        sent / MIB,
        most.memory / MIB
    );
    assert!(most.memory <= PIPES as u64 * MIB, "{most:?}");
    drop((pipes, shell));
    lab.stop().await.unwrap();
}
