//! Decisions, as sentences.

use std::sync::Arc;

use postern_proto::names::Assurance;
use time::OffsetDateTime;
use time::macros::datetime;

use super::{Action, Decision, Denial, Policies, PolicyError, Request, Verdict};
use crate::identity::VerifiedPrincipal;
use crate::identity::testing::Says;
use crate::inventory::{Target, TargetLogin};

const OPERATORS: &str = r#"
    @id("operators")
    permit (
      principal == Principal::"111122223333/AIDAALICEALICEALICE1",
      action in [Action::"connect", Action::"forward_agent", Action::"reverse", Action::"session_kill"],
      resource
    );
    @id("operators-database")
    permit (principal == Principal::"111122223333/AIDAALICEALICEALICE1", action == Action::"tunnel", resource)
    when { context.port == 5432 };
    @id("jump-to-rds")
    permit (principal == Principal::"111122223333/AIDAALICEALICEALICE1", action == Action::"tunnel", resource)
    when { context has host && context.host like "*.rds.amazonaws.com" && context.port == 5432 };
"#;

const DEVELOPERS: &str = r#"
    @id("developers-staging")
    permit (principal == Principal::"111122223333/AIDABOBBOBBOBBOBBOB1", action == Action::"connect", resource)
    when { resource.hasTag("env") && resource.getTag("env") == "staging" && ["deploy", "ubuntu"].contains(context.user) };
    @id("office-hours")
    permit (principal == Principal::"111122223333/AIDABOBBOBBOBBOBBOB1", action == Action::"tunnel", resource)
    when { context.port == 5432 && context.hour >= 8 && context.hour < 18 }
    unless { ["saturday", "sunday"].contains(context.weekday) };
    @id("production-with-a-code")
    permit (principal == Principal::"111122223333/AIDABOBBOBBOBBOBBOB1", action == Action::"connect", resource)
    when { resource.hasTag("env") && resource.getTag("env") == "prod" && context.user == "deploy" }
    when { context.assurance == "aws-mfa-fresh" && context.mfa_age <= duration("1m") };
"#;

const AUDITORS: &str = r#"
    @id("auditors")
    permit (principal == Principal::"111122223333/AIDACAROLCAROLCAROL1", action in [Action::"audit_list", Action::"audit_play"], resource)
    when { context.source.isInRange(ip("10.0.0.0/8")) };
"#;

fn policies(texts: &[&str]) -> Policies {
    let files = texts.iter().enumerate();
    Policies::from_files(
        files
            .map(|(n, text)| (format!("{n}.cedar"), (*text).to_owned()))
            .collect(),
    )
    .unwrap()
}

fn target(name: &str, env: &str) -> Arc<Target> {
    Arc::new(Target {
        id: name.parse().unwrap(),
        name: name.to_owned(),
        tags: [("env".to_owned(), env.to_owned())].into(),
        account: Some("111122223333".to_owned()),
        region: Some("eu-central-1".to_owned()),
        vpc: None,
        zone: None,
        platform: "linux".to_owned(),
        address: "10.0.1.10".to_owned(),
        aliases: vec![],
        ssh_port: 22,
        login: TargetLogin::Certificate,
    })
}

fn who(name: &str) -> VerifiedPrincipal {
    let id = match name {
        "alice" => "AIDAALICEALICEALICE1",
        "bob" => "AIDABOBBOBBOBBOBBOB1",
        "carol" => "AIDACAROLCAROLCAROL1",
        other => panic!("no user {other}"),
    };
    Says {
        name,
        user_id: id,
        mfa_not_before: NOON.unix_timestamp() - 12 * 3600,
        serial: &format!("0a1b{}", name.len()),
        not_after: NOON.unix_timestamp() + 3600,
        ..Says::default()
    }
    .verified()
}

/// A Tuesday.
const NOON: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

