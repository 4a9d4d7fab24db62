use std::sync::Mutex;

use aws_credential_types::Credentials;

use super::*;
use crate::identity::testing::{
    Bench, FakeSts, ROLE, Reply, Seen, assumed_xml, error, http, remember,
};

const GOOD: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"sts:AssumeRole","Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"},"NumericLessThan":{"aws:MultiFactorAuthAge":"43200"}}}]}"#;

fn role_answer(arn: &str, document: &str) -> Reply {
    let encoded: String = document
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect();
    http(
        "200 OK",
        "text/xml",
        &format!(
            "<GetRoleResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><GetRoleResult>\
             <Role><Path>/</Path><Arn>{arn}</Arn><RoleName>postern-attest</RoleName>\
             <RoleId>AROAEXAMPLEEXAMPLE11</RoleId><CreateDate>2026-01-01T00:00:00Z</CreateDate>\
             <AssumeRolePolicyDocument>{encoded}</AssumeRolePolicyDocument></Role></GetRoleResult>\
             <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></GetRoleResponse>"
        ),
    )
}

/// An AWS whose role has this document, and that answers AssumeRole like this.
async fn aws(
    document: &'static str,
    assume: impl Fn() -> Reply + Send + Sync + 'static,
) -> (FakeSts, Bench) {
    let sts = FakeSts::start(move |seen: &Seen| match seen.form("Action") {
        Some("GetRole") => role_answer(ROLE, document),
        _ => assume(),
    })
    .await;
    let endpoint = format!("https://localhost:{}", sts.address.port());
    let bench = Bench::new(&sts.settings, "");
    let mut config = bench.config.clone();
    config.attestation.iam_endpoint_url = Some(endpoint);
    (sts, Bench { config, ..bench })
}

fn attestation(bench: &Bench) -> Attestation {
    let credentials = Credentials::new("AKIAEXAMPLE", "secret", None, None, "test");
    Attestation::with_credentials(&bench.config, SharedCredentialsProvider::new(credentials))
        .unwrap()
}

#[tokio::test]
async fn a_role_that_demands_mfa_and_denies_without_it_passes() {
    let (sts, bench) = aws(GOOD, || error("AccessDenied")).await;
    attestation(&bench).check().await.unwrap();
    let seen = sts.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].form("Policy").unwrap().contains("Deny"));
    assert!(seen[1].form("TokenCode").is_none());
}

#[tokio::test]
async fn a_role_that_lost_its_mfa_condition_is_found() {
    const LOST: &str =
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"}]}"#;
    let (_sts, bench) = aws(LOST, || error("AccessDenied")).await;
    let fault = attestation(&bench).check().await.unwrap_err();
    assert!(matches!(fault, AttestationFault::Policy { .. }), "{fault}");
}

#[tokio::test]
async fn a_role_that_can_be_assumed_without_mfa_is_found_whatever_its_policy_says() {
    let arn = "arn:aws:sts::111122223333:assumed-role/postern-attest/postern-check-without-mfa";
    let (_sts, bench) = aws(GOOD, move || http("200 OK", "text/xml", &assumed_xml(arn))).await;
    let fault = attestation(&bench).check().await.unwrap_err();
    assert!(matches!(fault, AttestationFault::Assumed { .. }), "{fault}");
}

#[tokio::test]
async fn a_check_that_cannot_be_made_is_a_fault() {
    let (_sts, bench) = aws(GOOD, || error("InvalidClientTokenId")).await;
    let fault = attestation(&bench).check().await.unwrap_err();
    assert!(matches!(fault, AttestationFault::Unknown { .. }), "{fault}");

    let (_sts, bench) = aws("not json", || error("AccessDenied")).await;
    let fault = attestation(&bench).check().await.unwrap_err();
    assert!(matches!(fault, AttestationFault::Policy { .. }), "{fault}");

    let (_sts, mut bench) = aws(GOOD, || error("AccessDenied")).await;
    bench.config.attestation.role = "arn:aws:iam::111122223333:role/path/postern-attest"
        .parse()
        .unwrap();
    let fault = attestation(&bench).check().await.unwrap_err();
    assert!(
        matches!(fault, AttestationFault::Unreadable { .. }),
        "{fault}"
    );
}

