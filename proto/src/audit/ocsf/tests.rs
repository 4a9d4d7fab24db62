use proptest::prelude::*;

use super::*;
use crate::audit::event::{
    Actor, Claim, EventTarget, FileOperation, RecordingDigest, Source, SsmSession,
};
use crate::gateway::message::{CloseReason, DenyCode};
use crate::names::{Assurance, Principal, SessionId};

const CANARY: &str = "hunter2-canary";

fn event(fact: Fact) -> Event {
    Event {
        time_ms: 1_700_000_000_123,
        session: Some(SessionId::from_parts(1_700_000_000_000, 7)),
        actor: Some(Actor {
            principal: Principal {
                account: "111122223333".parse().unwrap(),
                user_id: "AIDAAAAAAAAAAAAAAAAA".parse().unwrap(),
                arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
            },
            assurance: Assurance::AwsMfa,
            mfa_not_before: 1_699_999_000,
            certificate: "ab12".to_owned(),
            aws_request_ids: vec!["r1".to_owned(), "r2".to_owned()],
        }),
        source: Some("192.0.2.7:50000".to_owned()),
        target: Some(EventTarget {
            id: "i-0123".parse().unwrap(),
            name: "web-1".to_owned(),
            address: Some("10.0.0.5:22".to_owned()),
        }),
        fact,
    }
}

fn command(line: &str) -> Event {
    event(Fact::ChannelOpened {
        channel: Channel::Command {
            line: line.to_owned(),
            terminal: false,
        },
        policies: vec!["p1".to_owned()],
        refused: None,
        recording: None,
    })
}

fn leaf(event: &Event, access: Option<&Access>, identity: &Identity) -> Vec<u8> {
    let origin = "bastion-1".parse().unwrap();
    let place = Place {
        origin: &origin,
        sequence: 41,
        version: "0.1.0",
        access,
        source: Source::Agent,
    };
    encode(event, place, &mut |plain| {
        age::encrypt(&identity.to_public(), plain).map_err(|error| error.to_string())
    })
    .unwrap()
}

#[test]
fn a_leaf_reads_back_as_its_event() {
    let identity = Identity::generate();
    let facts = [
        Fact::AgentStopped,
        Fact::SessionClosed {
            reason: CloseReason::Done,
            message: None,
            exit_status: Some(7),
            up: 1,
            down: 2,
            duration_ms: 3,
            recordings: vec![RecordingDigest {
                name: "x-0".to_owned(),
                length: 9,
                sha256: "00".repeat(32),
                complete: true,
            }],
        },
        Fact::SessionDenied {
            access: Access::Tunnel {
                host: None,
                port: 5432,
            },
            code: DenyCode::Policy,
            policies: vec![],
            reason: "no".to_owned(),
        },
    ];
    for fact in facts {
        let event = event(fact);
        let decoded = decode(&leaf(&event, None, &identity), &[]).unwrap();
        assert_eq!(decoded.event, event);
        assert_eq!((decoded.sequence, decoded.seal), (41, Seal::None));
        assert_eq!(decoded.origin, "bastion-1");
    }
}

#[test]
fn sealed_texts_stand_nowhere_in_the_clear_and_open_for_the_auditor_alone() {
    let identity = Identity::generate();
    let operation = event(Fact::FileOperation(FileOperation {
        operation: "rename".to_owned(),
        path: format!("/home/{CANARY}"),
        to: Some(format!("/tmp/{CANARY}")),
        size: 5,
        sha256: None,
        error: Some(format!("no such file {CANARY}")),
    }));
    for event in [command(&format!("mysql -p{CANARY}")), operation] {
        let leaf = leaf(&event, None, &identity);
        let text = String::from_utf8(leaf.clone()).unwrap();
        assert!(!text.contains(CANARY), "{text}");

        let closed = decode(&leaf, &[Identity::generate()]).unwrap();
        assert_eq!(closed.seal, Seal::Closed);
        assert!(!format!("{closed:?}").contains(CANARY));
        let opened = decode(&leaf, std::slice::from_ref(&identity)).unwrap();
        assert_eq!((opened.seal, opened.event), (Seal::Opened, event));
    }
}

#[test]
fn the_class_is_that_of_what_the_session_carries() {
    let identity = Identity::generate();
    let closed = event(Fact::SessionClosed {
        reason: CloseReason::Done,
        message: None,
        exit_status: None,
        up: 0,
        down: 0,
        duration_ms: 0,
        recordings: vec![],
    });
    let tunnel = |port| Access::Tunnel { host: None, port };
    for (access, class, type_uid) in [
        (None, 4007, 400_702),
        (Some(tunnel(5432)), 4014, 401_402),
        (Some(tunnel(3389)), 4005, 400_507),
    ] {
        let leaf = leaf(&closed, access.as_ref(), &identity);
        let value: Value = serde_json::from_slice(&leaf).unwrap();
        assert_eq!(value["class_uid"], class);
        assert_eq!(value["type_uid"], type_uid);
        assert_eq!(value["category_uid"], 4);
        assert_eq!(value["metadata"]["sequence"], 41);
        assert_eq!(value["metadata"]["uid"], "bastion-1/41");
        assert_eq!(value["actor"]["user"]["uid"], "AIDAAAAAAAAAAAAAAAAA");
        assert_eq!(value["session"]["is_mfa"], true);
        assert_eq!(value["src_endpoint"]["port"], 50000);
        assert_eq!(value["dst_endpoint"]["ip"], "10.0.0.5");
    }
}

