use serde_json::Value;

use super::*;
use crate::iam::shape::tests::typed;
use crate::iam::statement::OWNER_TAG;

fn pretty(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).unwrap()
}

fn shape() -> Shape {
    let mut typed = typed();
    typed.tags = vec!["env=staging".into(), "env=test".into(), "team=web".into()];
    typed.recorded = vec!["recording=agent".into(), "pci=yes".into()];
    typed.regions = vec!["eu-west-1".into(), "us-east-1".into()];
    typed.kms_keys = vec!["arn:aws:kms:eu-west-1:111122223333:key/1234abcd".into()];
    typed.login_users = vec!["ec2-user".into(), "ubuntu".into()];
    typed.sources = vec!["203.0.113.7".into()];
    Shape::new(typed).unwrap()
}

#[test]
fn each_policy_is_what_it_is_for() {
    let shape = shape();
    insta::assert_snapshot!("operators", pretty(&Document::operators(&shape).unwrap()));
    insta::assert_snapshot!(
        "operators-role",
        pretty(&Document::operators_role(&shape).unwrap())
    );
    insta::assert_snapshot!("bastion", pretty(&Document::bastion(&shape).unwrap()));
    insta::assert_snapshot!(
        "attestation",
        pretty(&Document::attestation(&shape).unwrap())
    );
    insta::assert_snapshot!("recorded", pretty(&Document::recorded(&shape).unwrap()));
    insta::assert_snapshot!("checker", pretty(&Document::checker().unwrap()));
}

#[test]
fn all_of_them_stand_by_name_in_one_object() {
    let all = serde_json::to_value(All::new(&shape()).unwrap()).unwrap();
    // Whether maps keep their order is a feature of the JSON crate that others turn on.
    let mut names: Vec<&String> = all.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "attestation",
            "bastion",
            "checker",
            "operators",
            "operators-role",
            "recorded"
        ]
    );
    assert_eq!(all["operators"]["Version"], "2012-10-17");
}

#[test]
fn no_role_session_is_asked_for_what_it_cannot_have() {
    let role = compact(&Document::operators_role(&shape()).unwrap());
    assert!(!role.contains("MultiFactorAuth"), "{role}");
    // Taking the conditions away left the others.
    assert!(
        role.contains("ssm:resourceTag/env") && role.contains(OWNER_TAG),
        "{role}"
    );
}

#[test]
fn every_statement_that_starts_a_session_demands_mfa_or_denies() {
    let document = serde_json::to_value(Document::operators(&shape()).unwrap()).unwrap();
    let statements = document["Statement"].as_array().unwrap();
    let starts = |statement: &&Value| statement["Action"].to_string().contains("StartSession");
    assert_eq!(statements.iter().filter(starts).count(), 4);
    for statement in statements.iter().filter(starts) {
        if statement["Effect"] == "Deny" {
            continue;
        }
        let condition = &statement["Condition"];
        assert_eq!(condition["Bool"]["aws:MultiFactorAuthPresent"], "true");
        assert_eq!(
            condition["NumericLessThan"]["aws:MultiFactorAuthAge"],
            "43200"
        );
    }
}

#[test]
fn a_policy_that_iam_would_not_store_is_not_printed() {
    let mut typed = typed();
    typed.regions = (1..=20).map(|n| format!("eu-west-{n}")).collect();
    let shape = Shape::new(typed).unwrap();
    let error = Document::operators(&shape).unwrap_err();
    assert!(matches!(
        error,
        PolicyError::TooLong {
            name: "operators",
            limit: 6_144,
            ..
        }
    ));
    assert!(error.hint().unwrap().contains("fewer regions"));
}
