use super::*;
use crate::iam::shape::tests::typed;

fn subject(is_role: bool) -> Subject {
    Subject {
        is_role,
        name: "alice".to_owned(),
        arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        unique_id: "AIDAALICE".to_owned(),
    }
}

fn all(is_role: bool, needs: bool) -> Vec<Probe> {
    let shape = Shape::new(typed()).unwrap();
    let scope = Scope {
        shape: &shape,
        instances: &["i-0123456789abcdef0".to_owned()],
        context: &[],
        recorded: true,
        attestation: true,
    };
    probes(&scope, &subject(is_role), needs)
}

fn value<'a>(probe: &'a Probe, key: &str) -> Option<&'a str> {
    let fact = probe.facts.iter().find(|fact| fact.key == key)?;
    Some(&fact.value)
}

#[test]
fn users_are_asked_about_without_mfa_in_both_ways_that_aws_has() {
    let probes = all(false, false);
    let of = |check| probes.iter().find(|probe| probe.check == check).unwrap();
    assert_eq!(value(of(Check::LongTermKeys), PRESENT), None);
    assert_eq!(value(of(Check::SessionWithoutMfa), PRESENT), Some("false"));
    assert_eq!(value(of(Check::OldMfa), PRESENT), Some("true"));
    assert_eq!(value(of(Check::OldMfa), AGE), Some("43201"));
    assert_eq!(value(of(Check::Start), AGE), Some("60"));
    assert_eq!(
        value(of(Check::OtherTargets), "ssm:resourceTag/postern:target"),
        None
    );
    assert_eq!(
        value(of(Check::Recorded), "ssm:resourceTag/postern:recording"),
        Some("agent")
    );
}

#[test]
fn no_role_is_asked_about_with_mfa() {
    let probes = all(true, true);
    assert!(probes.iter().all(|probe| value(probe, PRESENT).is_none()));
    assert!(
        probes
            .iter()
            .all(|probe| !matches!(probe.check, Check::LongTermKeys | Check::Attest))
    );
}

#[test]
fn who_is_not_named_need_not_be_able_to_work() {
    let needed = |probe: &&Probe| probe.check.must_be_allowed() && probe.check != Check::Start;
    assert_eq!(all(false, false).iter().filter(needed).count(), 0);
    assert_eq!(all(false, true).iter().filter(needed).count(), 5);
}

#[test]
fn a_document_is_asked_about_without_the_tags_of_a_target() {
    for probe in all(false, true) {
        if matches!(probe.check, Check::Documents | Check::OtherDocuments) {
            assert!(
                probe
                    .facts
                    .iter()
                    .all(|fact| !fact.key.contains("esourceTag"))
            );
        }
    }
}

#[test]
fn what_a_question_is_about_cannot_be_given_for_all() {
    let shape = Shape::new(typed()).unwrap();
    for key in [
        "AWS:multifactorauthpresent",
        "ssm:resourcetag/postern:target",
        "aws:userid",
    ] {
        assert!(is_own_key(key, &shape), "{key}");
    }
    assert!(!is_own_key("aws:SourceIp", &shape));
}
