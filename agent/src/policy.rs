//! Decisions: the only place where a grant is made.
//!
//! ```text
//! files ─ load ─ Policies ─┬─ decide   Request -> Allow(Grant) | StepUp | Deny
//!           ^              ├─ admit    is this principal or certificate barred altogether
//!         store            ├─ explain  the same answer with its reasons, for `postern why`
//!                          └─ possible whether a channel of this kind could ever open
//! ```
//!
//! Default deny, in Cedar. Cedar alone would skip a policy that fails to evaluate; here it denies
//! everything, by name. [`Policies`] is pure: no clock, no files, no network after `load`.

mod condition;
mod decide;
mod explain;
mod load;
mod possible;
mod question;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use postern_proto::names::{Assurance, LoginUser};
use time::OffsetDateTime;

pub use self::explain::{ConditionState, Explanation, PermitState, Verdict};
pub use self::load::{Policies, PolicyError, Problem, SCHEMA_TEXT};
pub use self::store::PolicyStore;

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

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Tunnel,
        Self::Reverse,
        Self::ForwardAgent,
        Self::AuditList,
        Self::AuditPlay,
        Self::SessionList,
        Self::SessionWatch,
        Self::SessionKill,
    ];

    /// The name in the policy schema and in commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tunnel => "tunnel",
            Self::Reverse => "reverse",
            Self::ForwardAgent => "forward_agent",
            Self::AuditList => "audit_list",
            Self::AuditPlay => "audit_play",
            Self::SessionList => "session_list",
            Self::SessionWatch => "session_watch",
            Self::SessionKill => "session_kill",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no action; actions are connect, tunnel, reverse, forward_agent, audit_list, audit_play, session_list, session_watch and session_kill", .0.escape_debug())]
pub struct UnknownAction(String);

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Self, UnknownAction> {
        Self::ALL
            .into_iter()
            .find(|action| action.as_str() == text)
            .ok_or_else(|| UnknownAction(text.chars().take(64).collect()))
    }
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
    /// The host behind the target, for tunnels; `None` for the target itself, also when the client
    /// of an SSH session calls it `localhost`. For listeners: the address to listen on.
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
#[expect(
    clippy::large_enum_variant,
    reason = "one per decision, and moved once: a box would only make callers unpack it"
)]
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
