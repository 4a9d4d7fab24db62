//! What the core asks and memory answers.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::identity::PeerTrust;
use crate::inventory::{Inventory, LookupError};
use crate::policy::{Denial, PolicyStore, Request};
use crate::rules::{NotFound, NotVerified, Rules};

pub(super) fn rules(
    trust: Arc<PeerTrust>,
    policy: Arc<PolicyStore>,
    inventory: Arc<Inventory>,
    changes: watch::Receiver<u64>,
) -> Rules {
    let stale = inventory.trouble();
    let denying = Arc::clone(&trust);
    Rules {
        verify: Arc::new(move |certificate: &CertificateDer<'static>| {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            trust
                .verify_certificate(certificate, now)
                .map_err(|fault| NotVerified {
                    message: fault.to_string(),
                    hint: fault.hint().to_owned(),
                })
        }),
        admit: {
            let policy = Arc::clone(&policy);
            Arc::new(move |who, source| {
                // Policy's own bars come below, with the source that they may speak of.
                if let Some(message) = denying.listed(who.principal(), who.serial()) {
                    return Err(Denial {
                        policies: Vec::new(),
                        message,
                        hint: Some("ask the operators of this agent".to_owned()),
                    });
                }
                let now = OffsetDateTime::now_utc();
                policy
                    .current()
                    .admit(who.principal(), Some(who.serial()), source, now)
            })
        },
        decide: {
            let policy = Arc::clone(&policy);
            Arc::new(move |request: &Request| policy.current().decide(request))
        },
        possible: {
            let policy = Arc::clone(&policy);
            Arc::new(move |request: &Request| policy.current().possible(request))
        },
        lookup: {
            let inventory = Arc::clone(&inventory);
            Arc::new(move |name| {
                inventory.lookup(name).map_err(|error| match &error {
                    LookupError::Ambiguous { .. } => NotFound::Ambiguous(error.candidates()),
                    _ => NotFound::Unknown { hint: error.hint() },
                })
            })
        },
        target: {
            let inventory = Arc::clone(&inventory);
            Arc::new(move |id| inventory.get(id))
        },
        is_ssh_port: {
            let inventory = Arc::clone(&inventory);
            Arc::new(move |port| inventory.snapshot().is_ssh_port(port))
        },
        list: Arc::new(move |filters: &[String]| inventory.list(filters)),
        inventory_trouble: Arc::new(move || stale.borrow().clone()),
        explain: {
            let policy = Arc::clone(&policy);
            Arc::new(move |request: &Request| policy.current().explain(request))
        },
        login_users: Arc::new(move |request: &Request| policy.current().login_users(request)),
        changes,
    }
}
