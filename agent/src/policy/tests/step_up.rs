//! When a fresh code would help.

use super::*;

#[test]
fn step_up_is_offered_only_when_a_code_would_help() {
    let lock = r#"
        @id("freeze")
        @reason("production is frozen until Monday")
        forbid (principal, action == Action::"connect", resource)
        when { resource.hasTag("env") && resource.getTag("env") == "prod" };
    "#;
    let policies = policies(&[DEVELOPERS, lock]);
    check(
        &policies,
        &[
            ("bob connect web-1 as deploy", "no: freeze"),
            ("bob connect web-1 as deploy fresh", "no: freeze"),
            ("bob connect web-1 as root", "no: freeze"),
        ],
    );
    let no = denial(&policies, "bob connect web-1 as deploy");
    assert_eq!(
        no.message,
        "policy `freeze` forbids it: production is frozen until Monday"
    );
}

#[test]
fn a_forbid_that_a_fresh_code_lifts_asks_for_the_code() {
    let fresh = r#"
        @id("production-wants-a-code")
        forbid (principal, action == Action::"connect", resource)
        when { resource.hasTag("env") && resource.getTag("env") == "prod" }
        unless { context.assurance == "aws-mfa-fresh" };
    "#;
    check(
        &policies(&[OPERATORS, fresh]),
        &[
            ("alice connect web-1 as root", "code: operators"),
            ("alice connect staging-1 as root", "yes: operators"),
            ("bob connect web-1 as root", "no: production-wants-a-code"),
        ],
    );
}

#[test]
fn what_was_fresh_at_the_grant_stays_so_while_the_session_runs() {
    let policies = policies(&[DEVELOPERS]);
    let Decision::Allow(grant) = policies.decide(&ask("bob connect web-1 as deploy fresh")) else {
        panic!("not allowed");
    };
    let later = NOON + time::Duration::hours(3);
    let again = grant.again(
        later,
        "10.9.9.9".parse().unwrap(),
        Some(target("web-1", "prod")),
    );
    assert!(matches!(policies.decide(&again), Decision::Allow(_)));
    // The target's tags are read anew: it is something else now.
    let again = grant.again(
        later,
        "10.9.9.9".parse().unwrap(),
        Some(target("web-1", "pci")),
    );
    assert!(matches!(policies.decide(&again), Decision::Deny(_)));
}
