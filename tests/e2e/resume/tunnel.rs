//! A copy through a tunnel, both ways at once.

use lab::forward::Forward;
use lab::stack::DATABASE_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::{Stormy, Trial};
use crate::harness::PATIENCE;
use crate::ssm_forward::peer;

async fn send(mut to: OwnedWriteHalf, seed: u64, length: usize) {
    peer::send(&mut to, seed, length).await.unwrap();
    to.shutdown().await.unwrap();
}

/// Demands these bytes and no more.
async fn receive(mut from: OwnedReadHalf, seed: u64, length: usize) {
    peer::take(&mut from, seed, length).await.unwrap();
    assert_eq!(from.read(&mut [0]).await.unwrap(), 0, "no further byte");
}

/// A connection through the forward, and its other end.
async fn pair(forward: &Forward, database: &TcpListener) -> (TcpStream, TcpStream) {
    let both = async {
        let client = TcpStream::connect(forward.local).await.unwrap();
        let (target, _) = database.accept().await.unwrap();
        (client, target)
    };
    tokio::time::timeout(PATIENCE, both)
        .await
        .expect("a connection through the tunnel")
}

/// Both ways at once, so many bytes each.
async fn copy(client: TcpStream, target: TcpStream, length: usize) {
    let ((client_in, client_out), (target_in, target_out)) =
        (client.into_split(), target.into_split());
    tokio::join!(
        send(client_out, 1, length),
        send(target_out, 2, length + 1),
        receive(target_in, 1, length),
        receive(client_in, 2, length + 1),
    );
}

#[tokio::test]
async fn a_tunnel_copies_both_ways_through_cuts_without_losing_or_doubling_a_byte() {
    let trial = Trial::new(64 << 20);
    let stormy = Stormy::new().await;
    // Plays the database: the bastion alone reaches it.
    let address = (stormy.lab.network.db(), DATABASE_PORT);
    let database = TcpListener::bind(address).await.unwrap();
    let forward = Forward::start(stormy.postern(), "db-1", &format!("0:{DATABASE_PORT}"))
        .await
        .unwrap();
    let (client, target) = pair(&forward, &database).await;
    let both = async {
        tokio::join!(
            copy(client, target, trial.copy),
            stormy.network.weather(trial.spread(2 * trial.copy))
        )
    };
    let ((), toll) = tokio::time::timeout(trial.patience(), both)
        .await
        .expect("the copies end");
    // The forward itself lives on, its spare connections too.
    for _ in 0..3 {
        let (client, target) = pair(&forward, &database).await;
        tokio::time::timeout(PATIENCE, copy(client, target, 1 << 20))
            .await
            .expect("a copy after the storm");
    }
    forward.interrupt().await.unwrap();
    stormy.end(toll).await;
}
