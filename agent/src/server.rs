//! Accepts connections: nothing that a peer does holds up the loop, and a stranger costs little.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::{CloseReason, JOIN_EXPORTER};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Core, EnrollServe};
use crate::http;
use crate::identity::{EnrollEnd, VerifiedPrincipal};
use crate::keeper::Keeper;
use crate::limits::{Arrival, LimitReached, Place};
use crate::serve::serve;
use crate::session::{Ending, Peer};
use crate::socket::Socket;
use crate::tls::{AcceptFault, Accepted, BoundedInput, Protocol, TlsSettings};

/// How long an enrolment may take, both requests to STS included.
const ENROLLMENT: Duration = Duration::from_secs(60);
/// How long the loop waits when the system has no descriptor left: any connection that ends
/// frees one.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How long a session that was ordered to end has to close its recordings and say so.
const ORDERED: Duration = Duration::from_secs(5);
/// What is counted when a stranger makes room for one who comes from elsewhere.
const CROWDED_OUT: &str = "crowded out";
/// How long unacknowledged bytes, or a closed window, may go without a sign of the peer's kernel.
const SILENT_KERNEL: Duration = Duration::from_secs(120);

/// Serves clients on one listener.
pub(crate) struct Server {
    pub(crate) core: Arc<Core>,
    pub(crate) tls: Arc<TlsSettings>,
    pub(crate) enroll: EnrollServe,
    pub(crate) http: http::Api,
    /// How long sessions have to end by themselves.
    pub(crate) drain: Duration,
}

impl Server {
    /// Serves until `shutdown`, then drains: accepts nothing more, tells sessions, gives them time to
    /// end by themselves, orders the rest to, and drops what is left.
    pub(crate) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let keeper_stop = CancellationToken::new();
        let keeper = tokio::spawn(Keeper::new(self.core.clone()).run(keeper_stop.clone()));
        let force = CancellationToken::new();
        let server = Arc::new(self);
        Arc::clone(&server)
            .accept(&listener, &shutdown, &force)
            .await;
        drop(listener);

