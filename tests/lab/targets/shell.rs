//! A small SSH host of our own, for machines without sshd: a real shell on a real terminal,
//! commands with separate stderr and exit status. It trusts the agent's SSH user CA and keys
//! pushed with EC2 Instance Connect, and nobody else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet, Pty};
use tokio::task::{JoinHandle, JoinSet};

use super::command;
use super::pushed::PushedKeys;
use crate::network::PrivateListener;

/// A running host.
pub struct Shell {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What answers in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// A shell or a command, each a process.
    Processes,
    /// The host itself: it echoes what is typed, until the end. Thousands fit into one process.
    Echo,
}

/// Starts it. `user_ca` is an OpenSSH public key line.
pub fn start(
    listener: PrivateListener,
    user_ca: &str,
    pushed: PushedKeys,
    answers: Answers,
) -> Result<Shell> {
    let address = listener.address()?;
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)?;
    let config = Arc::new(Config {
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::ZERO,
        keys: vec![key],
        ..Config::default()
    });
    let user_ca = PublicKey::from_openssh(user_ca).context("the SSH user CA's key")?;
    let trust = Arc::new(Trust {
        user_ca,
        pushed,
        bastion: listener.bastion(),
    });
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok(stream) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let host = Host {
                trust: Arc::clone(&trust),
                answers,
                channels: JoinSet::new(),
            };
            let config = Arc::clone(&config);
            connections.spawn(async move {
                match russh::server::run_stream(config, stream, host).await {
                    Ok(running) => drop(running.await),
                    Err(error) => tracing::debug!("ssh host: {error}"),
                }
            });
        }
    });
    Ok(Shell { address, task })
}

/// Whom the host lets in.
struct Trust {
    user_ca: PublicKey,
    pushed: PushedKeys,
    bastion: Option<IpAddr>,
}

impl Trust {
    /// What OpenSSH checks: signed by the CA, a user certificate, valid now, names the user, and
    /// used from where it may be.
    fn accepts(&self, user: &str, certificate: &Certificate) -> bool {
        let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let fingerprint = self.user_ca.fingerprint(Default::default());
        certificate
            .validate_at(now.as_secs(), [&fingerprint])
            .is_ok()
            && certificate.cert_type() == CertType::User
            && certificate
                .valid_principals()
                .iter()
                .any(|name| name == user)
            && certificate.critical_options().iter().all(|(name, value)| {
                // Every connection here comes from the bastion (see PrivateListener).
                name == "source-address"
                    && value
                        .split(',')
                        .any(|from| from.trim_end_matches("/32").parse().ok() == self.bastion)
            })
    }

    fn was_pushed(&self, user: &str, key: &PublicKey) -> bool {
        self.pushed
            .of(user)
            .iter()
            .filter_map(|line| PublicKey::from_openssh(line).ok())
            .any(|known| known.key_data() == key.key_data())
    }
}

/// One connection.
struct Host {
    trust: Arc<Trust>,
    answers: Answers,
    channels: JoinSet<()>,
}

fn verdict(accepted: bool) -> Auth {
    if accepted {
        Auth::Accept
    } else {
        Auth::reject()
    }
}

impl Handler for Host {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(verdict(self.trust.was_pushed(user, key.public_key)))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        Ok(verdict(self.trust.accepts(user, certificate)))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        while self.channels.try_join_next().is_some() {}
        reply.accept().await;
        let answers = self.answers;
        self.channels.spawn(async move {
            let served = match answers {
                Answers::Processes => command::serve(channel).await,
                Answers::Echo => command::echo(channel).await,
            };
            if let Err(error) = served {
                tracing::debug!("ssh host: {error:#}");
            }
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}
