//! Policy files, good and bad.

use super::*;
use crate::policy::Problem;

fn problems(text: &str) -> Vec<Problem> {
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