#[tokio::test]
async fn a_fault_closes_enrolment_and_is_an_event_and_recovery_opens_it() {
    let sound = Arc::new(Mutex::new(false));
    let answer = sound.clone();
    let (_sts, mut bench) = aws(GOOD, move || {
        if *answer.lock().unwrap() {
            error("AccessDenied")
        } else {
            error("Unexpected")
        }
    })
    .await;
    bench.config.attestation.interval = Duration::from_millis(20);
    let attestation = attestation(&bench);
    let (record, events) = remember();
    let state = Attestation::channel();
    let mut watched = state.subscribe();
    assert!(
        matches!(&*watched.borrow(), AttestationState::Closed(_)),
        "closed before the first check"
    );
    let again = Notify::new();
    let run = attestation.run(state, record, &again);
    let story = async {
        watched.changed().await.unwrap();
        assert!(
            matches!(&*watched.borrow(), AttestationState::Closed(why) if why.contains("Unexpected"))
        );
        *sound.lock().unwrap() = true;
        watched
            .wait_for(|state| *state == AttestationState::Open)
            .await
            .unwrap();
        *sound.lock().unwrap() = false;
        watched
            .wait_for(|state| *state != AttestationState::Open)
            .await
            .unwrap();
    };
    let bounded = tokio::time::timeout(Duration::from_secs(60), story);
    tokio::select! {
        () = run => panic!("the checks ended"),
        done = bounded => done.unwrap(),
    }
    let events = events.lock().unwrap();
    let faults: Vec<_> = events
        .iter()
        .map(|event| match &event.fact {
            Fact::AttestationChecked { fault } => fault.is_some(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(faults[0] && faults.contains(&false));
}

#[tokio::test]
async fn an_event_that_cannot_be_written_keeps_enrolment_closed() {
    let (_sts, bench) = aws(GOOD, || error("AccessDenied")).await;
    let attestation = attestation(&bench);
    let record: Record = Arc::new(|_| Box::pin(async { Err("disk full".to_owned()) }));
    let state = Attestation::channel();
    let mut watched = state.subscribe();
    let again = Notify::new();
    tokio::select! {
        () = attestation.run(state, record, &again) => panic!("the checks ended"),
        changed = watched.changed() => changed.unwrap(),
    }
    assert!(matches!(&*watched.borrow(), AttestationState::Closed(why) if &**why == "disk full"));
}

#[test]
fn every_attestation_fault_reads_well() {
    let role = || ROLE.to_owned();
    let faults = [
        AttestationFault::Policy {
            role: role(),
            fault: TrustPolicyFault::Present(1),
        },
        AttestationFault::Policy {
            role: role(),
            fault: TrustPolicyFault::Age {
                number: 2,
                bound: 43_200,
            },
        },
        AttestationFault::Unreadable {
            role: role(),
            reason: "AccessDenied: no".to_owned(),
        },
        AttestationFault::Assumed { role: role() },
        AttestationFault::Unknown {
            role: role(),
            reason: "dispatch failure".to_owned(),
        },
        AttestationFault::Deadline,
        AttestationFault::Client("no PEM".to_owned()),
    ];
    let text: Vec<_> = faults
        .iter()
        .map(|f| format!("{f}\n  hint: {}", f.hint()))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    the attestation role arn:aws:iam::111122223333:role/postern-attest is unsound: statement 1 of the trust policy allows without `Bool`: {`aws:MultiFactorAuthPresent`: `true`} (`BoolIfExists` does not count: an absent key would pass)
      hint: restore the trust policy: every Allow needs Bool aws:MultiFactorAuthPresent true and NumericLessThan aws:MultiFactorAuthAge at most attestation.mfa_max_age
    the attestation role arn:aws:iam::111122223333:role/postern-attest is unsound: statement 2 of the trust policy allows without `NumericLessThan`: {`aws:MultiFactorAuthAge`: at most `43200`}
      hint: restore the trust policy: every Allow needs Bool aws:MultiFactorAuthPresent true and NumericLessThan aws:MultiFactorAuthAge at most attestation.mfa_max_age
    the trust policy of the attestation role arn:aws:iam::111122223333:role/postern-attest cannot be read: AccessDenied: no
      hint: allow the agent's own role iam:GetRole on the attestation role
    the attestation role arn:aws:iam::111122223333:role/postern-attest can be assumed without MFA: this agent just did
      hint: restore the trust policy: every Allow needs Bool aws:MultiFactorAuthPresent true and NumericLessThan aws:MultiFactorAuthAge at most attestation.mfa_max_age
    it is not known whether the attestation role arn:aws:iam::111122223333:role/postern-attest demands MFA: dispatch failure
      hint: check that the agent has AWS credentials of its own and reaches STS and IAM
    the attestation role could not be checked in time
      hint: check that the agent has AWS credentials of its own and reaches STS and IAM
    the attestation role cannot be checked: no PEM
      hint: check `sts.ca_bundle` in agent.toml
    ");
}
