use super::*;
use crate::iam::report::Report;
use crate::iam::shape::tests::typed;

const INSTANCE: &str = "arn:aws:ec2:eu-west-1:111122223333:instance/i-1";

fn shape() -> Shape {
    let mut typed = typed();
    typed.kms_keys = vec!["arn:aws:kms:eu-west-1:111122223333:key/k".into()];
    Shape::new(typed).unwrap()
}

fn subject(is_role: bool) -> Subject {
    Subject {
        is_role,
        name: if is_role { "ops" } else { "alice" }.to_owned(),
        arn: "arn:aws:iam::111122223333:x".to_owned(),
        unique_id: "X".to_owned(),
    }
}

/// Every probe of one identity, answered alike, but for those that `change` turns round.
fn judged(
    named: bool,
    allowed: fn(Check) -> bool,
    missing: fn(Check) -> &'static [&'static str],
) -> Judged {
    let shape = shape();
    let scope = Scope {
        shape: &shape,
        instances: &[],
        context: &[],
        recorded: true,
        attestation: true,
    };
    let answer = |probe: &Probe| {
        let pairs = probe.actions.iter().flat_map(|action| {
            probe.resources.iter().map(move |resource| Answer {
                action: (*action).to_owned(),
                resource: resource.clone(),
                allowed: allowed(probe.check),
                policies: vec!["some-policy".to_owned()],
                missing: missing(probe.check)
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                organisation_denies: false,
            })
        });
        Outcome::of(probe, pairs.collect())
    };
    let probes = probe::probes(&scope, &subject(false), named);
    let outcomes: Vec<Outcome> = probes.iter().map(answer).collect();
    Judged {
        subject: subject(false),
        named,
        concerned: true,
        findings: findings(&scope, &subject(false), &outcomes, named),
    }
}

fn told(judged: Judged) -> String {
    let shape = shape();
    Report::new(&shape, vec![judged]).lines(true).join("\n")
}

fn none(_: Check) -> &'static [&'static str] {
    &[]
}

#[test]
fn all_holds_when_what_must_be_allowed_is_and_nothing_else() {
    let good = judged(true, Check::must_be_allowed, none);
    assert_eq!(good.faults().count(), 0);
    insta::assert_snapshot!("all-holds", told(good));
}

#[test]
fn everything_that_can_be_wrong_is_said_with_what_to_add() {
    let bad = judged(true, |check| !check.must_be_allowed(), none);
    assert!(
        bad.findings
            .iter()
            .all(|finding| finding.state != State::Holds)
    );
    insta::assert_snapshot!("all-wrong", told(bad));
}

#[test]
fn who_is_not_named_is_only_asked_what_is_open() {
    let nobody = judged(false, |_| false, none);
    assert_eq!(nobody.faults().count(), 0);
    assert!(
        nobody
            .findings
            .iter()
            .all(|finding| !finding.check.must_be_allowed())
    );
}

#[test]
fn an_answer_that_depends_on_what_was_not_given_is_never_fine() {
    let by_address: fn(Check) -> &'static [&'static str] = |_| &["aws:SourceIp"];
    let unclear = judged(true, Check::must_be_allowed, by_address);
    assert!(
        unclear
            .findings
            .iter()
            .all(|finding| finding.state == State::Unclear)
    );
    let first = unclear.faults().next().unwrap();
    insta::assert_snapshot!(
        format!("{}\nhint: {}", first.message, first.next_step().unwrap()),
        @r"
    starting a session with long-term keys, without MFA cannot be told: policies read aws:SourceIp
    hint: give the value that counts: --context aws:SourceIp=VALUE
    "
    );
    // What is open is open, whatever else is read.
    let open = judged(true, |_| true, by_address);
    let count = open
        .faults()
        .filter(|finding| finding.state == State::Open)
        .count();
    assert_eq!(count, 8);
}

#[test]
fn what_a_question_leaves_out_on_purpose_makes_no_doubt() {
    let own: fn(Check) -> &'static [&'static str] = |check| match check {
        Check::LongTermKeys => &["aws:multifactorauthpresent", "aws:MultiFactorAuthAge"],
        Check::OtherTargets => &["ssm:resourceTag/postern:target"],
        Check::OtherDocuments => &["ssm:SessionDocumentAccessCheck"],
        _ => &[],
    };
    assert_eq!(
        judged(true, Check::must_be_allowed, own).faults().count(),
        0
    );
    // Another tag than the one that was asked about is a doubt: who has it may be let in.
    let other: fn(Check) -> &'static [&'static str] = |_| &["ssm:resourceTag/team"];
    assert!(judged(true, Check::must_be_allowed, other).faults().count() > 0);
}

#[test]
fn a_role_is_judged_by_who_may_assume_it() {
    let shape = shape();
    let trust = |document: &str| trusted(&shape, &subject(true), document);
    let lines: Vec<String> = [
        trust(&serde_json::json!({"Statement": Statement::trust(&shape)}).to_string()),
        trust(r#"{"Statement":{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"sts:AssumeRole"}}"#),
        trust("not JSON"),
    ]
    .iter()
    .map(|finding| {
        let hint = finding.next_step().unwrap_or_default();
        format!("{:?} {}\n  {hint}", finding.state, finding.message)
    })
    .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn no_role_is_advised_to_ask_for_mfa_that_its_sessions_cannot_carry() {
    let shape = shape();
    let scope = Scope {
        shape: &shape,
        instances: &[],
        context: &[],
        recorded: true,
        attestation: true,
    };
    let denied = |probe: &Probe| {
        let answers = probe.resources.iter().map(|resource| Answer {
            action: probe.actions[0].to_owned(),
            resource: resource.clone(),
            allowed: false,
            policies: Vec::new(),
            missing: Vec::new(),
            organisation_denies: false,
        });
        Outcome::of(probe, answers.collect())
    };
    let probes = probe::probes(&scope, &subject(true), true);
    let outcomes: Vec<Outcome> = probes.iter().map(denied).collect();
    let findings = findings(&scope, &subject(true), &outcomes, true);
    let advised = compact(
        &findings
            .iter()
            .flat_map(|one| &one.statements)
            .collect::<Vec<_>>(),
    );
    assert!(advised.contains("StartOnTargets"), "{advised}");
    assert!(!advised.contains("MultiFactorAuth"), "{advised}");
}

#[test]
fn a_message_names_the_action_a_few_resources_and_the_policies() {
    let answer = |resource: &str| Answer {
        action: "ssm:StartSession".to_owned(),
        resource: resource.to_owned(),
        allowed: true,
        policies: vec!["ops".to_owned()],
        missing: Vec::new(),
        organisation_denies: true,
    };
    let answers: Vec<Answer> = [INSTANCE; 5].iter().map(|arn| answer(arn)).collect();
    insta::assert_snapshot!(detail(&answers), @" (ssm:StartSession on instance/i-1, instance/i-1, instance/i-1 and 2 more; a service control policy of the organisation denies it; policy ops)");
    assert_eq!(age(43_200), "12 h");
    assert_eq!(age(5_400), "90 min");
}
