//! Decisions with their reasons.

use super::*;

#[test]
fn a_default_deny_says_what_would_be_needed() {
    let policies = policies(&[OPERATORS, DEVELOPERS]);
    let rows = [
        (
            "bob connect staging-1 as root",
            "no policy allows `connect` on `staging-1` as user `root`",
            "policy allows it as user `deploy`, `ubuntu`",
        ),
        (
            "alice tunnel db-1 port 22",
            "no policy allows `tunnel` to port 22 on `db-1`",
            "policy allows port 5432 there",
        ),
        (
            "bob tunnel db-1 port 5432 at 2026-11-28T12:00",
            "no policy allows `tunnel` to port 5432 on `db-1`",
            "policy `office-hours` would, but this does not hold: \
             !([\"saturday\", \"sunday\"].contains(context.weekday))",
        ),
        (
            "carol connect web-1 as root",
            "no policy allows `connect` on `web-1` as user `root`",
            "ask an administrator for a policy that permits it",
        ),
    ];
    for (sentence, message, hint) in rows {
        let no = denial(&policies, sentence);
        assert_eq!(no.message, message, "{sentence}");
        assert_eq!(no.hint.as_deref(), Some(hint), "{sentence}");
    }
}

#[test]
fn an_explanation_names_the_permits_and_the_conditions_that_failed() {
    let policies = policies(&[OPERATORS, DEVELOPERS]);
    let why = policies.explain(&ask("bob connect web-1 as ubuntu"));
    assert_eq!(why.verdict, Verdict::Deny);
    let staging = why
        .permits
        .iter()
        .find(|p| p.id == "developers-staging")
        .unwrap();
    assert_eq!(
        (staging.file.as_str(), staging.line, staging.for_you),
        ("1.cedar", 2, true)
    );
    let states: Vec<_> = staging
        .conditions
        .iter()
        .map(|c| (c.text.as_str(), c.holds))
        .collect();
    assert_eq!(
        states,
        [
            (r#"resource.hasTag("env")"#, Some(true)),
            (r#"resource.getTag("env") == "staging""#, Some(false)),
            (r#"["deploy", "ubuntu"].contains(context.user)"#, Some(true)),
        ]
    );
    assert_eq!(why.users, ["deploy"]);
    let operators = why.permits.iter().find(|p| p.id == "operators").unwrap();
    assert!(!operators.for_you && !operators.holds);
    // What others must fulfil is not everybody's to read.
    assert_eq!(operators.conditions, []);
    // Those that are about other actions are not in it.
    assert!(why.permits.iter().all(|p| p.id != "office-hours"));
    let json = serde_json::to_value(&why).unwrap();
    assert_eq!(json["verdict"], "deny");
}

#[test]
fn an_explanation_tells_what_a_code_would_change() {
    let policies = policies(&[DEVELOPERS]);
    let why = policies.explain(&ask("bob connect web-1 as deploy"));
    assert_eq!(why.verdict, Verdict::StepUp);
    assert_eq!(why.policies, ["production-with-a-code"]);
    let permit = &why.permits[0];
    assert_eq!(permit.id, "production-with-a-code");
    assert!(!permit.holds && permit.with_fresh_mfa);
    let ls = policies.login_users(&ask("bob connect web-1 as root"));
    assert_eq!(ls, ["deploy"]);
}

#[test]
fn a_condition_that_relies_on_a_failed_one_is_told_as_unknown() {
    let text = r#"
        @id("team")
        permit (principal, action == Action::"connect", resource)
        when { resource.hasTag("team") && resource.getTag("team") == "web" };
    "#;
    let why = policies(&[text]).explain(&ask("bob connect web-1 as deploy"));
    let holds: Vec<_> = why.permits[0].conditions.iter().map(|c| c.holds).collect();
    assert_eq!(holds, [Some(false), None]);
}

#[test]
fn what_could_be_allowed_on_some_port_is_possible_and_nothing_else() {
    const LIMITS: &str = r#"
        @id("no-listeners-on-production")
        forbid (principal, action == Action::"reverse", resource)
        when { resource.hasTag("env") && resource.getTag("env") == "prod" };
        @id("no-low-ports")
        forbid (principal, action == Action::"tunnel", resource) when { context.port < 1024 };
        @id("carol-with-a-code")
        permit (principal == Principal::"111122223333/AIDACAROLCAROLCAROL1", action == Action::"tunnel", resource)
        when { context.assurance == "aws-mfa-fresh" && !(context.port == 22) };
    "#;
    let policies = policies(&[OPERATORS, DEVELOPERS, LIMITS]);
    let rows = [
        ("alice tunnel web-1 as root", true),
        ("alice forward_agent web-1 as root", true),
        ("alice reverse staging-1 as root", true),
        ("alice reverse web-1 as root", false),
        ("alice tunnel web-1 as root without-mfa", false),
        ("bob tunnel staging-1 as deploy", true),
        ("bob tunnel staging-1 as deploy at 2026-11-24T20:00", false),
        ("bob tunnel staging-1 as deploy at 2026-11-28T12:00", false),
        ("bob reverse staging-1 as deploy", false),
        ("bob forward_agent staging-1 as deploy", false),
        ("carol tunnel web-1 as root", false),
        ("carol tunnel web-1 as root fresh", true),
    ];
    for (sentence, possible) in rows {
        assert_eq!(policies.possible(&ask(sentence)), possible, "{sentence}");
    }
}
