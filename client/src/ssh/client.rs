//! russh's client as we run it: its settings, its handshake, and what it asks of us.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use russh::client::{self, ChannelOpenHandle, Handle, Msg};
use russh::keys::{Algorithm, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, ChannelOpenFailure, SshId};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

use super::SshError;
use super::host_key::{CERTIFICATES, Trust};
use super::login::Login;

/// Our receive window: 100 MB/s at 80 ms one way.
const WINDOW: u32 = 16 * 1024 * 1024;
/// The largest packet that russh takes.
const PACKET: u32 = 65_535;

/// Channels that the other side opens towards us.
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

pub(super) async fn handshake(
    stream: DuplexStream,
    config: client::Config,
    handler: Handler,
    login: Login,
) -> Result<Handle<Handler>, SshError> {
    let mut handle = client::connect_stream(Arc::new(config), stream, handler)
        .await
        .map_err(|error| SshError::Protocol(error.to_string()))?;
    login.prove(&mut handle).await?;
    Ok(handle)
}

/// For the agent's SSH server, inside its TLS.
pub(super) fn config_of_agent() -> client::Config {
    let mut preferred = preferred();
    preferred.host_key_certificates = Cow::Borrowed(CERTIFICATES);
    // The outer TLS is hybrid post-quantum: here the fast ones come first.
    let mut kex = preferred.kex.to_vec();
    kex.sort_by_key(|name| *name != russh::kex::CURVE25519);
    preferred.kex = kex.into();
    config(preferred)
}

/// For a host's own SSH server. `known`: the kinds of keys that are known of it, which come first.
pub(super) fn config_of_host(known: &[Algorithm]) -> client::Config {
    let mut preferred = preferred();
    let mut keys = preferred.key.to_vec();
    keys.sort_by_key(|kind| !known.iter().any(|known| is_same_kind(kind, known)));
    preferred.key = keys.into();
    config(preferred)
}

/// RSA keys are one kind, whatever hash signs with them.
pub(super) fn is_same_kind(one: &Algorithm, other: &Algorithm) -> bool {
    match (one, other) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (one, other) => one == other,
    }
}

fn preferred() -> russh::Preferred {
    let mut preferred = russh::Preferred::DEFAULT;
    let mut cipher = preferred.cipher.to_vec();
    cipher.retain(|name| *name != russh::cipher::AES_128_GCM);
    cipher.insert(0, russh::cipher::AES_128_GCM);
    preferred.cipher = cipher.into();
    preferred
}

fn config(preferred: russh::Preferred) -> client::Config {
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

pub(super) fn taken(slot: &Mutex<Option<String>>) -> Option<String> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What russh asks of us. Every channel that is not expected is refused.
pub(super) struct Handler {
    pub(super) trusted: watch::Receiver<Option<Trust>>,
    pub(super) offered: mpsc::Sender<Inbound>,
    pub(super) fault: Arc<Mutex<Option<String>>>,
    pub(super) refusal: Arc<Mutex<Option<String>>>,
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
        let trust = match self.trusted.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(trust)) => trust.clone(),
            _ => return Ok(false),
        };
        let fault = match trust {
            Trust::Agent(agent) => agent.check(shown, now).err(),
            Trust::Known(hosts) => hosts.check(shown).await.err(),
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