/// `alice connect web-1 as root`, `bob tunnel db-1 port 5432 to HOST`, `carol audit_list`; then
/// optionally `from ADDRESS`, `at TIME`, `fresh`, `without-mfa`. Targets that start with `staging`
/// carry that tag, others `prod`.
fn ask(sentence: &str) -> Request {
    let mut words = sentence.split_whitespace();
    let who = who(words.next().unwrap());
    let action: Action = words.next().unwrap().parse().unwrap();
    let mut request = Request {
        assurance: who.assurance(),
        mfa_not_before: who.mfa_not_before(),
        who,
        action,
        target: None,
        source: "10.9.9.9".parse().unwrap(),
        user: None,
        port: None,
        host: None,
        now: NOON,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap();
        match word {
            "as" => request.user = Some(value().parse().unwrap()),
            "port" => request.port = Some(value().parse().unwrap()),
            "to" => request.host = Some(value().to_owned()),
            "from" => request.source = value().parse().unwrap(),
            "at" => request.now = at(value()),
            "fresh" => {
                request.assurance = Assurance::AwsMfaFresh;
                request.mfa_not_before = request.now.unix_timestamp();
            }
            "without-mfa" => request.assurance = Assurance::None,
            name => {
                let env = if name.starts_with("staging") {
                    "staging"
                } else {
                    "prod"
                };
                request.target = Some(target(name, env));
            }
        }
    }
    request
}

fn at(text: &str) -> OffsetDateTime {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]");
    time::PrimitiveDateTime::parse(text, format)
        .unwrap()
        .assume_utc()
}

/// `yes: POLICIES`, `code: POLICIES` or `no: POLICIES`.
fn answer(policies: &Policies, sentence: &str) -> String {
    match policies.decide(&ask(sentence)) {
        Decision::Allow(grant) => format!("yes: {}", grant.policies().join(" ")),
        Decision::StepUp { policies } => format!("code: {}", policies.join(" ")),
        Decision::Deny(no) => format!("no: {}", no.policies.join(" ")),
    }
}

fn denial(policies: &Policies, sentence: &str) -> Denial {
    match policies.decide(&ask(sentence)) {
        Decision::Deny(no) => no,
        other => panic!("{sentence}: {other:?}"),
    }
}

#[track_caller]
fn check(policies: &Policies, rows: &[(&str, &str)]) {
    for (sentence, expected) in rows {
        assert_eq!(
            answer(policies, sentence).trim_end(),
            *expected,
            "{sentence}"
        );
    }
}

#[test]
fn decisions_follow_the_policies() {
    check(
        &policies(&[OPERATORS, DEVELOPERS, AUDITORS]),
        &[
            ("alice connect web-1 as root", "yes: operators"),
            ("alice forward_agent web-1 as root", "yes: operators"),
            ("alice reverse web-1 as root port 8080", "yes: operators"),
            ("alice tunnel db-1 port 5432", "yes: operators-database"),
            ("alice tunnel db-1 port 22", "no:"),
            ("alice session_kill web-1", "yes: operators"),
            ("alice session_kill", "yes: operators"),
            ("alice session_watch web-1", "no:"),
            ("alice audit_list", "no:"),
            ("bob connect staging-1 as deploy", "yes: developers-staging"),
            ("bob connect staging-1 as ubuntu", "yes: developers-staging"),
            ("bob connect staging-1 as root", "no:"),
            ("bob connect web-1 as ubuntu", "no:"),
            (
                "bob connect web-1 as deploy",
                "code: production-with-a-code",
            ),
            (
                "bob connect web-1 as deploy fresh",
                "yes: production-with-a-code",
            ),
            ("bob connect web-1 as root fresh", "no:"),
            ("bob tunnel db-1 port 5432", "yes: office-hours"),
            ("bob tunnel db-1 port 5432 at 2026-11-24T07:59", "no:"),
            (
                "bob tunnel db-1 port 5432 at 2026-11-24T08:00",
                "yes: office-hours",
            ),
            (
                "bob tunnel db-1 port 5432 at 2026-11-24T17:59",
                "yes: office-hours",
            ),
            ("bob tunnel db-1 port 5432 at 2026-11-24T18:00", "no:"),
            (
                "bob tunnel db-1 port 5432 at 2026-11-27T12:00",
                "yes: office-hours",
            ),
            ("bob tunnel db-1 port 5432 at 2026-11-28T12:00", "no:"),
            ("bob tunnel db-1 port 5432 at 2026-11-29T12:00", "no:"),
            ("carol audit_list", "yes: auditors"),
            ("carol audit_play web-1", "yes: auditors"),
            ("carol audit_list from 192.0.2.7", "no:"),
            ("carol audit_list from ::ffff:10.1.2.3", "yes: auditors"),
            ("carol connect web-1 as root", "no:"),
        ],
    );
}

