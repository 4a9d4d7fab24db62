//! What AWS, the account and the target can refuse on the SSM route: the message, the next step and the exit code.

use lab::account::{HOSTS, SESSION_KEY};
use lab::aws::{Fault, FaultRule, Service};
use lab::ssm::SessionDocument;
use lab::stack::Lab;
use serde_json::{Value, json};

use crate::harness::{Told, lab, postern};

const PREFERENCES: &str = "SSM-SessionManagerRunShell";
const COMMAND: [&str; 6] = ["connect", "--via", "ssm", "app-1", "--", "true"];
const SHELL: [&str; 4] = ["connect", "--via", "ssm", "app-1"];
const SSH: [&str; 5] = ["connect", "--via", "ssm", "--ssh", "app-1"];

/// What a failure looks like to people and to programs.
struct Expected<'a> {
    kind: &'a str,
    /// Of commands that return no remote status.
    exit: i32,
    says: &'a [&'a str],
    hint: &'a str,
}

/// The JSON form of the error that a command ended with.
#[track_caller]
fn error(told: &Told) -> Value {
    let line = told.stderr.lines().last().unwrap_or_default();
    let said: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{}", told.stderr));
    said["error"].clone()
}

/// Demands it of `connect`, which ends with 255, and of `forward`, whose exit code tells the kind.
async fn all_refuse(lab: &Lab, connect: &[&str], expected: Expected<'_>) {
    let forward = ["forward", "--via", "ssm", "app-1", "0:5432"];
    refuses(lab, &forward, expected.exit, &expected).await;
    refuses(lab, connect, 255, &expected).await;
}

