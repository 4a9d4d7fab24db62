//! Decisions, as sentences.

mod bars;
mod explain;
mod load;
mod step_up;

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
