//! For tests: an agent in this process, and a client that can also misbehave.

mod agent;
mod certificates;
mod client;
mod doors;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::audit::event::{Access, Event, EventTarget};
use postern_proto::audit::layout::{StorePath, split_entries};
use postern_proto::audit::ocsf::decode;
use postern_proto::gateway::message::Witness;
use postern_proto::names::{AgentId, SessionId};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::evidence::{self, Evidence};
use crate::identity::VerifiedPrincipal;
use crate::identity::testing::Says;
use crate::inventory::{Target, TargetLogin};
use crate::policy::{Decision, Denial, Explanation, Grant, Request, Verdict};
use crate::rules::{NotFound, NotVerified, Rules};
use crate::session::{Beginning, Session};

pub(crate) use agent::{Agent, Knobs};
pub(crate) use client::{Client, framed, open};

/// How long a test waits for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

thread_local! {
    /// Gone with the test's thread.
    static FOLDERS: RefCell<Vec<tempfile::TempDir>> = const { RefCell::new(Vec::new()) };
}

/// A real store in a folder that goes with the test.
pub(crate) fn evidence() -> Evidence {
    let folder = tempfile::tempdir().unwrap();
    let agent: AgentId = "bastion-1".parse().unwrap();
    let (key, _) = crate::ca::log::generate(&agent).unwrap();
    let mut settings = evidence::Settings::new(
        folder.path().join("evidence"),
        agent,
        key.as_str().into(),
        vec![RECIPIENT.to_owned()],
    );
    // Tests are about what happens, not about how fast this disk is.
    settings.deadline = Duration::from_secs(30);
    settings.free_floor = 0;
    let (evidence, _) = Evidence::open(settings).unwrap();
    FOLDERS.with_borrow_mut(|folders| folders.push(folder));
    evidence
}

/// A session whose channels are all allowed, for tests of the relays.
pub(crate) fn session(evidence: Evidence, id: SessionId, grant: Grant) -> Arc<Session> {
    let target = grant
        .request()
        .target
        .clone()
        .unwrap_or_else(|| target("web-1"));
    let user = grant.request().user.clone();
    let changes = watch::Sender::new(0);
    Session::new(Beginning {
        id,
        actor: grant.request().who.actor(),
        access: match user {
            Some(user) => Access::Ssh { user },
            None => Access::Tunnel {
                host: None,
                port: 1,
            },
        },
        target: EventTarget {
            id: target.id.clone(),
            name: target.name.clone(),
            address: None,
        },
        source: (Ipv4Addr::LOCALHOST, 1).into(),
        ends_at: OffsetDateTime::now_utc() + Duration::from_secs(3600),
        evidence,
        rules: rules(
            Arc::new(|_| unreachable!("the session is granted")),
            Arc::new(allow),
            &changes,
        ),
        witness: Witness {
            checkpoint: String::new(),
            leaf: 0,
            leaf_hash: String::new(),
            proof: vec![],
            consistency: vec![],
        },
        secret: zeroize::Zeroizing::new([0; 32]),
        place: None,
        grant,
    })
}

type Verify =
    dyn Fn(&CertificateDer<'static>) -> Result<VerifiedPrincipal, NotVerified> + Send + Sync;

/// What the core asks, with an inventory of two targets.
fn rules(verify: Arc<Verify>, decide: Arc<Decider>, changes: &watch::Sender<u64>) -> Rules {
    Rules {
        verify,
        admit: Arc::new(|_, _| Ok(())),
        possible: {
            let decide = decide.clone();
            Arc::new(move |request| matches!(decide(request), Decision::Allow(_)))
        },
        decide,
        lookup: Arc::new(|name| match name.as_str() {
            "web-1" | "db-1" => Ok(target(name.as_str())),
            "web" => Err(NotFound::Ambiguous(vec!["web-1".into(), "web-2".into()])),
            _ => Err(NotFound::Unknown {
                hint: "postern ls".to_owned(),
            }),
        }),
        target: Arc::new(|id| Some(target(id.as_str()))),
        is_ssh_port: Arc::new(|port| port == 2222),
        list: Arc::new(|_| vec![target("web-1")]),
        inventory_trouble: Arc::new(|| None),
        explain: Arc::new(|request| Explanation {
            verdict: Verdict::Allow,
            action: request.action.to_string(),
            principal: request.who.principal().key(),
            target: None,
            policies: vec![],
            message: None,
            hint: None,
            permits: vec![],
            users: vec![],
            ports: vec![5432],
            digest: String::new(),
        }),
        login_users: Arc::new(|_| vec!["ubuntu".to_owned()]),
        changes: changes.subscribe(),
    }
}

/// All events of a store, as they stand in the log.
pub(crate) fn events(evidence: &Evidence) -> Vec<Event> {
    let checkpoint = evidence.checkpoint();
    let size: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    let store = evidence.reader();
    let mut events = Vec::new();
    for (index, width) in StorePath::bundles(size) {
        let mut bundle = Vec::new();
        let path = StorePath::Entries { index, width };
        let Some(mut file) = store.file(path).unwrap() else {
            // Grown meanwhile: the next look sees it.
            return events;
        };
        file.read_to_end(&mut bundle).unwrap();
        let (entries, _) = split_entries(&bundle);
        events.extend(
            entries
                .iter()
                .map(|entry| decode(entry, &[]).unwrap().event),
        );
    }
    events
}

const RECIPIENT: &str = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg";

type Decider = dyn Fn(&Request) -> Decision + Send + Sync;

pub(crate) fn allow(request: &Request) -> Decision {
    Decision::Allow(Grant {
        request: request.clone(),
        policies: vec!["test".to_owned()],
    })
}

pub(crate) fn deny(message: &str) -> Decision {
    Decision::Deny(Denial {
        policies: vec!["no".to_owned()],
        message: message.to_owned(),
        hint: None,
    })
}

pub(crate) fn principal(name: &str) -> VerifiedPrincipal {
    Says {
        name,
        user_id: &format!("AIDA{:A<16}", name.to_uppercase()),
        ..Says::default()
    }
    .verified()
}

pub(crate) fn target(name: &str) -> Arc<Target> {
    Arc::new(Target {
        id: name.parse().unwrap(),
        name: name.to_owned(),
        tags: BTreeMap::new(),
        account: None,
        region: None,
        vpc: None,
        zone: None,
        platform: "linux".to_owned(),
        address: "10.0.0.1".to_owned(),
        aliases: vec![],
        ssh_port: 22,
        login: TargetLogin::Certificate,
    })
}

/// Looks until something is there, for as long as a slow machine may need.
pub(crate) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, search)
        .await
        .expect("it happens in time")
}