#[test]
fn nothing_is_allowed_without_policies() {
    let none = policies(&[]);
    assert!(none.is_empty());
    check(
        &none,
        &[
            ("alice connect web-1 as root", "no:"),
            ("alice audit_list", "no:"),
            ("alice connect web-1 as root fresh", "no:"),
        ],
    );
}

#[test]
fn hours_and_weekdays_are_utc_whatever_offset_the_clock_has() {
    let policies = policies(&[DEVELOPERS]);
    let mut request = ask("bob tunnel db-1 port 5432 at 2026-11-24T07:30");
    request.now = request.now.to_offset(time::macros::offset!(+5));
    assert!(matches!(policies.decide(&request), Decision::Deny(_)));
}

#[test]
fn a_policy_that_fails_to_evaluate_denies_everything_with_its_name() {
    let broken = r#"
        @id("overflows")
        permit (principal, action == Action::"tunnel", resource)
        when { context.port + 9223372036854775807 > 0 };
    "#;
    let policies = policies(&[OPERATORS, broken]);
    check(
        &policies,
        &[
            // `operators-database` alone would allow it, and Cedar would.
            ("alice tunnel db-1 port 5432", "no: overflows"),
            ("alice tunnel db-1 port 5432 fresh", "no: overflows"),
            // It is not evaluated for other actions.
            ("alice connect web-1 as root", "yes: operators"),
        ],
    );
    let no = denial(&policies, "alice tunnel db-1 port 5432");
    assert!(
        no.message.contains("`overflows` could not be evaluated"),
        "{}",
        no.message
    );
    assert_eq!(
        no.hint.as_deref(),
        Some("an administrator must mend 1.cedar line 2")
    );
}

#[test]
fn a_forbid_that_fails_to_evaluate_denies_too() {
    let broken = r#"
        @id("forbid-overflows")
        forbid (principal, action == Action::"connect", resource)
        when { context.hour + 9223372036854775807 > 0 };
    "#;
    let policies = policies(&[OPERATORS, broken]);
    check(
        &policies,
        &[("alice connect web-1 as root", "no: forbid-overflows")],
    );
}

