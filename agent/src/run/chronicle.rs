//! Which policies are in use, and that their files are broken, stands in the audit log.

use std::sync::Arc;

use anyhow::Context as _;
use postern_proto::audit::event::Fact;
use tokio::sync::watch;

use crate::evidence::agent_event;
use crate::identity::Record;
use crate::policy::{Policies, PolicyStore};

/// Bytes of policy ids, or of a reason, in one event: an event has a limit.
const TEXT: usize = 16 * 1024;

/// Writes what changes.
pub(super) struct Chronicle {
    policies: watch::Receiver<Arc<Policies>>,
    trouble: watch::Receiver<Option<Arc<str>>>,
    record: Record,
}

impl Chronicle {
    /// Writes which policies the agent starts with: no session is granted before that is durable.
    pub(super) async fn begin(policy: &PolicyStore, record: Record) -> anyhow::Result<Self> {
        let mut chronicle = Self {
            policies: policy.subscribe(),
            trouble: policy.trouble(),
            record,
        };
        chronicle
            .loaded()
            .await
            .map_err(anyhow::Error::msg)
            .context("the audit log cannot be written")?;
        if chronicle.trouble.borrow().is_some() {
            chronicle.trouble.mark_changed();
        }
        Ok(chronicle)
    }

    /// Writes changes for as long as it is polled. A store that fails is noticed elsewhere.
    pub(super) async fn run(mut self) {
        loop {
            let written = tokio::select! {
                biased;
                changed = self.policies.changed() => match changed {
                    Ok(()) => self.loaded().await,
                    Err(_) => return,
                },
                changed = self.trouble.changed() => match changed {
                    Ok(()) => self.troubled().await,
                    Err(_) => return,
                },
            };
            if let Err(error) = written {
                tracing::error!(%error, "a change of policies could not be logged");
            }
        }
    }

    async fn loaded(&mut self) -> Result<(), String> {
        let fact = {
            let policies = self.policies.borrow_and_update();
            let mut left = TEXT;
            Fact::PolicyLoaded {
                digest: policies.digest().to_owned(),
                policies: policies
                    .ids()
                    .take_while(|id| {
                        let fits = id.len() <= left;
                        left = left.saturating_sub(id.len());
                        fits
                    })
                    .map(str::to_owned)
                    .collect(),
            }
        };
        (self.record)(agent_event(fact)).await
    }

    async fn troubled(&mut self) -> Result<(), String> {
        let reason = self.trouble.borrow_and_update().clone();
        match reason {
            Some(reason) => {
                let reason = reason.chars().take(TEXT / 4).collect();
                (self.record)(agent_event(Fact::PolicyBroken { reason })).await
            }
            // Mended: the same policies as before make no change of their own.
            None => self.loaded().await,
        }
    }
}