        let core = &server.core;
        core.drain.cancel();
        let left = format!(
            "the agent is shutting down: this session ends in {} s",
            server.drain.as_secs()
        );
        core.sessions.tell_all(&left.into());
        tracing::info!(sessions = core.sessions.len(), "draining");
        core.tasks.close();
        // Whoever is done by then has lost nothing.
        let done = timeout(server.drain, core.tasks.wait()).await;
        core.sessions.end_all(&Ending {
            reason: CloseReason::Draining,
            message: Some("the agent is shutting down".to_owned()),
        });
        if done.is_err() && timeout(ORDERED, core.tasks.wait()).await.is_err() {
            tracing::warn!(
                sessions = core.sessions.len(),
                "the drain deadline is over: what is left is cut"
            );
        }
        force.cancel();
        keeper_stop.cancel();
        if let Err(error) = keeper.await {
            tracing::error!(%error, "the keeper failed");
        }
        core.tasks.wait().await;
        // Sessions that waited for a further pipe, and those whose pipes were cut.
        core.sessions.close_all().await;
        core.strangers.report(&core.evidence).await;
    }

    async fn accept(
        self: Arc<Self>,
        listener: &TcpListener,
        shutdown: &CancellationToken,
        force: &CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, source) = match accepted {
                // One form of an address everywhere: policies compare it.
                Ok((tcp, source)) => (
                    tcp,
                    SocketAddr::new(source.ip().to_canonical(), source.port()),
                ),
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    if is_exhausted(&error) {
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                    continue;
                }
            };
            let arrival = match self.core.limits.arrive(source.ip()) {
                Ok(arrival) => arrival,
                Err(limit) => {
                    // Dropping it at once is the cheapest answer.
                    self.core.strangers.note(source.ip(), limit_kind(limit));
                    continue;
                }
            };
            let server = Arc::clone(&self);
            let force = force.clone();
            self.core.tasks.spawn(async move {
                tokio::select! {
                    () = force.cancelled() => {}
                    () = server.connection(tcp, source, arrival) => {}
                }
            });
        }
    }

    async fn connection(&self, tcp: TcpStream, source: SocketAddr, arrival: Arrival) {
        if let Err(error) = prepare(&tcp) {
            tracing::debug!(%source, %error, "socket options");
        }
        let leave = arrival.leave();
        let handshake = timeout(
            self.core.patience.handshake,
            self.tls.accept(Socket::new(tcp)),
        );
        let handshaken = tokio::select! {
            handshaken = handshake => handshaken,
            () = leave.cancelled() => return self.core.strangers.note(source.ip(), CROWDED_OUT),
        };
        let accepted = match handshaken {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(fault)) => {
                tracing::debug!(%source, %fault, "handshake");
                return self.core.strangers.note(source.ip(), fault_kind(&fault));
            }
            Err(_) => return self.core.strangers.note(source.ip(), "slow handshake"),
        };
        let Accepted {
            protocol,
            stream,
            peer,
        } = accepted;
        match (protocol, peer) {
            (Protocol::Enroll, _) => self.enroll(stream, source, arrival).await,
            (Protocol::Pipe, Some(who)) => {
                if let Some((place, peer)) = self.prove(&stream, source, arrival, &who) {
                    // Boxed: a waiting connection is as small as its state.
                    Box::pin(serve(&self.core, peer, place, stream)).await;
                }
            }
            (Protocol::Http, Some(who)) => {
                if let Some((place, peer)) = self.prove(&stream, source, arrival, &who) {
                    self.http.serve(stream, peer).await;
                    drop(place);
                }
            }
            (Protocol::Pipe | Protocol::Http, None) => {
                self.core.strangers.note(source.ip(), "certificate");
            }
        }
    }

    async fn enroll(
        &self,
        stream: TlsStream<BoundedInput<Socket>>,
        source: SocketAddr,
        arrival: Arrival,
    ) {
        // Who waits for its turn is a stranger still, and may have to go as one.
        let (leave, patience) = (arrival.leave(), self.core.patience.handshake);
        let entered = tokio::select! {
            entered = arrival.enroll(source.ip(), patience) => entered,
            () = leave.cancelled() => return self.core.strangers.note(source.ip(), CROWDED_OUT),
        };
        let enrolling = match entered {
            Ok(enrolling) => enrolling,
            Err(limit) => return self.core.strangers.note(source.ip(), limit_kind(limit)),
        };
        let leave = enrolling.leave();
        let serving = timeout(ENROLLMENT, (self.enroll)(stream, source));
        let served = tokio::select! {
            served = serving => served,
            () = leave.cancelled() => return self.core.strangers.note(source.ip(), CROWDED_OUT),
        };
        drop(enrolling);
        let failed = match served {
            Ok(end) => stranger_kind(&end),
            Err(_) => Some("slow enrolment"),
        };
        if let Some(kind) = failed {
            self.core.strangers.note(source.ip(), kind);
        }
    }

    /// From stranger to principal: counted as that from here on.
    fn prove(
        &self,
        stream: &TlsStream<BoundedInput<Socket>>,
        source: SocketAddr,
        arrival: Arrival,
        who: &VerifiedPrincipal,
    ) -> Option<(Place, Peer)> {
        let connection = stream.get_ref().1;
        let exporter = connection.export_keying_material([0; 32], JOIN_EXPORTER, None);
        let certificate = connection
            .peer_certificates()
            .and_then(<[CertificateDer<'_>]>::first);
        let (Ok(exporter), Some(certificate)) = (exporter, certificate) else {
            self.core.strangers.note(source.ip(), "certificate");
            return None;
        };
        let peer = Peer {
            certificate: certificate.clone().into_owned(),
            exporter,
            source,
        };
        match arrival.prove(&who.principal().key()) {
            Ok(place) => Some((place, peer)),
            Err(limit) => {
                metrics::counter!("postern_denied_total", "code" => "limit").increment(1);
                tracing::info!(%source, principal = %who.principal().arn, %limit, "connection refused");
                None
            }
        }
    }
}

fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(tcp, true)?;
    rustix::net::sockopt::set_tcp_keepidle(tcp, SILENT_KERNEL)?;
    let timeout = u32::try_from(SILENT_KERNEL.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(tcp, timeout)?;
    Ok(())
}

/// Out of file descriptors or memory: accepting again at once would spin.
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

fn limit_kind(limit: LimitReached) -> &'static str {
    match limit {
        LimitReached::Connections => "limit of connections",
        LimitReached::Enrollments => "limit of enrolments",
        _ => "limit of strangers",
    }
}

/// How an enrolment failed before AWS had named anybody. Refusals of somebody known are events of
/// their own.
fn stranger_kind(end: &EnrollEnd) -> Option<&'static str> {
    match end {
        EnrollEnd::Issued { .. } | EnrollEnd::Approved { .. } => None,
        EnrollEnd::Refused { refusal, principal } => {
            principal.is_none().then(|| refusal.stranger_kind())
        }
        EnrollEnd::Broken(error) if error.kind() == io::ErrorKind::TimedOut => {
            Some("slow enrolment")
        }
        EnrollEnd::Broken(_) => Some("broken enrolment"),
    }
}

fn fault_kind(fault: &AcceptFault) -> &'static str {
    match fault {
        AcceptFault::Handshake(_) => "handshake",
        AcceptFault::Protocol => "protocol",
        AcceptFault::Certificate(_) => "certificate",
    }
}
