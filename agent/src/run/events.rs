//! What happens to the rules is evidence: which policies decide, and files that cannot be used.

use std::sync::Arc;

use postern_proto::audit::event::Fact;
use tokio::sync::watch;

use crate::evidence::agent_event;
use crate::identity::Record;
use crate::policy::PolicyStore;
use crate::tls::PeerTrust;

/// Ids in one event: it must fit into a leaf. The digest stands for all of them.
const IDS: usize = 256;

/// Writes which policies are in use, now and after every change, and that files are broken.
pub(super) async fn policies(policy: Arc<PolicyStore>, record: Record) {
    let (mut current, mut trouble) = (policy.subscribe(), policy.trouble());
    current.mark_changed();
    loop {
        let fact = tokio::select! {
            changed = current.changed() => {
                if changed.is_err() {
                    return;
                }
                let policies = current.borrow_and_update().clone();
                Fact::PolicyLoaded {
                    digest: policies.digest().to_owned(),
                    policies: policies.ids().take(IDS).map(str::to_owned).collect(),
                }
            }
            reason = broken(&mut trouble) => match reason {
                Some(reason) => Fact::PolicyBroken { reason },
                None => return,
            },
        };
        write(&record, fact).await;
    }
}

/// Writes that the deny list or a trusted agent's file is broken.
pub(super) async fn trust(trust: Arc<PeerTrust>, record: Record) {
    let mut trouble = trust.trouble();
    while let Some(reason) = broken(&mut trouble).await {
        write(&record, Fact::PolicyBroken { reason }).await;
    }
}

/// The next reason why files are broken; `None` when nobody tells any more.
async fn broken(trouble: &mut watch::Receiver<Option<Arc<str>>>) -> Option<String> {
    loop {
        trouble.changed().await.ok()?;
        if let Some(why) = &*trouble.borrow_and_update() {
            return Some(why.to_string());
        }
    }
}

/// A store that fails is noticed elsewhere, and ends everything.
async fn write(record: &Record, fact: Fact) {
    if let Err(error) = record(agent_event(fact)).await {
        tracing::error!(%error, "a change of the rules could not be logged");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;

    fn record() -> (Record, mpsc::UnboundedReceiver<Fact>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let record: Record = Arc::new(move |event| {
            sender.send(event.fact).unwrap();
            async { Ok(()) }.boxed()
        });
        (record, receiver)
    }

    #[tokio::test]
    async fn the_policies_in_use_and_broken_files_are_events() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.cedar");
        std::fs::write(&file, "@id(\"one\") permit (principal, action, resource);").unwrap();
        let store = PolicyStore::open(folder.path()).unwrap();
        let (record, mut facts) = record();
        let task = tokio::spawn(policies(Arc::clone(&store), record));
        let first = facts.recv().await.unwrap();
        assert!(matches!(&first, Fact::PolicyLoaded { policies, .. } if policies == &["one"]));

        std::fs::write(&file, "permit (").unwrap();
        store.reload().unwrap_err();
        let second = facts.recv().await.unwrap();
        assert!(
            matches!(&second, Fact::PolicyBroken { reason } if reason.contains("a.cedar")),
            "{second:?}"
        );

        std::fs::write(&file, "@id(\"two\") permit (principal, action, resource);").unwrap();
        assert!(store.reload().unwrap());
        let third = facts.recv().await.unwrap();
        assert!(matches!(&third, Fact::PolicyLoaded { policies, .. } if policies == &["two"]));
        task.abort();
    }
}
