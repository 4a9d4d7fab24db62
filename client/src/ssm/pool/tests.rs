//! The pool against a service in this process, whose SSM Agents give back what they get.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::state::IDLE;
use super::{Lease, Opener, Pool};
use crate::error::Error;
use crate::output::Printer;
use crate::ssm::relay::{Ending, Far, Meter, Moved, Witness, relay};
use crate::ssm::testing::{FakeSsm, Order, Plays};
use crate::ssm::{Session, Ssm, Start, document};

struct Opens(Arc<Ssm>);

impl Opener for Opens {
    async fn open(&self) -> Result<Session, Error> {
        let start = Start {
            target: "i-0123456789abcdef0".to_owned(),
            document: document::PORT.to_owned(),
            parameters: document::parameters([("portNumber", "80".to_owned())]),
            reason: "test".to_owned(),
        };
        Ok(Session::start(&self.0, start).await?)
    }
}

struct Bench {
    fake: FakeSsm,
    ssm: Arc<Ssm>,
    pool: Pool<Opens>,
}

impl Bench {
    async fn new(limit: usize) -> Self {
        let fake = FakeSsm::start(Plays::Forward).await;
        let ssm = fake.ssm();
        let opener = Opens(Arc::clone(&ssm));
        let first = soon(opener.open()).await.unwrap();
        let pool = Pool::new(
            first,
            opener,
            limit,
            "app-1:80".to_owned(),
            Printer::plain_json(),
        );
        Self { fake, ssm, pool }
    }

    async fn connect(&self, port: u16) -> Result<Lease<Opens>, Error> {
        soon(self.pool.connect(([127, 0, 0, 1], port).into())).await
    }

    fn loads(&self) -> Vec<usize> {
        let state = self.pool.shared.lock();
        let mut loads: Vec<usize> = state.members.iter().map(|it| it.streams.count()).collect();
        loads.sort_unstable();
        loads
    }

    async fn end(self) {
        let Self { fake, ssm, pool } = self;
        soon(pool.close()).await;
        soon(ssm.settle()).await;
        assert_eq!(fake.count("TerminateSession"), fake.lock().started.len());
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

async fn echo(far: &mut Far, bytes: &[u8]) {
    let Far::Stream(stream) = far else {
        panic!("it is multiplexed");
    };
    stream.write(bytes).await.unwrap();
    let mut back = Vec::new();
    while back.len() < bytes.len() {
        back.extend_from_slice(&soon(stream.read()).await.unwrap().unwrap());
    }
    assert_eq!(back, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_at_once_get_sessions_of_their_own_up_to_the_limit() {
    let bench = Bench::new(3).await;
    let mut leases = Vec::new();
    for port in 1..=7 {
        leases.push(bench.connect(port).await.unwrap());
    }
    assert_eq!(bench.loads(), [2, 2, 3]);
    assert_eq!(bench.pool.load(), 7);
    for lease in &mut leases {
        echo(lease.far(), b"hello").await;
    }
    for lease in leases {
        soon(lease.end()).await;
    }
    // One after the other share one.
    let lease = bench.connect(8).await.unwrap();
    assert_eq!(bench.fake.lock().started.len(), 3);
    drop(lease);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_cannot_be_had_is_shared_and_not_asked_for_again_at_once() {
    let bench = Bench::new(4).await;
    bench
        .fake
        .refuse("StartSession", "ServiceQuotaExceededException", "too many");
    let mut leases = Vec::new();
    for port in 1..=3 {
        leases.push(bench.connect(port).await.unwrap());
    }
    assert_eq!(bench.loads(), [3]);
    assert_eq!(bench.fake.count("StartSession"), 2);
    drop(leases);
    bench.fake.lock().refusals.clear();
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ended_takes_its_connections_and_is_replaced() {
    let bench = Bench::new(1).await;
    let mut lease = bench.connect(1).await.unwrap();
    echo(lease.far(), b"before").await;
    bench.fake.order(Order::Close("Idle timeout".to_owned()));
    let Far::Stream(stream) = lease.far() else {
        panic!("it is multiplexed");
    };
    let over = soon(stream.read()).await.unwrap_err();
    assert!(over.message.contains("Idle timeout"), "{over}");
    // With nothing to share, what is wrong is told.
    bench
        .fake
        .refuse("StartSession", "AccessDeniedException", "no longer");
    let refused = bench.connect(2).await.err().unwrap();
    assert!(refused.message.contains("no longer"), "{refused}");
    bench.fake.lock().refusals.clear();
    let mut lease = bench.connect(3).await.unwrap();
    echo(lease.far(), b"after").await;
    drop(lease);
    soon(bench.pool.close()).await;
    soon(bench.ssm.settle()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_sessions_are_ended_but_for_one() {
    let bench = Bench::new(3).await;
    let mut leases = Vec::new();
    for port in 1..=3 {
        leases.push(bench.connect(port).await.unwrap());
    }
    let now = Instant::now();
    let unused = |now| bench.pool.shared.lock().unused(now).len();
    assert_eq!(unused(now + 2 * IDLE), 0, "all are in use");
    let kept = leases.pop();
    drop(leases);
    assert_eq!(unused(now), 0, "they may be wanted soon");
    assert_eq!(unused(now + IDLE), 2);
    drop(kept);
    assert_eq!(unused(now), 0);
    assert_eq!(unused(now + 2 * IDLE), 0, "the last one stays");
    drop(bench.pool);
    soon(bench.ssm.settle()).await;
    assert_eq!(bench.fake.count("TerminateSession"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_behind_the_end_of_the_question() {
    let bench = Bench::new(1).await;
    let mut lease = bench.connect(1).await.unwrap();
    let (near, far) = duplex(1 << 20);
    let (mut from, mut to) = tokio::io::split(near);
    let moved = Moved::default();
    let question = vec![5; 400_000];
    let (asked, mut answer) = (question.clone(), Vec::new());
    let asking = async {
        to.write_all(&asked).await.unwrap();
        to.shutdown().await.unwrap();
        from.read_to_end(&mut answer).await.unwrap();
    };
    let relaying = async {
        let (input, output) = tokio::io::split(far);
        let meter = Meter::new(&moved, Witness::Nobody);
        let silence = || Duration::from_secs(1);
        let ending = relay(lease.far(), input, output, &meter, silence).await;
        // The target never learned of the end: it says nothing more, and that ends it.
        assert!(matches!(ending, Ending::Left), "{ending:?}");
        soon(lease.end()).await;
    };
    soon(async { tokio::join!(asking, relaying) }).await;
    assert!(answer == question);
    bench.end().await;
}
