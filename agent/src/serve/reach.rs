//! The way to a target: dialled, and for `ssh` logged in to.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_proto::gateway::message::{HostKeySeen, OpenKind};
use postern_proto::names::HostName;
use tokio::net::TcpStream;

use super::attempt::Attempt;
use crate::ca::ssh::SshExtension;
use crate::doors::{Login, SshTarget};
use crate::inventory::Target;
use crate::policy::{Action, Request};
use crate::refusal::Refusal;

/// What a granted pipe is connected to.
pub(super) enum Far {
    Tunnel(TcpStream),
    Ssh(SshTarget),
}

impl Far {
    pub(super) fn host_key(&self) -> Option<HostKeySeen> {
        match self {
            Self::Tunnel(_) => None,
            Self::Ssh(target) => Some(target.host_key.clone()),
        }
    }
}

/// A target that was dialled and, for `ssh`, lets us in.
pub(super) struct Reached {
    pub(super) far: Far,
    /// The address that was checked and dialled.
    pub(super) address: SocketAddr,
}

impl Attempt<'_> {
    /// Dials, and for `ssh` logs in at the target over the connection, for what was `allowed`.
    pub(super) async fn reach(
        &self,
        target: &Arc<Target>,
        allowed: &Request,
    ) -> Result<Reached, Refusal> {
        let (host, port): (Option<HostName>, u16) = match &self.open.kind {
            OpenKind::Ssh { .. } => (None, target.ssh_port),
            OpenKind::Tunnel { host, port } => (host.clone(), *port),
        };
        let dialled = (self.core.doors.dial)(Arc::clone(target), host, port).await?;
        if let Err(error) = dialled.stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let far = match &self.open.kind {
            OpenKind::Tunnel { .. } => Far::Tunnel(dialled.stream),
            OpenKind::Ssh { user } => {
                let login = Login {
                    session: self.id,
                    who: self.who.clone(),
                    target: Arc::clone(target),
                    user: user.clone(),
                    extensions: self.extensions(allowed),
                    once: self.open.once,
                };
                Far::Ssh((self.core.doors.ssh)(dialled.stream, login).await?)
            }
        };
        Ok(Reached {
            far,
            address: dialled.address,
        })
    }

    /// What the target may be told to permit in a session that was `allowed`. Each channel is
    /// decided again when it opens; what policy would refuse on every port, the target refuses too.
    fn extensions(&self, allowed: &Request) -> Vec<SshExtension> {
        let possible = |action| {
            (self.core.rules.possible)(&Request {
                action,
                ..allowed.clone()
            })
        };
        let mut extensions = vec![SshExtension::Pty];
        if possible(Action::Tunnel) || possible(Action::Reverse) {
            extensions.push(SshExtension::PortForwarding);
        }
        if possible(Action::ForwardAgent) {
            extensions.push(SshExtension::AgentForwarding);
        }
        extensions
    }
}
