//! Where certificates and fresh codes come from.

use futures_util::future::BoxFuture;
use postern_proto::gateway::message::Denied;

use crate::config::AgentProfile;
use crate::context::Context;
use crate::identity::{self, ClientCertificate, IdentityError};

/// Where certificates and fresh codes come from.
pub trait Identity: Send + Sync {
    /// A certificate for the agent; a new one when the kept one was `refused`.
    fn certified<'a>(
        &'a self,
        agent: &'a AgentProfile,
        refused: Option<&'a ClientCertificate>,
    ) -> BoxFuture<'a, Result<ClientCertificate, IdentityError>>;

    /// Has the agent approve the one `Open` that was denied for want of a fresh code.
    fn step_up<'a>(
        &'a self,
        agent: &'a AgentProfile,
        certificate: &'a ClientCertificate,
        denied: &'a Denied,
    ) -> BoxFuture<'a, Result<(), IdentityError>>;
}

/// The identity of `postern login`.
impl Identity for Context {
    fn certified<'a>(
        &'a self,
        agent: &'a AgentProfile,
        refused: Option<&'a ClientCertificate>,
    ) -> BoxFuture<'a, Result<ClientCertificate, IdentityError>> {
        match refused {
            None => Box::pin(identity::certified(self, agent)),
            Some(_) => Box::pin(identity::certified_anew(self, agent)),
        }
    }

    fn step_up<'a>(
        &'a self,
        agent: &'a AgentProfile,
        certificate: &'a ClientCertificate,
        denied: &'a Denied,
    ) -> BoxFuture<'a, Result<(), IdentityError>> {
        Box::pin(async move {
            identity::step_up(self, agent, certificate, denied)
                .await
                .map(drop)
        })
    }
}
