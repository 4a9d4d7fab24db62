//! The agent checks its own oracle: a role that no longer demands MFA closes enrolment.

use lab::account::ATTESTATION_TRUST;
use lab::aws::Role;
use lab::stack::Lab;
use postern_proto::enroll::{Outcome, RefuseCode};

use crate::by_hand::enrolment::attempt;
use crate::by_hand::sts::Keys;
use crate::harness::{events, eventually, get, lab, postern, postern_as};

const WEAK: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
    "Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"sts:AssumeRole"}]}"#;

/// Replaces the trust policy and has the agent look.
fn trust(lab: &Lab, policy: &str) {
    let role = Role::new("postern-attestation", policy);
    lab.aws.put_role(role).unwrap();
    lab.agent.signal(rustix::process::Signal::HUP).unwrap();
}

#[tokio::test]
async fn enrolment_is_closed_while_the_role_demands_no_mfa() {
    let lab = lab().await;
    let connect = ["connect", "web-1", "--", "true"];
    postern(&lab, &connect).await.status(0);

    trust(&lab, WEAK);
    eventually("readiness turns red", async || {
        let (status, text) = get(&lab, "/readyz").await;
        let closed = text.contains("enrolment is closed") && text.contains("unsound");
        (status == 503 && closed).then_some(())
    })
    .await;
    // Though bob gave a code, and though the weak role would attest it.
    postern_as(&lab, "bob", &["login"]).await.status(0);
    postern_as(&lab, "bob", &connect)
        .await
        .status(255)
        .says(&["enrolment is closed", "postern-agent check"]);
    // Without one the role would now say yes: the agent does not ask it.
    let without = Keys::of(&lab, "bob");
    let without = without.session(&lab, "Action=GetSessionToken").await;
    match attempt(&lab, &without).await {
        Outcome::Refused { code, .. } => assert_eq!(code, RefuseCode::Closed),
        other => panic!("{other:?}"),
    }
    // A certificate from before is still good: it was attested.
    postern(&lab, &connect).await.status(0);
    let log = events(&lab).await;
    assert!(log.contains("unsound"), "{log}");

    trust(&lab, ATTESTATION_TRUST);
    eventually("readiness is back", async || {
        (get(&lab, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    postern_as(&lab, "bob", &connect).await.status(0);
    lab.stop().await.unwrap();
}