#[test]
fn the_longest_event_still_fits_and_says_that_it_was_cut() {
    let identity = Identity::generate();
    let long = "\u{1b}[31m".repeat(4_000);
    let mut denied = event(Fact::SessionDenied {
        access: Access::Tunnel {
            host: None,
            port: 1,
        },
        code: DenyCode::Policy,
        policies: vec![long.clone(); 300],
        reason: long.clone(),
    });
    denied.source = Some(long.clone());
    for event in [command(&long.repeat(20)), denied] {
        let leaf = leaf(&event, None, &identity);
        assert!(leaf.len() <= ENTRY_LIMIT, "{}", leaf.len());
        let decoded = decode(&leaf, std::slice::from_ref(&identity)).unwrap();
        assert!(decoded.truncated);
        assert_ne!(decoded.event, event);
    }
}

#[test]
fn an_event_that_cannot_be_sealed_becomes_no_leaf() {
    let origin = "bastion-1".parse().unwrap();
    let place = Place {
        origin: &origin,
        sequence: 0,
        version: "0",
        access: None,
        source: Source::Agent,
    };
    let result = encode(&command("id"), place, &mut |_| {
        Err("no randomness".to_owned())
    });
    assert_eq!(result, Err(EncodeError::Seal("no randomness".to_owned())));
}

proptest! {
    #[test]
    fn a_hostile_leaf_never_panics(leaf in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&leaf, &[]).is_err());
    }

    #[test]
    fn an_altered_leaf_reads_as_something_else_or_not_at_all(at in 0..2000usize, bit in 0..8u8) {
        let identity = Identity::generate();
        let mut leaf = leaf(&command("id"), None, &identity);
        let at = at % leaf.len();
        leaf[at] ^= 1 << bit;
        let _ = decode(&leaf, &[identity]);
    }
}

#[test]
fn a_claim_keeps_the_client_s_sealed_texts_and_says_whose_word_it_is() {
    let auditor = Identity::generate();
    let theirs = leaf(&command(CANARY), None, &auditor);
    let inside = decode(&theirs, &[]).unwrap().event;
    let claim = event(Fact::Claimed(Claim {
        log: "client-1".parse().unwrap(),
        entry: 41,
        leaf_hash: "00".repeat(32),
        time_ms: 1,
        fact: Box::new(inside.fact),
        sealed: sealed_of(&theirs),
    }));
    let wrapped = leaf(&claim, None, &Identity::generate());
    assert!(!String::from_utf8_lossy(&wrapped).contains(CANARY));
    let object: Value = serde_json::from_slice(&wrapped).unwrap();
    assert_eq!(object["unmapped"]["source"], "client");
    assert_eq!(object["class_uid"], 4007);
    let closed = decode(&wrapped, &[]).unwrap();
    assert_eq!((closed.seal, closed.source), (Seal::Closed, Source::Client));
    let opened = decode(&wrapped, &[auditor]).unwrap();
    assert_eq!(opened.seal, Seal::Opened);
    let Fact::Claimed(claim) = opened.event.fact else {
        panic!("no claim");
    };
    assert_eq!(*claim.fact, command(CANARY).fact);
}

#[test]
fn claimed_sessions_are_of_the_classes_that_the_agent_s_are() {
    let ssm = SsmSession {
        id: "alice-1".to_owned(),
        document: "AWS-StartPortForwardingSession".to_owned(),
        region: "eu-west-1".to_owned(),
        reason: None,
        request_id: None,
    };
    let class = |port: Option<u16>| {
        let access = match port {
            Some(port) => Access::Tunnel { host: None, port },
            None => Access::Shell,
        };
        let claimed = event(Fact::SessionClaimed {
            access: access.clone(),
            ssm: ssm.clone(),
        });
        let leaf = leaf(&claimed, Some(&access), &Identity::generate());
        let object: Value = serde_json::from_slice(&leaf).unwrap();
        assert_eq!(object["observables"][0]["value"], "alice-1");
        (object["class_uid"].as_u64(), object["activity_id"].as_u64())
    };
    assert_eq!(class(None), (Some(4007), Some(1)));
    assert_eq!(class(Some(5432)), (Some(4014), Some(1)));
    assert_eq!(class(Some(3389)), (Some(4005), Some(1)));
}