async fn refuses(lab: &Lab, arguments: &[&str], exit: i32, expected: &Expected<'_>) {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let told = postern(lab, &all).await;
    let error = error(&told);
    assert_eq!(told.status, Some(exit), "{error}");
    assert_eq!(error["exit"], exit, "{error}");
    assert_eq!(error["kind"], expected.kind, "{error}");
    let message = error["message"].as_str().unwrap();
    for part in expected.says {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(
        hint.contains(expected.hint),
        "no `{}` in {hint}",
        expected.hint
    );
}

/// The next call of StartSession is answered with this.
fn start_fails(lab: &Lab, code: &str, message: &str) {
    lab.aws.clear_faults();
    lab.aws.inject(FaultRule {
        service: Service::Ssm,
        action: Some("StartSession".to_owned()),
        times: None,
        fault: Fault::Error {
            status: 400,
            code: code.to_owned(),
            message: message.to_owned(),
        },
    });
}

/// Gives alice this policy alone, beside what the agent asks for, and a new session: the old one went with the old
/// policies.
async fn only(lab: &Lab, statements: &Value) {
    let mut user = lab.aws.user("alice").unwrap();
    let policy = json!({"Version": "2012-10-17", "Statement": statements});
    user.policies.retain(|(name, _)| name == "attest");
    user.policies.push(("only".to_owned(), policy.to_string()));
    lab.aws.put_user(user).unwrap();
    postern(lab, &["login"]).await.status(0);
}

#[tokio::test]
async fn a_target_that_is_away_unknown_or_too_old_is_told_with_its_exit_code() {
    let lab = lab().await;
    let id = HOSTS[1].id;
    start_fails(
        &lab,
        "TargetNotConnected",
        &format!("{id} is not connected."),
    );
    let not_connected = Expected {
        kind: "unreachable",
        exit: 3,
        says: &[id, "is not connected to SSM"],
        hint: "AmazonSSMManagedInstanceCore",
    };
    all_refuse(&lab, &COMMAND, not_connected).await;
    start_fails(
        &lab,
        "InvalidDocument",
        "Document with name X does not exist.",
    );
    let no_document = Expected {
        kind: "failed",
        exit: 1,
        says: &[
            "cannot run StartSession",
            "Document with name X does not exist.",
        ],
        hint: "no such SSM document",
    };
    all_refuse(&lab, &SHELL, no_document).await;
    lab.aws.clear_faults();

    let unmanaged = Expected {
        kind: "unreachable",
        exit: 3,
        says: &["SSM manages no target `db-1`"],
        hint: "postern ls --via ssm",
    };
    refuses(
        &lab,
        &["forward", "--via", "ssm", "db-1", "0:5432"],
        3,
        &unmanaged,
    )
    .await;
    refuses(&lab, &["connect", "--via", "ssm", "db-1"], 255, &unmanaged).await;

    let old = |says| Expected {
        kind: "failed",
        exit: 1,
        says,
        hint: "AWS-UpdateSSMAgent",
    };
    assert!(lab.aws.set_ssm_agent_version(id, "2.3.50.0"));
    let tunnels = &["(version 2.3.50.0) is too old for tunnels"];
    all_refuse(&lab, &SSH, old(tunnels)).await;
    refuses(
        &lab,
        &COMMAND,
        255,
        &old(&["is too old for commands without a terminal"]),
    )
    .await;
    assert!(lab.aws.set_ssm_agent_version(id, "3.1.1000.0"));
    let remote = ["forward", "--via", "ssm", "app-1", "0:db-1:5432"];
    refuses(
        &lab,
        &remote,
        1,
        &old(&["is too old for tunnels to hosts behind it"]),
    )
    .await;
    postern(&lab, &COMMAND).await.status(0);

    assert!(lab.ssm.vanish("app-1"));
    let offline = Expected {
        kind: "unreachable",
        exit: 3,
        says: &[
            "the SSM Agent of app-1",
            "is not connected to AWS (ConnectionLost)",
        ],
        hint: "check that the instance runs",
    };
    all_refuse(&lab, &COMMAND, offline).await;
    assert_eq!(lab.aws.sessions(), Vec::<String>::new());
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn what_iam_the_quota_or_the_key_refuses_is_told_with_its_exit_code() {
    let lab = lab().await;
    // Where the evidence goes is told once, before the first of all.
    postern(&lab, &COMMAND).await.status(0);
    lab.aws.change_knobs(|knobs| knobs.session_limit = Some(0));
    let limit = Expected {
        kind: "failed",
        exit: 1,
        says: &["too many sessions (SessionLimitExceededException)"],
        hint: "end sessions that nobody uses",
    };
    all_refuse(&lab, &COMMAND, limit).await;
    lab.aws.change_knobs(|knobs| knobs.session_limit = None);

    // The account encrypts its sessions, and the key is switched off.
    let alias = format!("alias/{SESSION_KEY}");
    lab.aws
        .put_document(SessionDocument::encrypted_shell(PREFERENCES, &alias));
    assert!(lab.aws.enable_key(&alias, false));
    let key = |says| Expected {
        kind: "denied",
        exit: 1,
        says,
        hint: "kms:GenerateDataKey",
    };
    let disabled = ["the KMS key `", "cannot be used: ", "DisabledException"];
    refuses(&lab, &SHELL, 255, &key(&disabled)).await;
    assert!(lab.aws.enable_key(&alias, true));

    let look = json!({"Effect": "Allow", "Action": ["ssm:Describe*", "ssm:GetConnectionStatus"], "Resource": "*"});
    let sessions = json!({"Effect": "Allow", "Action": "ssm:*Session", "Resource": "*"});
    only(&lab, &json!([look, sessions])).await;
    let forbidden = ["the KMS key `", "kms:GenerateDataKey", "AccessDenied"];
    refuses(&lab, &SHELL, 255, &key(&forbidden)).await;

    only(&lab, &json!([look])).await;
    let denied = Expected {
        kind: "denied",
        exit: 1,
        says: &[
            "refused StartSession",
            "not authorized to perform: ssm:StartSession",
        ],
        hint: "postern policy iam",
    };
    all_refuse(&lab, &COMMAND, denied).await;

    let young = json!({"Effect": "Deny", "Action": "ssm:StartSession", "Resource": "*",
        "Condition": {"NumericGreaterThan": {"aws:MultiFactorAuthAge": "60"}}});
    only(&lab, &json!([look, sessions, young])).await;
    postern(&lab, &COMMAND).await.status(0);
    lab.aws.clock().advance(time::Duration::minutes(2));
    let old = Expected {
        kind: "denied",
        exit: 1,
        says: &["refused StartSession", "explicit deny"],
        hint: "Where it wants a younger MFA than yours: postern login",
    };
    all_refuse(&lab, &COMMAND, old).await;
    lab.aws.clock().set_offset(time::Duration::ZERO);

    lab.aws.expire_sessions_of("alice");
    let expired = Expected {
        kind: "login_needed",
        exit: 4,
        says: &["MFA session of profile `alice`"],
        hint: "postern login",
    };
    all_refuse(&lab, &COMMAND, expired).await;
    lab.stop().await.unwrap();
}
