//! One session of a crowd, held open: its far side is relayed by the client's library, its near
//! side is where somebody types.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern::gateway::{Gateway, Opened, Request};
use postern::http::Client;
use postern::pipe::{self, Early};
use postern::ssh::link::Link;
use postern::ssh::shell::{self, Job, Streams, TerminalRequest};
use postern::ssh::terminal::Size;
use postern_proto::gateway::message::{CloseReason, OpenKind};
use postern_proto::names::SessionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::orders::{Kind, Setup};

/// Between a session and whoever types: a line.
const LOCAL: usize = 1024;
/// For one byte to come back, whatever else goes on.
const ECHO: Duration = Duration::from_secs(60);
const CLOSING: Duration = Duration::from_secs(30);

/// An open session, which echoed a byte already.
pub(super) struct Session {
    near: DuplexStream,
    task: AbortOnDropHandle<()>,
    // A tunnel's session would wait for a further connection, as that of `postern forward`.
    waits: Option<(Arc<Gateway>, SessionId)>,
}

impl Session {
    /// Opens one and waits for its first byte.
    pub(super) async fn open(gateway: &Arc<Gateway>, kind: Kind, setup: &Setup) -> Result<Self> {
        let mut session = match kind {
            Kind::Tunnel => Self::tunnel(gateway, setup).await?,
            Kind::Shell => Self::shell(gateway, setup).await?,
        };
        match kind {
            // It went out with the request.
            Kind::Tunnel => session.read().await?,
            Kind::Shell => session.echo().await.map(|_| ())?,
        }
        Ok(session)
    }

    async fn tunnel(gateway: &Arc<Gateway>, setup: &Setup) -> Result<Self> {
        let request = Request {
            target: setup.tunnel.parse()?,
            kind: OpenKind::Tunnel {
                host: None,
                port: setup.port,
            },
            once: false,
        };
        // The service is asked to echo (see `bulk`), and given the first byte.
        let mut early = Early::said(b"e\0\0\0\0\0\0\0\0x");
        let opened = gateway.open(&request, &mut early).await?;
        let waits = Some((Arc::clone(gateway), opened.granted.session));
        let (near, mut far) = duplex(LOCAL);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let Opened { mut wire, .. } = opened;
            if let Err(error) = pipe::relay(&mut wire, &mut far).await {
                tracing::debug!(%error, "a tunnel of the crowd");
            }
            wire.farewell(CloseReason::Done).await;
        }));
        Ok(Self { near, task, waits })
    }

    async fn shell(gateway: &Arc<Gateway>, setup: &Setup) -> Result<Self> {
        let request = Request {
            target: setup.shell.parse()?,
            kind: OpenKind::Ssh {
                user: setup.user.parse()?,
            },
            once: false,
        };
        let mut link = Link::open(gateway, &request, None).await?;
        let (near, far) = duplex(LOCAL);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let (input, output) = tokio::io::split(far);
            let job = Job {
                terminal: Some(TerminalRequest {
                    kind: "xterm".to_owned(),
                    size: Size::default(),
                    modes: Vec::new(),
                }),
                ..Job::default()
            };
            let streams = Streams {
                input,
                output,
                error: tokio::io::sink(),
                typed: false,
                raw: None,
            };
            let (_, control) = mpsc::channel(1);
            if let Err(error) = shell::run(&mut link, job, streams, control, None).await {
                tracing::debug!(%error, "a shell of the crowd");
            }
            drop(link.close().await);
        }));
        let waits = None;
        Ok(Self { near, task, waits })
    }

    /// How long a typed byte takes to come back.
    pub(super) async fn echo(&mut self) -> Result<Duration> {
        let started = Instant::now();
        self.near.write_u8(b'x').await?;
        self.read().await?;
        Ok(started.elapsed())
    }

    async fn read(&mut self) -> Result<()> {
        let byte = tokio::time::timeout(ECHO, self.near.read_u8())
            .await
            .context("no echo within a minute")?
            .context("the session ended")?;
        ensure!(byte == b'x', "the echo is not what was sent");
        Ok(())
    }

    /// Ends it well.
    pub(super) async fn close(mut self) -> Result<()> {
        self.near.shutdown().await?;
        // What is still on its way is heard out.
        let mut rest = Vec::new();
        let ended = async {
            self.near.read_to_end(&mut rest).await?;
            self.task.await.context("the session's task")?;
            if let Some((gateway, session)) = self.waits {
                let mut client = Client::connect(gateway).await?;
                client.delete(&format!("/v1/sessions/{session}")).await?;
            }
            Ok(())
        };
        tokio::time::timeout(CLOSING, ended)
            .await
            .context("the session does not end")?
    }
}
