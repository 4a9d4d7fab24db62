//! Claims of clients.

use age::x25519::Identity;
use postern_proto::audit::event::{
    Access, Channel, Claim, Event, EventTarget, RecordingDigest, Source, SsmSession,
};
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::names::{AgentId, SessionId};
use postern_proto::recording::RecordingName;

use super::*;

/// A client's log.
struct Machine {
    log: AgentId,
    who: &'static str,
    auditor: Identity,
}

impl Machine {
    fn new(log: &str, who: &'static str) -> Self {
        Self {
            log: log.parse().unwrap(),
            who,
            auditor: Identity::generate(),
        }
    }

    fn leaf(&self, entry: u64, event: &Event) -> Vec<u8> {
        let place = Place {
            origin: &self.log,
            sequence: entry,
            version: "0",
            access: None,
            source: Source::Client,
        };
        let seal = |plain: &[u8]| {
            age::encrypt(&self.auditor.to_public(), plain).map_err(|error| error.to_string())
        };
        ocsf::encode(event, place, &mut |plain| seal(plain)).unwrap()
    }

    fn event(&self, session: SessionId, fact: Fact) -> Event {
        Event {
            time_ms: 1_700_000_000_000,
            session: Some(session),
            actor: Some(principal(self.who).actor()),
            source: None,
            target: Some(EventTarget {
                id: "i-0123".parse().unwrap(),
                name: "app-1".to_owned(),
                address: None,
            }),
            fact,
        }
    }

    async fn claim(
        &self,
        browser: &mut Browser,
        entry: u64,
        session: SessionId,
        fact: Fact,
    ) -> (StatusCode, Value) {
        let leaf = self.leaf(entry, &self.event(session, fact));
        self.send(browser, entry, &leaf).await
    }

    async fn send(&self, browser: &mut Browser, entry: u64, leaf: &[u8]) -> (StatusCode, Value) {
        let path = format!("/v1/claims?log={}&entry={entry}", self.log);
        let text = String::from_utf8_lossy(leaf);
        let (status, body) = browser.ask(Method::POST, &path, &text).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

fn session(number: u64) -> SessionId {
    SessionId::of_client(1_700_000_000_000, number.into())
}

fn opened() -> Fact {
    Fact::SessionClaimed {
        access: Access::Shell,
        ssm: SsmSession {
            id: "alice-1".to_owned(),
            document: "SSM-SessionManagerRunShell".to_owned(),
            region: "eu-west-1".to_owned(),
            reason: None,
            request_id: None,
        },
    }
}

fn ended(recordings: Vec<RecordingDigest>) -> Fact {
    Fact::SessionClosed {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(0),
        up: 1,
        down: 2,
        duration_ms: 3,
        recordings,
    }
}

fn claims(agent: &Agent) -> Vec<(Event, Claim)> {
    let claim = |event: Event| match event.fact.clone() {
        Fact::Claimed(claim) => Some((event, claim)),
        _ => None,
    };
    agent.events().into_iter().filter_map(claim).collect()
}

#[tokio::test]
async fn a_claim_is_wrapped_with_what_the_agent_saw() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let machine = Machine::new("client-1", "alice");
    let (status, body) = machine.claim(&mut alice, 3, session(1), opened()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["next"], 4);
    let line = Fact::ChannelOpened {
        channel: Channel::Command {
            line: "mysql -p canary".to_owned(),
            terminal: false,
        },
        policies: vec![],
        refused: None,
        recording: None,
    };
    let (status, _) = machine.claim(&mut alice, 4, session(1), line).await;
    assert_eq!(status, StatusCode::OK);

    let claims = claims(&agent);
    let (event, claim) = &claims[0];
    let actor = event.actor.as_ref().unwrap();
    // The certificate, address and time are the agent's, not the client's word.
    assert_eq!(actor.principal, *principal("alice").principal());
    assert!(event.source.as_ref().unwrap().starts_with("127."));
    assert!(event.time_ms > claim.time_ms);
    assert_eq!((claim.log.as_str(), claim.entry), ("client-1", 3));
    assert_eq!(*claim.fact, opened());
    assert_eq!(event.target.as_ref().unwrap().name, "app-1");
    assert!(claims[1].1.sealed.is_some());
    assert!(!format!("{claims:?}").contains("canary"));
    agent.stopped().await;
}

#[tokio::test]
async fn the_same_entry_is_taken_once() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let machine = Machine::new("client-1", "alice");
    for before in [false, true, true] {
        let (status, body) = machine.claim(&mut alice, 7, session(1), opened()).await;
        assert_eq!((status, &body["before"]), (StatusCode::OK, &before.into()));
    }
    // An older one than the last is not a new one either.
    let (_, body) = machine.claim(&mut alice, 6, session(2), opened()).await;
    assert_eq!(body["before"], true);
    assert_eq!(claims(&agent).len(), 1);
    // Another log of the same person counts on its own.
    let other = Machine::new("client-2", "alice");
    let (status, _) = other.claim(&mut alice, 6, session(3), opened()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(claims(&agent).len(), 2);
    agent.stopped().await;
}

#[tokio::test]
async fn nothing_can_be_claimed_of_a_session_of_the_agent_or_of_somebody_else() {
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let granted = client.granted().await.session;
    assert!(!granted.is_of_client());

    let mut alice = Browser::new(&agent, "alice").await;
    let mut bobby = Browser::new(&agent, "bobby").await;
    let machine = Machine::new("client-1", "alice");
    let (status, body) = machine.claim(&mut alice, 0, granted, ended(vec![])).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body["error"].as_str().unwrap().contains("the agent's own"));

