//! Failures before authentication: counted, and logged once a minute per source, so that knocking
//! does not fill the log.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Mutex;

use postern_proto::audit::event::{Event, Fact};

use crate::evidence::{Evidence, agent_event};

/// Sources that are told apart in one minute; the rest is summed up.
const SOURCES: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<HashMap<Option<IpAddr>, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    kinds: BTreeSet<&'static str>,
}

impl Strangers {
    /// Somebody at `source` failed to become anybody. `kind` is one of few fixed words.
    pub(crate) fn note(&self, source: IpAddr, kind: &'static str) {
        metrics::counter!("postern_unauthenticated_total", "kind" => kind).increment(1);
        let mut failures = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let source = Some(source.to_canonical());
        let key = if failures.len() < SOURCES || failures.contains_key(&source) {
            source
        } else {
            None
        };
        let entry = failures.entry(key).or_default();
        entry.count += 1;
        entry.kinds.insert(kind);
    }

    /// Writes one event per source since the last time. A store that fails is noticed elsewhere.
    pub(crate) async fn report(&self, evidence: &Evidence) {
        let failures = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        for (source, failures) in failures {
            let event = Event {
                source: Some(source.map_or_else(|| "others".to_owned(), |ip| ip.to_string())),
                ..agent_event(Fact::Unauthenticated {
                    count: failures.count,
                    kinds: failures
                        .kinds
                        .iter()
                        .map(|kind| (*kind).to_owned())
                        .collect(),
                })
            };
            if let Err(error) = evidence.append(event).await {
                tracing::error!(%error, "failed logins could not be logged");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_sources_takes_bounded_memory() {
        let strangers = Strangers::default();
        for n in 0..10_000u32 {
            strangers.note(std::net::Ipv4Addr::from(n).into(), "handshake");
        }
        let failures = strangers.0.lock().unwrap();
        assert_eq!(failures.len(), SOURCES + 1);
        assert_eq!(failures.values().map(|f| f.count).sum::<u64>(), 10_000);
    }
}
