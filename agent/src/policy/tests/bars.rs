//! Who may not come in at all.

use super::*;

#[test]
fn the_deny_list_bars_user_ids_and_certificate_serials_from_everything() {
    let bars = r#"
        @id("bob-left")
        forbid (principal == Principal::"111122223333/AIDABOBBOBBOBBOBBOB1", action, resource);
        @id("stolen-laptop")
        forbid (principal, action, resource) when { context.certificate == "0a1b5" };
        @id("no-root")
        forbid (principal, action == Action::"connect", resource) when { context.user == "root" };
    "#;
    let policies = policies(&[OPERATORS, DEVELOPERS, AUDITORS, bars]);
    check(
        &policies,
        &[
            ("bob connect staging-1 as deploy", "no: bob-left"),
            ("bob connect web-1 as deploy", "no: bob-left"),
            ("alice tunnel db-1 port 5432", "no: stolen-laptop"),
            ("alice connect web-1 as root", "no: no-root stolen-laptop"),
        ],
    );
    let admit = |name: &str, serial| {
        let who = who(name);
        let source = "10.9.9.9".parse().unwrap();
        policies.admit(who.principal(), serial, source, NOON)
    };
    assert_eq!(admit("bob", None).unwrap_err().policies, ["bob-left"]);
    assert_eq!(
        admit("alice", Some("0A1B5")).unwrap_err().policies,
        ["stolen-laptop"]
    );
    // A new certificate of hers is fine, and a forbid of one action bars nobody.
    assert!(admit("alice", None).is_ok());
    assert!(admit("alice", Some("77")).is_ok());
    assert!(admit("carol", Some("0a1c")).is_ok());
}

#[test]
fn a_bar_by_network_waits_until_the_network_is_known() {
    let bars = r#"
        @id("office-only")
        forbid (principal, action, resource) unless { context.source.isInRange(ip("10.0.0.0/8")) };
        @id("bob-left")
        forbid (principal == Principal::"111122223333/AIDABOBBOBBOBBOBBOB1", action, resource);
    "#;
    let policies = policies(&[OPERATORS, bars]);
    let admit = |name: &str, source: &str| {
        let source = source.parse().unwrap();
        policies.admit(who(name).principal(), None, source, NOON)
    };
    assert!(admit("alice", "0.0.0.0").is_ok());
    assert!(admit("alice", "10.1.2.3").is_ok());
    let outside = admit("alice", "198.51.100.7").unwrap_err();
    assert_eq!(outside.policies, ["office-only"]);
    assert_eq!(admit("bob", "0.0.0.0").unwrap_err().policies, ["bob-left"]);
}

#[test]
fn a_bar_that_fails_to_evaluate_admits_nobody() {
    let bars = r#"
        @id("overflows")
        forbid (principal, action, resource) when { context.hour + 9223372036854775807 > 0 };
    "#;
    let policies = policies(&[OPERATORS, bars]);
    let no = policies
        .admit(
            who("alice").principal(),
            None,
            "10.9.9.9".parse().unwrap(),
            NOON,
        )
        .unwrap_err();
    assert_eq!(no.policies, ["overflows"]);
}

#[test]
fn a_bar_that_a_code_lifts_does_not_close_enrolment() {
    let bars = r#"
        @id("always-a-code")
        forbid (principal, action, resource) unless { context.assurance == "aws-mfa-fresh" };
    "#;
    let policies = policies(&[OPERATORS, bars]);
    let source = "10.9.9.9".parse().unwrap();
    assert!(
        policies
            .admit(who("alice").principal(), None, source, NOON)
            .is_ok()
    );
}
