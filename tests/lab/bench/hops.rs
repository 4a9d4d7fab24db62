//! Two plain relays in a process of their own: with the client's and the target's connection they
//! make three bare TCP hops, the least that any tunnel through a bastion can cost.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

const BUFFER: usize = 64 * 1024;

/// The argument with which this program becomes the relays.
pub const ARGUMENT: &str = "bench-hops";

/// Running relays.
pub struct Hops {
    /// Where the first one listens.
    pub address: SocketAddr,
    child: Child,
}

impl Hops {
    /// Starts them in front of `to`.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &to.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("the relays' stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let address = line.context("the relays ended")?.parse()?;
        Ok(Self { address, child })
    }

    /// The process.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

/// The relays themselves: prints the address of the first and serves until killed.
pub async fn serve(to: SocketAddr) -> Result<()> {
    let near = TcpListener::bind(("127.0.0.1", 0)).await?;
    let middle = TcpListener::bind(("127.0.0.1", 0)).await?;
    let middle_address = middle.local_addr()?;
    crate::console::answer(&near.local_addr()?.to_string());
    tokio::try_join!(relay(near, middle_address), relay(middle, to))?;
    Ok(())
}

async fn relay(listener: TcpListener, to: SocketAddr) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            near.set_nodelay(true)?;
            let mut far = TcpStream::connect(to).await?;
            far.set_nodelay(true)?;
            tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await
        });
    }
}
