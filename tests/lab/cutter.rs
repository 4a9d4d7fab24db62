//! A bad network: a TCP relay that cuts all connections, or goes silent, for a while; and whose
//! clients seem to come from somewhere else afterwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const CHUNK: usize = 64 * 1024;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Everything passes.
    Fine,
    /// Connections are reset, new ones too.
    Cut,
    /// Nothing passes, and nobody is told. What was on its way arrives when it is fine again.
    Silent,
}

/// A running relay.
pub struct Cutter {
    /// Where it listens: clients take it for the agent.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    to: SocketAddr,
    weather: watch::Sender<Weather>,
    source: watch::Sender<IpAddr>,
    moved: AtomicU64,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cutter {
    /// Relays to `to`, in fine weather.
    pub async fn start(to: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to,
            weather: watch::Sender::new(Weather::Fine),
            source: watch::Sender::new(Ipv4Addr::LOCALHOST.into()),
            moved: AtomicU64::new(0),
        });
        let relaying = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let shared = Arc::clone(&relaying);
                connections.spawn(async move { shared.carry(stream).await });
            }
        });
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// Cuts `count` times, whenever `every` further bytes have passed (or half a second has), for
    /// 0.1 s to `longest` each; half of the outages are silent, and each is followed by another
    /// source address.
    pub async fn storm(&self, seed: u64, count: usize, every: u64, longest: Duration) {
        tracing::info!(seed, "a storm");
        let mut random = StdRng::seed_from_u64(seed);
        let shared = &self.shared;
        for _ in 0..count {
            let enough = shared.moved.load(Ordering::Relaxed) + every;
            let passed = async {
                while shared.moved.load(Ordering::Relaxed) < enough {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            // A program that is waiting gets its outage too.
            let _late = tokio::time::timeout(Duration::from_millis(500), passed).await;
            let weather = if random.random() {
                Weather::Cut
            } else {
                Weather::Silent
            };
            let outage = random.random_range(0.1..=longest.as_secs_f64());
            let source = Ipv4Addr::new(127, 0, random.random(), random.random_range(2..=250));
            tracing::info!(?weather, outage, %source, "an outage");
            shared.weather.send_replace(weather);
            tokio::time::sleep(Duration::from_secs_f64(outage)).await;
            shared.source.send_replace(source.into());
            shared.weather.send_replace(Weather::Fine);
        }
    }
}

impl Shared {
    async fn carry(&self, near: TcpStream) -> std::io::Result<()> {
        let mut weather = self.weather.subscribe();
        // A connection that arrives in silence waits for the end of it.
        if *weather
            .wait_for(|now| *now != Weather::Silent)
            .await
            .map_err(gone)?
            == Weather::Cut
        {
            return near.set_zero_linger();
        }
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(*self.source.borrow(), 0))?;
        let mut far = socket.connect(self.to).await?;
        let mut near = near;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let relayed = {
            let ((near_in, near_out), (far_in, far_out)) = (near.split(), far.split());
            tokio::select! {
                up = self.copy(near_in, far_out) => up,
                down = self.copy(far_in, near_out) => down,
                cut = weather.wait_for(|now| *now == Weather::Cut) => cut.map(drop).map_err(gone),
            }
        };
        // However it ended: a broken network is not polite.
        near.set_zero_linger()?;
        far.set_zero_linger()?;
        relayed
    }

    async fn copy(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> std::io::Result<()> {
        let mut weather = self.weather.subscribe();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from.read(&mut chunk).await?;
            drop(
                weather
                    .wait_for(|now| *now != Weather::Silent)
                    .await
                    .map_err(gone)?,
            );
            if length == 0 {
                to.shutdown().await?;
                // The other direction ends on its own.
                return std::future::pending().await;
            }
            to.write_all(&chunk[..length]).await?;
            self.moved.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

fn gone(_: watch::error::RecvError) -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}
