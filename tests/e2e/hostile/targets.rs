//! Hosts that are no better than their users.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lab::stack::SSH_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{MIB, Watch, echoes};
use crate::harness::{lab, postern, session};

/// What the host at the SSH port of `win-1` does to each connection.
const TRICKS: [(&str, &str); 4] = [
    ("no end of a line", "does not identify itself"),
    ("no end of lines", "does not identify itself"),
    ("a packet of 2 GiB", "too long"),
    ("noise", "win-1"),
];

async fn trick(which: usize, stream: &mut TcpStream) -> std::io::Result<()> {
    match which {
        0 => loop {
            stream.write_all(&[b'x'; 65_536]).await?;
        },
        1 => loop {
            stream.write_all(&b"patience\r\n".repeat(1000)).await?;
        },
        2 => {
            stream.write_all(b"SSH-2.0-x\r\n\x7f\xff\xff\xff").await?;
            loop {
                stream.write_all(&[0; 65_536]).await?;
            }
        }
        _ => {
            stream.write_all(b"SSH-2.0-x\r\n").await?;
            stream.write_all(&crate::harness::noise(1 << 20)).await
        }
    }
}

#[tokio::test]
async fn hosts_that_only_pretend_to_be_ssh_servers_cost_their_session_alone() {
    let lab = lab().await;
    let listener = TcpListener::bind((lab.network.win(), SSH_PORT))
        .await
        .unwrap();
    let which = Arc::new(AtomicUsize::new(0));
    let chosen = which.clone();
    let mut host = JoinSet::new();
    host.spawn(async move {
        let mut running = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let which = chosen.load(Ordering::Relaxed);
            running.spawn(async move {
                let _ = trick(which, &mut stream).await;
                // Until the agent hangs up.
                let _ = stream.read(&mut [0; 16]).await;
            });
        }
    });
    let mut shell = session(&lab).await;
    let watch = Watch::start(&lab);
    for (n, (what, says)) in TRICKS.into_iter().enumerate() {
        which.store(n, Ordering::Relaxed);
        let told = postern(&lab, &["connect", "win-1", "--", "true"]).await;
        assert_eq!(told.status, Some(255), "{what}: {}", told.stderr);
        told.says(&[says, "hint:"]);
        echoes(&mut shell).await;
    }
    let most = watch.most().await;
    println!("hosts that pretend: {} KiB", most.memory / 1024);
    assert!(most.memory <= 16 * MIB, "{most:?}");
    drop(shell);
    lab.stop().await.unwrap();
}
