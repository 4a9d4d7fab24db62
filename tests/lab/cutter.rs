//! A bad network: a TCP relay that cuts all connections, forgets them or goes silent for a while;
//! and whose clients seem to come from somewhere else afterwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const CHUNK: usize = 64 * 1024;

/// No outage is shorter.
const SHORTEST: f64 = 0.1;
/// A program that is waiting gets its outage after this, but has time to come back first.
const PATIENCE: Duration = Duration::from_secs(6);

/// Outages to come: the same ones for the same seed.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Of the dice.
    pub seed: u64,
    /// How many outages. Of each three, one is of each kind.
    pub count: usize,
    /// Each takes 0.1 s to this.
    pub longest: Duration,
    /// Bytes that pass between two of them, if they pass within six seconds.
    pub every: u64,
}

/// What a storm did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Toll {
    /// Outages in which connections were reset.
    pub cut: usize,
    /// Outages in which nothing passed.
    pub silent: usize,
    /// Outages that connections did not outlive, though nobody was told.
    pub lost: usize,
    /// Of all outages together.
    pub outage: Duration,
}

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Everything passes.
    Fine,
    /// Connections are reset, new ones too.
    Cut,
    /// Nothing passes, and nobody is told. What was on its way arrives when it is fine again.
    Silent,
    /// Nothing passes, and nobody is told. The connections that there were never carry anything
    /// again: what their ends send vanishes, as behind a NAT that forgot them.
    Lost,
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

    /// Cuts everything, until [`Self::heal`].
    pub fn cut(&self) {
        self.shared.weather.send_replace(Weather::Cut);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.shared.weather.send_replace(Weather::Fine);
    }

    /// Lets a storm pass. Each outage is followed by another source address.
    pub async fn weather(&self, storm: Storm) -> Toll {
        let mut random = StdRng::seed_from_u64(storm.seed);
        let mut kinds = [Weather::Cut, Weather::Silent, Weather::Lost];
        let (shared, mut toll) = (&self.shared, Toll::default());
        for number in 0..storm.count {
            if number % kinds.len() == 0 {
                kinds.shuffle(&mut random);
            }
            let weather = kinds[number % kinds.len()];
            let outage = random.random_range(SHORTEST..=storm.longest.as_secs_f64().max(SHORTEST));
            let outage = Duration::from_secs_f64(outage);
            let source = Ipv4Addr::new(127, 0, random.random(), random.random_range(2..=250));
            let enough = shared.moved.load(Ordering::Relaxed) + storm.every;
            let passed = async {
                while shared.moved.load(Ordering::Relaxed) < enough {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let _late = tokio::time::timeout(PATIENCE, passed).await;
            tracing::info!(?weather, ?outage, %source, "an outage");
            shared.weather.send_replace(weather);
            tokio::time::sleep(outage).await;
            shared.source.send_replace(source.into());
            shared.weather.send_replace(Weather::Fine);
            toll.outage += outage;
            match weather {
                Weather::Fine => {}
                Weather::Cut => toll.cut += 1,
                Weather::Silent => toll.silent += 1,
                Weather::Lost => toll.lost += 1,
            }
        }
        toll
    }
}

impl Shared {
    async fn carry(&self, near: TcpStream) -> std::io::Result<()> {
        let mut weather = self.weather.subscribe();
        // A connection that arrives in silence waits for the end of it.
        if *weather
            .wait_for(|now| matches!(now, Weather::Fine | Weather::Cut))
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
                end = weather.wait_for(|now| matches!(now, Weather::Cut | Weather::Lost)) => {
                    end.map(|weather| *weather).map_err(gone)
                }
            }
        };
        if matches!(relayed, Ok(Weather::Lost)) {
            // Neither end is told anything, not even that the other one left.
            tokio::join!(swallow(&mut near), swallow(&mut far));
        }
        // However it ended: a broken network is not polite.
        near.set_zero_linger()?;
        far.set_zero_linger()?;
        relayed.map(drop)
    }

    /// Returns with an error alone.
    async fn copy(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> std::io::Result<Weather> {
        let mut weather = self.weather.subscribe();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from.read(&mut chunk).await?;
            // A connection that is lost is not copied from again.
            drop(
                weather
                    .wait_for(|now| matches!(now, Weather::Fine | Weather::Cut))
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

/// Takes what comes until its sender leaves.
async fn swallow(stream: &mut TcpStream) {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk).await.is_ok_and(|length| length > 0) {}
}

fn gone(_: watch::error::RecvError) -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}
