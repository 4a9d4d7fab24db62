//! Claims over a restart, and their quota.

use postern_proto::audit::event::{Actor, Claim, SsmSession};
use postern_proto::names::{Assurance, Principal};

use super::super::claims::{Claims, QUOTA};
use super::*;

fn claimed(entry: u64, session: SessionId, fact: Fact) -> Event {
    let claim = Claim {
        log: "client-1".parse().unwrap(),
        entry,
        leaf_hash: "00".repeat(32),
        time_ms: 1,
        fact: Box::new(fact),
        sealed: None,
    };
    Event {
        actor: Some(Actor {
            principal: Principal {
                account: "111122223333".parse().unwrap(),
                user_id: "AIDAAAAAAAAAAAAAAAAA".parse().unwrap(),
                arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
            },
            assurance: Assurance::AwsMfa,
            mfa_not_before: 0,
            certificate: "00".to_owned(),
            aws_request_ids: vec![],
        }),
        ..event(Some(session), Fact::Claimed(claim))
    }
}

fn opened(port: u16) -> Fact {
    Fact::SessionClaimed {
        access: Access::Tunnel { host: None, port },
        ssm: SsmSession {
            id: "alice-1".to_owned(),
            document: "AWS-StartPortForwardingSession".to_owned(),
            region: "eu-west-1".to_owned(),
            reason: None,
            request_id: None,
        },
    }
}

#[tokio::test]
async fn claims_are_known_after_a_restart_and_end_no_session_of_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let id = SessionId::of_client(1, 1);
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    let first = claimed(5, id, opened(3389));
    assert_eq!(evidence.claim(first.clone()).await.unwrap(), Taken::Now);
    evidence.shutdown().await.unwrap();

    let (evidence, startup) = Evidence::open(settings).unwrap();
    assert_eq!(startup.interrupted, []);
    assert_eq!(evidence.claim(first).await.unwrap(), Taken::Before);
    let again = claimed(6, id, opened(3389));
    assert!(matches!(
        evidence.claim(again).await,
        Err(NotTaken::Claim(ClaimError::NotOpen(_)))
    ));
    let ended = closed(0, CloseReason::Done, vec![]).fact;
    evidence.claim(claimed(6, id, ended)).await.unwrap();
    evidence.shutdown().await.unwrap();

    let report = report(folder.path(), &identity);
    assert_eq!(report.faults, []);
    assert_eq!(
        (report.sessions.len(), report.claims.sessions.len()),
        (0, 1)
    );
    // The end is of the class that the beginning was of, though it does not say so itself.
    let leaves = files(&folder.path().join("tile/entries/000.p"));
    let text = String::from_utf8_lossy(&leaves.last().unwrap().1).into_owned();
    assert_eq!(text.matches(r#""class_uid":4005"#).count(), 2, "{text}");
}

#[test]
fn claims_of_a_principal_have_a_quota_for_one_day() {
    let claims = Arc::new(Claims::default());
    let id = SessionId::of_client(1, 1);
    let first = claimed(0, id, opened(1));
    claims.follow(&first, QUOTA - 10);
    let Fact::Claimed(next) = claimed(1, SessionId::of_client(2, 2), opened(1)).fact else {
        panic!("a claim");
    };
    let owner = first.actor.as_ref().unwrap().principal.key();
    let session = SessionId::of_client(2, 2);
    assert!(claims.admit(&owner, session, &next, 10).unwrap().is_some());
    assert!(matches!(
        claims.admit(&owner, session, &next, 11),
        Err(ClaimError::Limit(_))
    ));
    assert!(claims.admit("somebody/else", session, &next, 11).is_ok());
    // What was written longer ago counts no more.
    let yesterday = Arc::new(Claims::default());
    let old = Event {
        time_ms: now_ms() - 25 * 3_600_000,
        ..first
    };
    yesterday.follow(&old, QUOTA);
    assert!(yesterday.admit(&owner, session, &next, 10).is_ok());
}

#[test]
fn two_who_claim_one_session_at_once_take_turns() {
    let claims = Arc::new(Claims::default());
    let session = SessionId::of_client(1, 1);
    let first = claimed(0, session, opened(1));
    let Fact::Claimed(claim) = &first.fact else {
        panic!("a claim");
    };
    let owner = first.actor.as_ref().unwrap().principal.key();
    let turn = claims.admit(&owner, session, claim, 10).unwrap().unwrap();
    let other = claims.admit("somebody/else", session, claim, 10);
    assert!(matches!(other, Err(ClaimError::Busy)));
    // What is being written counts.
    let mut elsewhere = claim.clone();
    elsewhere.log = "client-2".parse().unwrap();
    let second = SessionId::of_client(2, 2);
    let more = claims.admit(&owner, second, &elsewhere, QUOTA - 9);
    assert!(matches!(more, Err(ClaimError::Limit(_))));
    claims.follow(&first, 10);
    drop(turn);
    let other = claims.admit("somebody/else", session, claim, 10);
    assert!(matches!(other, Err(ClaimError::OfAnother(_))));
}

#[tokio::test]
async fn who_hangs_up_is_taken_once_all_the_same() {
    let evidence = Evidence::default();
    let claim = claimed(0, SessionId::of_client(1, 1), opened(1));
    tokio::select! {
        biased;
        _ = evidence.claim(claim.clone()) => panic!("nothing is durable at once"),
        () = std::future::ready(()) => {}
    }
    let again = loop {
        match evidence.claim(claim.clone()).await {
            Err(NotTaken::Claim(ClaimError::Busy)) => tokio::task::yield_now().await,
            again => break again,
        }
    };
    assert_eq!(again.unwrap(), Taken::Before);
}

#[tokio::test]
async fn two_requests_at_once_write_one_claim_once() {
    let evidence = Evidence::default();
    let claim = claimed(0, SessionId::of_client(1, 1), opened(1));
    let tries = (0..8).map(|_| {
        let (evidence, claim) = (evidence.clone(), claim.clone());
        tokio::spawn(async move { evidence.claim(claim).await })
    });
    let mut now = 0;
    for one in tries.collect::<Vec<_>>() {
        match one.await.unwrap() {
            Ok(Taken::Now) => now += 1,
            Ok(Taken::Before) | Err(NotTaken::Claim(ClaimError::Busy)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(now, 1);
}
