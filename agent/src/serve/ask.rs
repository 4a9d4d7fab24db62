//! What an `Open` asks for, and whether policy allows it.

use std::sync::Arc;

use postern_proto::gateway::message::{OpenKind, open_hash};
use postern_proto::names::Assurance;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::attempt::Attempt;
use crate::inventory::Target;
use crate::policy::{Action, Decision, Grant, Request};
use crate::refusal::Refusal;
use crate::rules::NotFound;

impl Attempt<'_> {
    /// The target that it names.
    pub(super) fn find(&self) -> Result<Arc<Target>, Refusal> {
        let name = &self.open.target;
        (self.core.rules.lookup)(name).map_err(|fault| match fault {
            NotFound::Unknown { hint } => Refusal::UnknownTarget {
                name: name.clone(),
                hint,
            },
            NotFound::Ambiguous(candidates) => Refusal::Ambiguous {
                name: name.clone(),
                candidates,
            },
        })
    }

    /// SSH goes where it is recorded.
    pub(super) fn refuse_ssh_port(&self) -> Result<(), Refusal> {
        match &self.open.kind {
            OpenKind::Tunnel { port: 0, .. } => {
                Err(Refusal::Protocol("there is no port 0".to_owned()))
            }
            OpenKind::Tunnel { port, .. } if self.core.rules.carries_ssh(*port) => {
                Err(Refusal::SshPort(*port))
            }
            _ => Ok(()),
        }
    }

    /// Policy's answer, with the fresh code that was given for this `Open`.
    pub(super) fn decide(&mut self, target: &Arc<Target>) -> Result<Grant, Refusal> {
        let hash = open_hash(self.open);
        if let Some(session) = self.open.approved
            && self
                .core
                .step_ups
                .take(session, self.who.key_hash(), &hash, Instant::now())
            && let Some(fresh) = (self.core.doors.approval)(&self.who, &hash, session)
        {
            self.fresh = Some(fresh);
            self.id = session;
        }
        let (assurance, mfa_not_before) = match &self.fresh {
            Some(fresh) => (Assurance::AwsMfaFresh, fresh.given_at),
            None => (self.who.assurance(), self.who.mfa_not_before()),
        };
        let (action, user, port, host) = match &self.open.kind {
            OpenKind::Ssh { user } => (Action::Connect, Some(user.clone()), None, None),
            OpenKind::Tunnel { host, port } => {
                let host = host.as_ref().map(|host| host.as_str().to_owned());
                (Action::Tunnel, None, Some(*port), host)
            }
        };
        let request = Request {
            who: self.who.clone(),
            action,
            target: Some(Arc::clone(target)),
            source: self.peer.source.ip(),
            user,
            port,
            host,
            assurance,
            mfa_not_before,
            now: OffsetDateTime::now_utc(),
        };
        match (self.core.rules.decide)(&request) {
            Decision::Allow(grant) => Ok(grant),
            Decision::StepUp { policies } => Err(self.step_up(policies)),
            Decision::Deny(denial) => Err(denial.into()),
        }
    }

    /// The denial that asks for a fresh code, and waits for it.
    pub(super) fn step_up(&self, policies: Vec<String>) -> Refusal {
        let hash = open_hash(self.open);
        self.core
            .step_ups
            .wait(self.id, *self.who.key_hash(), hash, Instant::now());
        Refusal::StepUp {
            policies,
            open_hash: hex::encode(hash),
        }
    }
}
