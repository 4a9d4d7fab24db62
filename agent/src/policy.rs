//! Decisions: the only place where a grant is made.

use std::net::IpAddr;
use std::sync::Arc;

use postern_proto::names::{Assurance, LoginUser};
use time::OffsetDateTime;

use crate::identity::VerifiedPrincipal;
use crate::inventory::Target;

/// What a principal wants to do. Names are the policy schema's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// SSH to a target as a user.
    Connect,
    /// A TCP stream to a port.
    Tunnel,
    /// A listener on the target.
    Reverse,
    /// Lending the client's SSH agent.
    ForwardAgent,
    /// Listing the audit log.
    AuditList,
    /// Playing a recording.
    AuditPlay,
    /// Listing live sessions.
    SessionList,
    /// Watching a live session.
    SessionWatch,
    /// Ending a live session.
    SessionKill,
}

/// One question to policy. All that a decision may depend on is here.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who.
    pub who: VerifiedPrincipal,
    /// What.
    pub action: Action,
    /// On what; `None` for actions on the log itself.
    pub target: Option<Arc<Target>>,
    /// Where the client comes from.
    pub source: IpAddr,
    /// The login user, for `connect` and what happens inside an SSH session.
    pub user: Option<LoginUser>,
    /// The port, for tunnels and listeners.
    pub port: Option<u16>,
    /// The host behind the target, for tunnels.
    pub host: Option<String>,
    /// Assurance for this request: `AwsMfaFresh` once a step-up approval was used.
    pub assurance: Assurance,
    /// MFA is not older than this (seconds since 1970); `now` with a step-up.
    pub mfa_not_before: i64,
    /// The agent's clock.
    pub now: OffsetDateTime,
}

/// The answer.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Yes.
    Allow(Grant),
    /// Yes, once a fresh code is given for this very request.
    StepUp {
        /// The policies that would allow it then.
        policies: Vec<String>,
    },
    /// No.
    Deny(Denial),
}

/// The agent's decision to let one principal do one thing on one target, with its reason. Only
/// this module builds it.
#[derive(Debug, Clone)]
pub struct Grant {
    pub(crate) request: Request,
    pub(crate) policies: Vec<String>,
}

impl Grant {
    /// What was asked and allowed.
    pub fn request(&self) -> &Request {
        &self.request
    }
    /// Ids of the policies that allowed it.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// The same question at a later time, for sessions that are looked at again: assurance and
    /// the age of MFA stay what they were at the grant, all else is read anew.
    pub fn again(
        &self,
        now: OffsetDateTime,
        source: IpAddr,
        target: Option<Arc<Target>>,
    ) -> Request {
        let passed = (now - self.request.now).whole_seconds();
        Request {
            now,
            source,
            target,
            mfa_not_before: self.request.mfa_not_before.saturating_add(passed),
            ..self.request.clone()
        }
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Ids of the policies that forbade it or failed to evaluate; empty for a default deny.
    pub policies: Vec<String>,
    /// One sentence for the person.
    pub message: String,
    /// What would be needed, where that can be told.
    pub hint: Option<String>,
}