#[test]
fn no_mfa_no_entry_whatever_policy_says() {
    let policies = policies(&[r#"@id("all") permit (principal, action, resource);"#]);
    check(&policies, &[("alice connect web-1 as root", "yes: all")]);
    check(
        &policies,
        &[("alice connect web-1 as root without-mfa", "no:")],
    );
    let mut request = ask("alice connect web-1 as root fresh");
    request.who = Says {
        assurance: Assurance::None,
        ..Says::default()
    }
    .verified();
    let Decision::Deny(no) = policies.decide(&request) else {
        panic!("a certificate without MFA was let in");
    };
    assert_eq!(no.hint.as_deref(), Some("postern login"));
}

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
fn a_permit_for_a_port_does_not_open_hosts_behind_the_target() {
    let policies = policies(&[OPERATORS]);
    check(
        &policies,
        &[
            ("alice tunnel web-1 port 5432 to payroll.internal", "no:"),
            (
                "alice tunnel web-1 port 5432 to DB.rds.amazonaws.com.",
                "yes: jump-to-rds",
            ),
            ("alice tunnel web-1 port 22 to db.rds.amazonaws.com", "no:"),
        ],
    );
    let no = denial(
        &policies,
        "alice tunnel web-1 port 5432 to payroll.internal",
    );
    assert!(no.hint.unwrap().contains("`context.host`"));
    let all = self::policies(&[r#"@id("all") permit (principal, action, resource);"#]);
    check(
        &all,
        &[("alice tunnel web-1 port 5432 to payroll.internal", "no:")],
    );
}

#[test]
fn a_request_that_lacks_what_its_action_needs_is_denied() {
    let all = policies(&[r#"@id("all") permit (principal, action, resource);"#]);
    for sentence in [
        "alice connect",
        "alice connect web-1",
        "alice tunnel web-1",
        "alice reverse web-1 port 1",
    ] {
        let no = denial(&all, sentence);
        assert!(
            no.message.starts_with("this request cannot be decided"),
            "{}",
            no.message
        );
    }
}

#[test]
fn a_recreated_user_is_not_let_in() {
    let mut request = ask("alice connect web-1 as root");
    request.who = Says {
        user_id: "AIDAALICEALICEALICE2",
        ..Says::default()
    }
    .verified();
    assert!(matches!(
        policies(&[OPERATORS]).decide(&request),
        Decision::Deny(_)
    ));
}

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

fn problems(text: &str) -> Vec<super::Problem> {
    let files = vec![
        ("good.cedar".to_owned(), OPERATORS.to_owned()),
        ("new.cedar".to_owned(), text.to_owned()),
    ];
    match Policies::from_files(files) {
        Err(PolicyError::Invalid(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_file_is_refused_with_file_line_and_hint() {
    let rows = [
        (
            "\n\npermit (principal, action, resource;",
            3,
            "unexpected token",
        ),
        ("\npermit (principal, action, resource);", 2, "has no @id"),
        (
            "@id(\"a b\")\npermit (principal, action, resource);",
            1,
            "this policy's @id",
        ),
        (
            "\n@id(\"operators\") permit (principal, action, resource);",
            2,
            "@id(\"operators\") is taken by good.cedar line 2",
        ),
        (
            "@id(\"x\") permit (principal, action == Action::\"conect\", resource);",
            1,
            "unrecognized action",
        ),
        (
            "@id(\"x\") permit (principal, action == Action::\"connect\", resource)\nwhen { context.usr == \"root\" };",
            2,
            "attribute `usr`",
        ),
        (
            "@id(\"x\") permit (principal, action, resource)\nwhen { context.user == \"root\" };",
            2,
            "attribute `user`",
        ),
        (
            "@id(\"x\") permit (principal, action == Action::\"connect\", resource)\nwhen { context.hour == \"8\" };",
            2,
            "types",
        ),
        (
            "@id(\"x\") permit (principal, action == Action::\"connect\", resource)\nwhen { resource.getTag(\"env\") == \"a\" };",
            2,
            "tag",
        ),
        (
            "@id(\"x\") permit (principal == ?principal, action, resource);",
            1,
            "template",
        ),
    ];
    for (text, line, message) in rows {
        let problems = problems(text);
        let problem = &problems[0];
        assert_eq!(problem.file, "new.cedar", "{text}: {problem}");
        assert_eq!(problem.line, line, "{text}: {problem}");
        assert!(problem.message.contains(message), "{text}: {problem}");
    }
    let hint = problems("@id(\"x\") permit (principal, action == Action::\"conect\", resource);");
    assert!(
        hint[0].hint.as_deref().unwrap().contains("connect"),
        "{hint:?}"
    );
}

#[test]
fn a_policy_that_can_never_hold_is_a_warning() {
    let text = r#"@id("never") permit (principal, action == Action::"connect", resource) when { 1 == 2 };"#;
    let policies = policies(&[text]);
    assert!(
        policies.warnings()[0].contains("never"),
        "{:?}",
        policies.warnings()
    );
}

#[test]
fn the_digest_is_of_names_and_contents() {
    let digest = |name: &str, text: &str| {
        let files = vec![(name.to_owned(), text.to_owned())];
        Policies::from_files(files).unwrap().digest().to_owned()
    };
    let first = digest("a.cedar", OPERATORS);
    assert_eq!(first, digest("a.cedar", OPERATORS));
    assert_eq!(first.len(), 64);
    assert_ne!(first, digest("b.cedar", OPERATORS));
    assert_ne!(first, digest("a.cedar", DEVELOPERS));
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
