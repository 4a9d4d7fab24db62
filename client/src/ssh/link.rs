//! One SSH connection over one pipe.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use postern_proto::audit::note::Checkpoint;
use postern_proto::gateway::EARLY_DATA;
use postern_proto::gateway::message::{CloseReason, Granted, OpenKind};
use postern_proto::names::LoginUser;
use russh::client::{self, ChannelOpenHandle, Handle, Msg};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, SshId};
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::SshError;
use super::host_key::{CERTIFICATES, Trust};
use crate::gateway::{Gateway, Membership, Opened, Request};
use crate::pipe::outage::Away;
use crate::pipe::{self, Early, Outcome, PipeError};

/// What russh may write before the pipe takes it: above the sum of the windows that the agent
/// opens to our channels (2 MiB each), so that russh never waits for its own writes and always
/// reads. Memory is taken only when used.
const STREAM: usize = 64 * 1024 * 1024;
/// Our receive window: 100 MB/s at 80 ms one way.
const WINDOW: u32 = 16 * 1024 * 1024;
/// The largest packet that russh takes.
const PACKET: u32 = 65_535;
/// For our own identification: it needs no network.
const IDENTIFICATION: Duration = Duration::from_secs(5);
/// For the SSH handshake once the pipe is granted.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// For the agent to say `Close`, with its evidence, once SSH is over.
const CLOSING: Duration = Duration::from_secs(5);
/// Channels that the agent opened and nobody looked at yet.
const OFFERS: usize = 16;

/// Channels that the agent opens towards us.
pub(super) enum Inbound {
    /// The target wants the local SSH agent.
    Agent(Channel<Msg>, ChannelOpenHandle),
    /// Somebody connected to a `-R` listener.
    Forwarded {
        /// The listener's port on the target.
        port: u32,
        /// The connection.
        channel: Channel<Msg>,
        /// To take or refuse it.
        reply: ChannelOpenHandle,
    },
}

/// An authenticated SSH connection.
pub struct Link {
    gateway: Arc<Gateway>,
    handle: Handle<Handler>,
    granted: Granted,
    membership: Membership,
    driver: AbortOnDropHandle<Result<Outcome, PipeError>>,
    // An order to the driver, and that it is over.
    leave: CancellationToken,
    left: CancellationToken,
    seen: Checkpoint,
    inbound: Option<mpsc::Receiver<Inbound>>,
    refusal: Arc<Mutex<Option<String>>>,
}

