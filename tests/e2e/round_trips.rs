//! How often a command waits for the network, counted and not timed.
//!
//! The relay between client and agent numbers what passes by cause: whatever the client sends
//! comes after all that had reached it, whatever the agent sends after all that had reached the
//! agent. A delay keeps apart what only happened to meet; it decides nothing. Acknowledgements
//! cause nothing, and are told by their size.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::stack::Lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{PATIENCE, lab, postern, run};

/// One way. Above what a busy machine needs to answer.
const DELAY: Duration = Duration::from_millis(150);

/// A frame of 8 bytes behind its header, in a TLS record of its own: from the client an `Ack`, or
/// a `Ping` whose answer counts if anything waits for it.
const SMALL: [u8; 5] = [23, 3, 3, 0, 12 + 1 + 16];

/// Whether all records of a chunk are such.
fn is_small(mut chunk: &[u8]) -> bool {
    while let Some(rest) = chunk.strip_prefix(&SMALL) {
        match rest.get(usize::from(SMALL[4])..) {
            Some(rest) => chunk = rest,
            None => return false,
        }
    }
    chunk.is_empty()
}

/// Round trips that have reached either side.
#[derive(Default)]
struct Seen {
    client: AtomicU32,
    agent: AtomicU32,
}

struct Relay {
    address: SocketAddr,
    seen: Arc<Seen>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(carry(near, to, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            seen,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn round_trips(&self) -> u32 {
        self.seen.client.load(Ordering::SeqCst)
    }
}

async fn carry(near: TcpStream, to: SocketAddr, seen: Arc<Seen>) -> std::io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    // TCP's own handshake: the client knew of it before its first byte.
    seen.client.fetch_add(1, Ordering::SeqCst);
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let up = one_way(near_in, far_out, &seen.client, &seen.agent, 0);
    let down = one_way(far_in, near_out, &seen.agent, &seen.client, 1);
    tokio::try_join!(up, down)?;
    Ok(())
}

/// Carries bytes with the number of what their sender had seen; the way back completes a trip.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    sender: &AtomicU32,
    receiver: &AtomicU32,
    trip: u32,
) -> std::io::Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, u32, Vec<u8>)>(1024);
    let read = async move {
        loop {
            let mut chunk = Vec::with_capacity(64 * 1024);
            let length = from.read_buf(&mut chunk).await?;
            let number = sender.load(Ordering::SeqCst);
            let message = (Instant::now() + DELAY, number, chunk);
            if length == 0 || queue.send(message).await.is_err() {
                return std::io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((when, number, chunk)) = due.recv().await {
            tokio::time::sleep_until(when).await;
            if trip > 0 || !is_small(&chunk) {
                receiver.fetch_max(number + trip, Ordering::SeqCst);
            }
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

/// Round trips until the first byte of output, and until the end.
async fn until_output(relay: &Relay, command: &mut tokio::process::Command) -> (u32, u32) {
    let before = relay.round_trips();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let mut stdout = child.stdout.take().unwrap();
    let read = tokio::time::timeout(PATIENCE, stdout.read(&mut first)).await;
    let length = read.expect("output in time").unwrap();
    let counted = relay.round_trips() - before;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("an end in time").unwrap();
    let ended = relay.round_trips() - before;
    assert_eq!(length, 1, "{}", String::from_utf8_lossy(&output.stderr));
    (counted, ended)
}

fn through(lab: &Lab, relay: &Relay, program: &str) -> tokio::process::Command {
    let mut command = lab.command(program);
    command.env("POSTERN_AGENT", relay.address.to_string());
    command
}

#[tokio::test]
async fn connect_needs_at_most_seven_round_trips_to_its_end() {
    let lab = lab().await;
    // Enrolled, and the target's host key is known: as it is for all but the first time.
    postern(&lab, &["connect", "web-1", "--", "true"])
        .await
        .status(0);
    let relay = Relay::start(lab.agent.address).await;
    let mut command = through(&lab, &relay, "postern");
    command.args(["connect", "web-1", "--", "echo in"]);
    let (output, end) = until_output(&relay, &mut command).await;
    assert!((3..=7).contains(&output), "{output} round trips");
    // The agent ends what is over of its own accord, and nobody waits to hear that it heard us.
    assert_eq!(end, output);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_count_is_that_of_the_network() {
    // What is known by heart: TCP's handshake, then TLS 1.3's, then a request over HTTP.
    let lab = lab().await;
    let relay = Relay::start(lab.aws.address()).await;
    let mut curl = tokio::process::Command::new("curl");
    let bundle = &lab.environment["AWS_CA_BUNDLE"];
    let url = format!("https://{}:{}/", lab.network.aws(), relay.address.port());
    curl.args(["-sS", "--tlsv1.3", "--cacert", bundle, &url]);
    let told = run(&mut curl, b"").await.status(0);
    assert!(!told.stdout.is_empty());
    assert_eq!(relay.round_trips(), 3);
    lab.stop().await.unwrap();
}
