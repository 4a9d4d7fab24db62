//! What clients claim.

use super::*;
use crate::audit::event::{Actor, Claim, SsmSession};
use crate::names::{Assurance, Principal};

fn actor(user: &str) -> Actor {
    Actor {
        principal: Principal {
            account: "111122223333".parse().unwrap(),
            user_id: user.parse().unwrap(),
            arn: "arn:aws:iam::111122223333:user/x".to_owned(),
        },
        assurance: Assurance::AwsMfa,
        mfa_not_before: 0,
        certificate: "00".to_owned(),
        aws_request_ids: vec![],
    }
}

/// A claim by alice, as the agent wraps it.
fn claim(session: SessionId, entry: u64, fact: Fact) -> Event {
    let claim = Claim {
        log: "client-1".parse().unwrap(),
        entry,
        leaf_hash: "00".repeat(32),
        time_ms: 1,
        fact: Box::new(fact),
        sealed: None,
    };
    Event {
        actor: Some(actor("AIDAAAAAAAAAAAAAAAAA")),
        ..event(Some(session), Fact::Claimed(claim))
    }
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

fn of_client(number: u64) -> RecordingName {
    RecordingName {
        session: SessionId::of_client(number, 1),
        number: 0,
    }
}

#[test]
fn claims_of_clients_are_counted_apart() {
    let mut lab = Lab::with_sessions(2);
    for number in 1..=3 {
        let session = of_client(number).session;
        lab.events.push(claim(session, number, opened()));
    }
    // One ended with its recording handed over, one without, one has no end at all.
    let bytes = lab.record(of_client(1), true);
    let last = digest(of_client(1), &bytes, true);
    let ended = |recording| closed(0, vec![recording]).fact;
    lab.events.push(claim(of_client(1).session, 4, ended(last)));
    let elsewhere = digest(of_client(2), b"not here", true);
    lab.events
        .push(claim(of_client(2).session, 5, ended(elsewhere)));
    lab.events.push(started());
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!((report.sessions.len(), report.recordings), (2, 3));
    let states: Vec<_> = report.claims.sessions.iter().map(|one| one.state).collect();
    assert_eq!(
        states,
        [
            SessionState::Closed,
            SessionState::Closed,
            SessionState::Open
        ]
    );
    assert_eq!((report.claims.entries, report.claims.elsewhere), (5, 1));
    // What was handed over is held to what was claimed of it.
    let path = StorePath::Recording(of_client(1));
    let bytes = lab.store.files.get_mut(&path).unwrap();
    bytes.pop();
    assert!(matches!(lab.faults()[..], [Fault::RecordingCut { .. }]));
}

#[test]
fn a_claim_about_a_session_of_the_agent_or_of_another_is_named() {
    let mut lab = Lab::with_sessions(1);
    let forged = digest(name(1), b"forged", true);
    let ended = closed(0, vec![forged]).fact;
    lab.events.push(claim(session(1), 1, ended.clone()));
    // Hidden in a session of one's own.
    lab.events.push(claim(of_client(1).session, 2, opened()));
    lab.events.push(claim(of_client(1).session, 3, ended));
    let entry = lab.events.len() as u64;
    lab.events.push(Event {
        actor: Some(actor("AIDABBBBBBBBBBBBBBBB")),
        ..claim(of_client(1).session, 1, opened())
    });
    lab.write();
    let (own, other) = (session(1), of_client(1).session);
    assert_eq!(
        lab.faults(),
        [
            Fault::ClaimOfOwn {
                session: own,
                entry: entry - 3
            },
            Fault::ClaimOfAnother {
                session: other,
                entry
            },
        ]
    );
}

#[test]
fn a_client_s_own_log_holds_claims_alone() {
    let mut lab = Lab::new();
    lab.events.clear();
    let recording = lab.record(of_client(1), true);
    let session = Some(of_client(1).session);
    lab.events.push(event(session, opened()));
    let last = digest(of_client(1), &recording, true);
    lab.events.push(event(session, closed(0, vec![last]).fact));
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!(
        (report.sessions.len(), report.claims.sessions.len()),
        (0, 1)
    );
    // Its recordings lie here: one that is gone is missing.
    lab.store.files.remove(&StorePath::Recording(of_client(1)));
    assert!(matches!(lab.faults()[..], [Fault::RecordingMissing { .. }]));
}