impl Link {
    /// Opens a session, or a further pipe of one, and speaks SSH on it up to the authenticated
    /// connection. Our identification travels with the request.
    pub async fn open(
        gateway: &Arc<Gateway>,
        request: &Request,
        session: Option<&Membership>,
    ) -> Result<Self, SshError> {
        let OpenKind::Ssh { user } = &request.kind else {
            return Err(SshError::Protocol(
                "a tunnel carries no SSH of ours".to_owned(),
            ));
        };
        let (near, mut far) = tokio::io::duplex(STREAM);
        let (trust, trusted) = watch::channel(None);
        let (offered, inbound) = mpsc::channel(OFFERS);
        let (refusal, fault) = (Arc::default(), Arc::default());
        let handler = Handler {
            trusted,
            offered,
            fault: Arc::clone(&fault),
            refusal: Arc::clone(&refusal),
        };
        let handshake =
            AbortOnDropHandle::new(tokio::spawn(handshake(near, handler, user.clone())));
        let early = identification(&mut far).await?;
        let mut early = Early::said(&early);
        let opened = match session {
            None => gateway.open(request, &mut early).await?,
            Some(session) => gateway.join(request, session, &mut early, None).await?,
        };
        let membership = opened.membership();
        let Opened {
            granted,
            mut wire,
            seen,
        } = opened;
        trust.send_replace(Some(Trust {
            ca: granted.ssh_host_ca.clone().unwrap_or_default(),
            agent: gateway.agent().id.to_string(),
        }));
        let (leave, left) = (CancellationToken::new(), CancellationToken::new());
        let (order, told) = (leave.clone(), left.clone().drop_guard());
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _told = told;
            let outcome = tokio::select! {
                outcome = pipe::relay(&mut wire, &mut far) => outcome,
                () = order.cancelled() => Err(PipeError::Local(io::ErrorKind::Interrupted.into())),
            };
            match &outcome {
                Ok(_) => wire.farewell(CloseReason::Done).await,
                // The agent would wait for us to come back.
                Err(PipeError::Local(_)) => wire.farewell(CloseReason::Client).await,
                Err(_) => {}
            }
            outcome
        }));
        let failure = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(Ok(Ok(handle))) => {
                return Ok(Self {
                    gateway: Arc::clone(gateway),
                    handle,
                    granted,
                    membership,
                    driver,
                    leave,
                    left,
                    seen,
                    inbound: Some(inbound),
                    refusal,
                });
            }
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(_)) => "the handshake was abandoned".to_owned(),
            Err(_) => format!("no handshake within {} s", HANDSHAKE.as_secs()),
        };
        if let Some(fault) = taken(&fault) {
            return Err(SshError::HostKey(fault));
        }
        Err(why(driver, SshError::Protocol(failure)).await)
    }

    /// The agent's yes.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// Tells whether the network is lost.
    pub fn away(&self) -> watch::Receiver<Away> {
        self.gateway.away()
    }

    /// What further pipes of this session need.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// A session channel.
    pub(super) async fn session(&self) -> Result<Channel<Msg>, SshError> {
        let opened = self.handle.channel_open_session().await;
        opened.map_err(|error| self.refused("a session on the target", &error))
    }

    /// A connection from the target to `host`:`port`.
    pub(super) async fn direct(
        &self,
        host: &str,
        port: u16,
        origin: (&str, u16),
    ) -> Result<Channel<Msg>, SshError> {
        let opened = self
            .handle
            .channel_open_direct_tcpip(host, port.into(), origin.0, origin.1.into())
            .await;
        opened.map_err(|error| {
            self.refused(
                &format!("a connection from the target to {host}:{port}"),
                &error,
            )
        })
    }

    /// A listener on the target; returns its port.
    pub(super) async fn listen(&self, address: &str, port: u16) -> Result<u32, SshError> {
        match self.handle.tcpip_forward(address, port.into()).await {
            Ok(0) => Ok(port.into()),
            Ok(chosen) => Ok(chosen),
            Err(error) => {
                Err(self.refused(&format!("a listener on the target at port {port}"), &error))
            }
        }
    }

    /// The channels that the agent opens; `None` when they are taken already.
    pub(super) fn inbound(&mut self) -> Option<mpsc::Receiver<Inbound>> {
        self.inbound.take()
    }

    /// Whether the pipe below has ended.
    pub(super) fn is_over(&self) -> bool {
        self.handle.is_closed() || self.driver.is_finished()
    }

    /// Tells the agent that this pipe is over, whatever runs on it. Bounded.
    pub(super) async fn leave(&self) {
        self.leave.cancel();
        // What is not said by then is not said.
        let _late = tokio::time::timeout(CLOSING, self.left.cancelled()).await;
    }

    /// Ends SSH and the pipe, and checks the evidence that the agent closes with. Bounded.
    pub async fn close(self) -> Result<(), SshError> {
        let Self {
            gateway,
            handle,
            driver,
            seen,
            ..
        } = self;
        if gateway.away().borrow().since.is_some() {
            // Nobody hears a farewell: the agent ends the session once its time is over.
            return Ok(());
        }
        // Best effort: a connection that is gone needs no farewell.
        let _gone = handle.disconnect(Disconnect::ByApplication, "", "").await;
        drop(handle);
        let outcome = match tokio::time::timeout(CLOSING, driver).await {
            Ok(Ok(outcome)) => outcome?,
            // The agent took too long to say goodbye: what there was to know is known.
            _ => return Ok(()),
        };
        gateway.check_close(&outcome.close, &seen)?;
        match pipe::ending(&outcome.close) {
            Some(sentence) => Err(SshError::Ended(sentence)),
            None => Ok(()),
        }
    }

    /// Why the connection broke; `otherwise` when the pipe does not know either.
    pub(crate) async fn why(self, otherwise: SshError) -> SshError {
        drop(self.handle);
        why(self.driver, otherwise).await
    }

    fn refused(&self, what: &str, error: &russh::Error) -> SshError {
        let reason = match (error, taken(&self.refusal)) {
            (russh::Error::ChannelOpenFailure(_), Some(told)) if !told.is_empty() => told,
            (
                russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited),
                _,
            ) => "not allowed".to_owned(),
            (russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed), _) => {
                "the target could not connect".to_owned()
            }
            (russh::Error::RequestDenied, _) => "not allowed, or the port is taken".to_owned(),
            (error, _) => error.to_string(),
        };
        SshError::Refused {
            what: what.to_owned(),
            reason,
        }
    }
}

