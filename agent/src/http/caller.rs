//! Who asks: checked for each request, never remembered.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use postern_proto::audit::event::{Event, Fact};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Api;
use super::error::ApiError;
use crate::evidence::agent_event;
use crate::identity::VerifiedPrincipal;
use crate::policy::{Action, Decision, Request};
use crate::session::Peer;

/// A caller whose certificate is good now.
pub(super) struct Caller {
    pub(super) who: VerifiedPrincipal,
    pub(super) source: SocketAddr,
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let peer = parts
            .extensions
            .get::<Arc<Peer>>()
            .ok_or_else(|| ApiError::internal(&"a request without a peer"))?;
        match (api.core.rules.verify)(&peer.certificate) {
            Ok(who) => {
                (api.core.rules.admit)(&who, peer.source.ip())
                    .map_err(|denial| ApiError::denied(denial.message, denial.hint))?;
                Ok(Self {
                    who,
                    source: peer.source,
                })
            }
            Err(fault) => {
                api.core.strangers.note(peer.source.ip(), "certificate");
                Err(ApiError::unverified(fault.message, fault.hint))
            }
        }
    }
}

impl Caller {
    /// A question to policy about this caller, without a target.
    pub(super) fn request(&self, action: Action) -> Request {
        Request {
            who: self.who.clone(),
            action,
            target: None,
            source: self.source.ip(),
            user: None,
            port: None,
            host: None,
            assurance: self.who.assurance(),
            mfa_not_before: self.who.mfa_not_before(),
            now: OffsetDateTime::now_utc(),
        }
    }

    /// Whether policy allows it; if not, why.
    pub(super) fn may(&self, api: &Api, action: Action) -> Result<(), ApiError> {
        match (api.core.rules.decide)(&self.request(action)) {
            Decision::Allow(_) => Ok(()),
            Decision::StepUp { .. } => Err(ApiError::denied(
                "policy wants a fresh MFA code for this, which HTTP cannot carry".to_owned(),
                None,
            )),
            Decision::Deny(denial) => Err(ApiError::denied(denial.message, denial.hint)),
        }
    }

    /// Writes what was read, or refused; returns once it is durable. Refusals have a rate.
    pub(super) async fn log_read(
        &self,
        api: &Api,
        what: &str,
        subject: &str,
        allowed: bool,
    ) -> Result<(), ApiError> {
        let key = self.who.principal().key();
        if !allowed && !api.core.limits.may_log_denial(&key, Instant::now()) {
            return Ok(());
        }
        let fact = Fact::AuditRead {
            what: what.to_owned(),
            subject: subject.to_owned(),
            allowed,
        };
        api.core.evidence.append(self.event(fact)).await?;
        Ok(())
    }

    /// An event that this caller causes now.
    pub(super) fn event(&self, fact: Fact) -> Event {
        Event {
            actor: Some(self.who.actor()),
            source: Some(self.source.to_string()),
            ..agent_event(fact)
        }
    }
}
