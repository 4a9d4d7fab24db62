use postern_proto::enroll::{Outcome, RefuseCode};

use crate::error::Kind;
use crate::identity::testing::agent::Agent;
use crate::identity::testing::{Authority, World, lock};
use crate::identity::{IdentityError, certified};

use super::*;

async fn failure(world: &World) -> IdentityError {
    certified(&world.context, world.profile())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn nothing_is_signed_for_another_agent_role_or_host() {
    let world = World::new().await;
    world.log_in().await;
    let right = lock(&world.agent.state).challenge.clone();
    for (challenge, what) in [
        (
            Challenge {
                agent: "bastion-2".parse().unwrap(),
                ..right.clone()
            },
            "id",
        ),
        (
            Challenge {
                role: "arn:aws:iam::111122223333:role/admin".to_owned(),
                ..right.clone()
            },
            "attestation role",
        ),
        (
            Challenge {
                sts_host: "sts.evil.example".to_owned(),
                ..right.clone()
            },
            "STS host",
        ),
        (
            Challenge {
                // The region's own host, but of another region than is signed for.
                sts_host: "sts.us-east-1.amazonaws.com".to_owned(),
                ..right.clone()
            },
            "STS host",
        ),
    ] {
        lock(&world.agent.state).challenge = challenge;
        let error = failure(&world).await;
        let IdentityError::Enrol(EnrolError::Pinned { what: found, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!(*found, what);
        assert!(error.to_string().ends_with("nothing was signed"));
        assert_eq!(error.kind(), Kind::Denied);
    }
    for region in ["x", "eu-west-1.evil.example/", "EU-WEST-1"] {
        lock(&world.agent.state).challenge = Challenge {
            region: region.to_owned(),
            ..right.clone()
        };
        let error = failure(&world).await;
        assert!(matches!(
            error,
            IdentityError::Enrol(EnrolError::Protocol { .. })
        ));
    }
    assert!(world.agent.proofs().is_empty());
    // The region's own STS is always right: nobody else can verify what we sign.
    lock(&world.agent.state).challenge = Challenge {
        sts_host: "sts.eu-west-1.amazonaws.com".to_owned(),
        ..right
    };
    certified(&world.context, world.profile()).await.unwrap();
}

#[tokio::test]
async fn a_pinned_sts_host_is_the_only_one() {
    let mut world = World::new().await;
    world.log_in().await;
    world.context.agents[0].sts_host = Some("vpce-1.sts.eu-west-1.vpce.amazonaws.com".to_owned());
    assert!(failure(&world).await.to_string().contains("STS host"));
    lock(&world.agent.state).challenge.sts_host =
        "vpce-1.sts.eu-west-1.vpce.amazonaws.com".to_owned();
    certified(&world.context, world.profile()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_cannot_prove_itself_gets_nothing() {
    let mut world = World::new().await;
    world.log_in().await;
    let (right, other) = (Authority::new(), Authority::new());
    world.context.agents[0].ca = right.pem.clone().into_bytes();
    for (authority, name, seconds, cause) in [
        (&other, "bastion-1", 86_400, "not from the pinned CA"),
        (&right, "bastion-2", 86_400, "names somebody else"),
        (&right, "bastion-1", -10, "has expired"),
    ] {
        let agent = Agent::start(authority, name, seconds, &world.aws).await;
        world.context.agents[0].address = format!("127.0.0.1:{}", agent.port());
        let error = failure(&world).await;
        assert!(error.to_string().contains(cause), "{error}");
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(lock(&agent.state).connections, 0);
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_advice() {
    let world = World::new().await;
    world.log_in().await;
    lock(&world.agent.state).outcome = Some(Outcome::Refused {
        code: RefuseCode::Caller,
        message: "account 111122223333 may not enrol here".to_owned(),
        hint: Some("ask whoever runs the agent".to_owned()),
    });
    let error = failure(&world).await;
    assert_eq!(
        error.to_string(),
        "agent `bastion-1` refused the enrolment: account 111122223333 may not enrol here"
    );
    assert_eq!(error.hint().as_deref(), Some("ask whoever runs the agent"));
    assert_eq!(error.kind().code(), 1);

    lock(&world.agent.state).outcome = Some(Outcome::Refused {
        code: RefuseCode::Clock,
        message: "the proof's date is too far off".to_owned(),
        hint: None,
    });
    lock(&world.agent.state).challenge.time -= 3600;
    let error = failure(&world).await.to_string();
    assert!(error.contains("this computer's clock is 60 min"), "{error}");
    assert!(error.contains("ahead of the agent's"), "{error}");
}

#[tokio::test]
async fn a_certificate_for_another_key_is_refused() {
    let world = World::new().await;
    world.log_in().await;
    lock(&world.agent.state).other_key = true;
    assert!(
        failure(&world)
            .await
            .to_string()
            .contains("is for another key")
    );
    lock(&world.agent.state).other_key = false;
    lock(&world.agent.state).lifetime = -1;
    assert!(
        failure(&world)
            .await
            .to_string()
            .contains("is over already")
    );
    lock(&world.agent.state).outcome = Some(Outcome::Issued {
        chain: "no PEM".to_owned(),
        not_after: i64::MAX,
    });
    assert!(failure(&world).await.to_string().contains("no PEM chain"));
    lock(&world.agent.state).outcome = Some(Outcome::Approved { until: 1 });
    let error = failure(&world).await.to_string();
    assert!(
        error.contains("an approval instead of a certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn an_absent_agent_is_exit_code_3() {
    let mut world = World::new().await;
    world.log_in().await;
    world.context.agents[0].address = "127.0.0.1:1".to_owned();
    let error = failure(&world).await;
    assert_eq!(error.kind().code(), 3);
    assert!(
        error
            .to_string()
            .contains("agent `bastion-1` at 127.0.0.1:1"),
        "{error}"
    );
}

#[test]
fn a_chain_has_at_least_one_certificate_and_not_many() {
    let pem = Authority::new().pem;
    assert!(parse_chain("").is_none());
    assert_eq!(parse_chain(&pem.repeat(4)).unwrap().len(), 4);
    assert!(parse_chain(&pem.repeat(5)).is_none());
}