/// Prefers what the pipe knows about the end to what SSH saw of it.
async fn why(
    driver: AbortOnDropHandle<Result<Outcome, PipeError>>,
    otherwise: SshError,
) -> SshError {
    match tokio::time::timeout(CLOSING, driver).await {
        Ok(Ok(Err(error))) => error.into(),
        Ok(Ok(Ok(outcome))) => match pipe::ending(&outcome.close) {
            Some(sentence) => SshError::Ended(sentence),
            None => otherwise,
        },
        _ => otherwise,
    }
}

/// Takes what russh says first, to send it with the request.
async fn identification(stream: &mut DuplexStream) -> Result<Bytes, SshError> {
    let mut early = BytesMut::with_capacity(EARLY_DATA);
    match tokio::time::timeout(IDENTIFICATION, stream.read_buf(&mut early)).await {
        Ok(Ok(length)) if length > 0 => Ok(early.freeze()),
        _ => Err(SshError::Protocol(
            "the SSH client did not start".to_owned(),
        )),
    }
}

async fn handshake(
    stream: DuplexStream,
    handler: Handler,
    user: LoginUser,
) -> Result<Handle<Handler>, String> {
    let mut handle = client::connect_stream(Arc::new(config()), stream, handler)
        .await
        .map_err(|error| error.to_string())?;
    match handle.authenticate_none(user.as_str()).await {
        Ok(result) if result.success() => Ok(handle),
        Ok(_) => Err(format!(
            "it does not take user `{user}` without further authentication"
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn config() -> client::Config {
    let mut preferred = russh::Preferred::DEFAULT;
    preferred.host_key_certificates = Cow::Borrowed(CERTIFICATES);
    // The outer TLS is hybrid post-quantum: here the fast ones come first.
    let mut kex = preferred.kex.to_vec();
    kex.sort_by_key(|name| *name != russh::kex::CURVE25519);
    preferred.kex = kex.into();
    let mut cipher = preferred.cipher.to_vec();
    cipher.retain(|name| *name != russh::cipher::AES_128_GCM);
    cipher.insert(0, russh::cipher::AES_128_GCM);
    preferred.cipher = cipher.into();
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!(
            "SSH-2.0-postern_",
            env!("CARGO_PKG_VERSION")
        ))),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        preferred,
        ..client::Config::default()
    }
}

fn taken(slot: &Mutex<Option<String>>) -> Option<String> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What russh asks of us. Every channel that is not expected is refused.
pub(super) struct Handler {
    trusted: watch::Receiver<Option<Trust>>,
    offered: mpsc::Sender<Inbound>,
    fault: Arc<Mutex<Option<String>>>,
    refusal: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let fault = match self.trusted.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(trust)) => trust.check(shown, now).err(),
            _ => return Ok(false),
        };
        let good = fault.is_none();
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        Ok(good)
    }

    async fn channel_open_failure(
        &mut self,
        _channel: ChannelId,
        _reason: ChannelOpenFailure,
        description: &str,
        _language: &str,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let description = description.chars().take(500).collect();
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(description);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        // Nobody there to take it, or too many at once: dropping the reply refuses.
        let _refused = self.offered.try_send(Inbound::Agent(channel, reply));
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _connected_address: &str,
        connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let _refused = self.offered.try_send(Inbound::Forwarded {
            port: connected_port,
            channel,
            reply,
        });
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }
}

async fn refuse(reply: ChannelOpenHandle) -> Result<(), russh::Error> {
    reply
        .reject(ChannelOpenFailure::AdministrativelyProhibited)
        .await;
    Ok(())
}