    let (status, _) = machine.claim(&mut alice, 1, session(1), opened()).await;
    assert_eq!(status, StatusCode::OK);
    // Bobby in his own name about alice's session, and in hers about another one.
    let his = Machine::new("client-9", "bobby");
    for (entry, fact) in [(0, opened()), (1, ended(vec![]))] {
        let (status, _) = his.claim(&mut bobby, entry, session(1), fact).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    let (status, body) = machine.claim(&mut bobby, 2, session(2), opened()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body["error"].as_str().unwrap().contains("somebody else"));
    assert_eq!(claims(&agent).len(), 1);
    agent.stopped().await;
}

#[tokio::test]
async fn what_is_no_claim_is_refused() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let machine = Machine::new("client-1", "alice");
    let good = machine.leaf(0, &machine.event(session(1), opened()));
    let refused = |status: StatusCode| status.is_client_error();
    // Facts of the agent, claims of claims, recordings of others, a beginning that never was.
    let foreign = RecordingName {
        session: session(2),
        number: 0,
    };
    let digest = RecordingDigest {
        name: foreign.to_string(),
        length: 1,
        sha256: "00".repeat(32),
        complete: true,
    };
    let nested = Fact::Claimed(Claim {
        log: "client-1".parse().unwrap(),
        entry: 0,
        leaf_hash: String::new(),
        time_ms: 0,
        fact: Box::new(opened()),
        sealed: None,
    });
    for fact in [
        Fact::AgentStopped,
        nested,
        ended(vec![digest]),
        ended(vec![]),
    ] {
        let (status, body) = machine.claim(&mut alice, 0, session(1), fact).await;
        assert!(refused(status), "{body}");
    }
    // Another place than the entry states; not a client's; no entry; too long.
    let (status, _) = machine.send(&mut alice, 1, &good).await;
    assert!(refused(status));
    let agents = String::from_utf8(good.clone()).unwrap();
    let agents = agents.replace(r#""source":"client""#, r#""source":"agent""#);
    for leaf in [
        agents.into_bytes(),
        b"{}".to_vec(),
        vec![b'x'; 65_536],
        vec![b'x'; 70_000],
    ] {
        let (status, _) = machine.send(&mut alice, 0, &leaf).await;
        assert!(refused(status));
    }
    let (status, _) = alice.ask(Method::POST, "/v1/claims", "{}").await;
    assert!(refused(status));
    assert_eq!(claims(&agent).len(), 0);
    // After all of that the good one is still welcome, and a second end is not.
    for (entry, fact, good) in [
        (0, opened(), true),
        (1, ended(vec![]), true),
        (2, ended(vec![]), false),
    ] {
        let (status, body) = machine.claim(&mut alice, entry, session(1), fact).await;
        assert_eq!(status == StatusCode::OK, good, "{body}");
    }
    agent.stopped().await;
}

#[tokio::test]
async fn a_handed_over_recording_is_stored_when_it_is_what_was_claimed() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let mut bobby = Browser::new(&agent, "bobby").await;
    let machine = Machine::new("client-1", "alice");
    let content = "recorded ".repeat(100);
    let name = RecordingName {
        session: session(1),
        number: 0,
    };
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content.as_bytes());
    let digest = RecordingDigest {
        name: name.to_string(),
        length: content.len() as u64,
        sha256: hex::encode(hash),
        complete: true,
    };
    let path = format!("/v1/claims/recordings/{name}");
    // Nobody claimed it yet.
    let (status, _) = alice
        .ask(Method::POST, &format!("{path}?offset=0"), &content)
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    machine.claim(&mut alice, 0, session(1), opened()).await;
    machine
        .claim(&mut alice, 1, session(1), ended(vec![digest]))
        .await;
    let (status, _) = bobby.get(&path).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, body) = alice.get(&path).await;
    assert_eq!((status, &body["length"]), (StatusCode::OK, &0.into()));

    let ask = async |browser: &mut Browser, offset: usize, piece: &str| {
        let path = format!("{path}?offset={offset}");
        let (status, body) = browser.ask(Method::POST, &path, piece).await;
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    // Something else of the same length is thrown away whole; more than was claimed at once.
    let (status, _) = ask(&mut alice, 0, &"x".repeat(content.len())).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (status, _) = ask(&mut alice, 0, &format!("{content}more")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (_, body) = ask(&mut alice, 0, &content[..500]).await;
    assert_eq!(
        (&body["length"], &body["complete"]),
        (&500.into(), &false.into())
    );
    let (status, _) = ask(&mut alice, 400, &content[400..]).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (_, body) = ask(&mut alice, 500, &content[500..]).await;
    assert_eq!(body["complete"], true);
    let (_, body) = alice.get(&path).await;
    assert_eq!(body["complete"], true);
    let (status, bytes) = alice
        .ask(Method::GET, &format!("/v1/recordings/{name}"), "")
        .await;
    assert_eq!(
        (status, bytes.as_ref()),
        (StatusCode::OK, content.as_bytes())
    );
    agent.stopped().await;
}
