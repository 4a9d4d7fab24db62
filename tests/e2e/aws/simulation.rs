//! IAM's simulation and the policies that a caller makes, as boto3 and the `aws` command see them.

use std::time::Duration;

use lab::aws::User;
use postern::iam::document::Document;
use postern::iam::shape::{Shape, Typed};
use serde_json::{Value, json};

use super::clients::{ACCOUNT, Boto, Keys, Lab, OPERATOR, REGION, WEB_1, allow, document};

const INSTANCE: &str = "arn:aws:ec2:eu-west-1:111122223333:instance/i-0123456789abcdef0";
const BUCKET: &str = "arn:aws:s3:::bucket";

fn user_arn(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:user/{name}")
}

/// dora may start sessions on staging, with MFA, from one network.
fn dora(lab: &Lab) {
    let policy = document(&json!([
        {"Effect": "Allow", "Action": "ssm:StartSession", "Resource": "arn:aws:ec2:*:*:instance/*",
         "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"},
            "StringEquals": {"ssm:resourceTag/env": "staging"},
            "IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}},
        {"Effect": "Deny", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Allow", "Action": "iam:GetUser", "Resource": "arn:aws:iam::*:user/${aws:username}"},
    ]));
    let dora = User::new("dora").with_policy("sessions", policy);
    lab.aws.put_user(dora).expect("a good policy");
}

fn entry(key: &str, kind: &str, value: &str) -> Value {
    json!({"ContextKeyName": key, "ContextKeyType": kind, "ContextKeyValues": [value]})
}

#[tokio::test]
async fn a_simulation_decides_as_the_engine_of_real_calls_and_tells_what_it_missed() {
    let lab = Lab::start().await;
    dora(&lab);
    let mut boto = lab.boto();
    let reader = lab.keys("reader");
    let context = |mfa: &str| {
        json!([
            entry("aws:MultiFactorAuthPresent", "boolean", mfa),
            entry("ssm:resourceTag/env", "string", "staging"),
            entry("aws:SourceIp", "ip", "203.0.113.9"),
        ])
    };
    let ask = |context: Value| {
        json!({"PolicySourceArn": user_arn("dora"), "ActionNames": ["ssm:StartSession", "s3:GetObject"],
            "ResourceArns": [INSTANCE, BUCKET], "ContextEntries": context})
    };
    let mut simulate = async |params: Value| {
        boto.call(&reader, "iam", "simulate_principal_policy", params)
            .await
            .expect("simulated")
    };
    let answer = simulate(ask(context("true"))).await;
    let results = answer["EvaluationResults"].as_array().expect("a list");
    // One result an action; what counts is inside.
    assert_eq!(results.len(), 2);
    let start = &results[0];
    assert_eq!(start["EvalActionName"], "ssm:StartSession");
    assert_eq!(
        start["EvalDecision"], "implicitDeny",
        "all of them together"
    );
    let on = |result: &Value, index: usize| result["ResourceSpecificResults"][index].clone();
    assert_eq!(on(start, 0)["EvalResourceName"], INSTANCE);
    assert_eq!(on(start, 0)["EvalResourceDecision"], "allowed");
    assert_eq!(
        on(start, 0)["MatchedStatements"][0]["SourcePolicyId"],
        "sessions"
    );
    assert_eq!(on(start, 1)["EvalResourceDecision"], "implicitDeny");
    assert_eq!(on(&results[1], 1)["EvalResourceDecision"], "explicitDeny");

    let answer = simulate(ask(context("false"))).await;
    assert_eq!(
        on(&answer["EvaluationResults"][0], 0)["EvalResourceDecision"],
        "implicitDeny"
    );

    let nothing = simulate(ask(json!([]))).await;
    let missing = &on(&nothing["EvaluationResults"][0], 0)["MissingContextValues"];
    let expected = [
        "aws:MultiFactorAuthPresent",
        "aws:SourceIp",
        "ssm:resourceTag/env",
    ];
    assert_eq!(*missing, json!(expected));

    // A variable of the user's own is known without being given.
    let own = json!({"PolicySourceArn": user_arn("dora"), "ActionNames": ["iam:GetUser"],
        "ResourceArns": [user_arn("dora"), user_arn("alice")]});
    let own = simulate(own).await;
    assert_eq!(
        on(&own["EvaluationResults"][0], 0)["EvalResourceDecision"],
        "allowed"
    );
    assert_eq!(
        on(&own["EvaluationResults"][0], 1)["EvalResourceDecision"],
        "implicitDeny"
    );
    let pages = json!({"do": "call", "service": "iam", "operation": "simulate_principal_policy",
        "pages": true, "keys": reader.json(), "params": {"PolicySourceArn": OPERATOR,
            "ActionNames": ["ec2:RunInstances", "ec2:StopInstances", "iam:GetUser"],
            "PaginationConfig": {"PageSize": 1}}});
    let pages = boto.ask(&pages).await["pages"].take();
    let decisions: Vec<Value> = pages
        .as_array()
        .expect("pages")
        .iter()
        .map(|page| page["EvaluationResults"][0]["EvalDecision"].clone())
        .collect();
    assert_eq!(decisions, ["allowed", "allowed", "implicitDeny"]);
}

#[tokio::test]
async fn who_may_not_ask_learns_nothing_and_nobody_is_invented() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let ask = |arn: &str| json!({"PolicySourceArn": arn, "ActionNames": ["ssm:StartSession"]});
    let mut simulate = async |user: &str, arn: &str| {
        let keys = lab.keys(user);
        let answer = boto
            .call(&keys, "iam", "simulate_principal_policy", ask(arn))
            .await;
        answer.err()
    };
    let denied = Some("AccessDenied".to_owned());
    assert_eq!(simulate("carol", &user_arn("alice")).await, denied);
    let nobody = Some("NoSuchEntity".to_owned());
    assert_eq!(simulate("reader", &user_arn("nobody")).await, nobody);
    let role = format!("arn:aws:iam::{ACCOUNT}:role/nobody");
    assert_eq!(simulate("reader", &role).await, nobody);
    let mut list = async |operation| {
        boto.call(&lab.keys("carol"), "iam", operation, json!({}))
            .await
    };
    assert_eq!(list("list_users").await.err(), denied);
    assert_eq!(list("list_roles").await.err(), denied);
}

#[tokio::test]
async fn users_and_roles_come_in_pages_that_a_paginator_joins() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let mut names = async |operation: &str, list: &str, name: &str| {
        let request = json!({"do": "call", "service": "iam", "operation": operation, "pages": true,
            "keys": lab.keys("reader").json(), "params": {"PaginationConfig": {"PageSize": 1}}});
        let pages = boto.ask(&request).await["pages"].take();
        let pages = pages.as_array().expect("pages").clone();
        let one = |page: &Value| page[list][0][name].as_str().expect("a name").to_owned();
        pages.iter().map(one).collect::<Vec<_>>()
    };
    let users = names("list_users", "Users", "UserName").await;
    assert_eq!(users, ["alice", "bob", "carol", "reader"]);
    let roles = names("list_roles", "Roles", "RoleName").await;
    assert_eq!(roles, ["operator", "postern-attest"]);
}

#[tokio::test]
async fn the_cli_makes_and_attaches_policies_that_then_count() {
    let lab = Lab::start().await;
    let reader = lab.keys("reader");
    let carol = lab.keys("carol");
    let look = ["ec2", "describe-instances"];
    assert!(
        lab.cli(&carol, &look)
            .await
            .failed_with("UnauthorizedOperation")
    );
    let good =
        document(&json!({"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"}));
    let made = create(&lab, &reader, "look", &good).await.json();
    let arn = made["Policy"]["Arn"].as_str().expect("an ARN");
    assert_eq!(arn, "arn:aws:iam::111122223333:policy/look");
    let attach = [
        "iam",
        "attach-user-policy",
        "--user-name",
        "carol",
        "--policy-arn",
        arn,
    ];
    assert_eq!(lab.cli(&reader, &attach).await.status, 0);
    lab.cli(&carol, &look).await.json();

    assert!(
        create(&lab, &reader, "look", &good)
            .await
            .failed_with("EntityAlreadyExists")
    );
    let bad = document(&json!({"Effect": "Allow", "Action": "ec2:DescribeInstances"}));
    assert!(
        create(&lab, &reader, "bad", &bad)
            .await
            .failed_with("MalformedPolicyDocument")
    );
    let action = "ec2:DescribeInstances".repeat(400);
    let long = document(&json!({"Effect": "Allow", "Action": action, "Resource": "*"}));
    assert!(
        create(&lab, &reader, "long", &long)
            .await
            .failed_with("LimitExceeded")
    );
    assert!(
        create(&lab, &carol, "mine", &good)
            .await
            .failed_with("AccessDenied")
    );
}

async fn create(lab: &Lab, keys: &Keys, name: &str, document: &str) -> super::clients::Finished {
    let file = lab.path(&format!("{name}.json"));
    std::fs::write(&file, document).expect("written");
    let file = format!("file://{}", file.display());
    let arguments = [
        "iam",
        "create-policy",
        "--policy-name",
        name,
        "--policy-document",
        &file,
    ];
    lab.cli(keys, &arguments).await
}

const SHELL: &str = "SSM-SessionManagerRunShell";
/// Not tagged `env`.
const WORKER: &str = "i-00000000000000001";

/// Sessions on production, with MFA of an hour.
fn production() -> Shape {
    Shape::new(Typed {
        account: ACCOUNT.to_owned(),
        regions: vec![REGION.to_owned()],
        tags: vec!["env=production".to_owned()],
        recorded: vec!["env=production".to_owned()],
        max_age: Duration::from_secs(3_600),
        ..Typed::default()
    })
    .expect("a good shape")
}

/// Makes a policy of what Postern prints, and attaches it.
async fn attach(lab: &Lab, kind: &str, who: &str, name: &str, document: &str) {
    let reader = lab.keys("reader");
    let made = create(lab, &reader, name, document).await;
    // Somebody else may have it already.
    assert!(
        made.status == 0 || made.failed_with("EntityAlreadyExists"),
        "{made:?}"
    );
    let action = format!("attach-{kind}-policy");
    let option = format!("--{kind}-name");
    let arn = format!("arn:aws:iam::{ACCOUNT}:policy/{name}");
    let attached = lab
        .cli(
            &reader,
            &["iam", &action, &option, who, "--policy-arn", &arn],
        )
        .await;
    assert_eq!(attached.status, 0, "{attached:?}");
}

fn text(document: Result<Document, postern::iam::PolicyError>) -> String {
    serde_json::to_string(&document.expect("not too long")).expect("JSON")
}

async fn start(
    boto: &mut Boto,
    keys: &Keys,
    target: &str,
    document: Option<&str>,
) -> Result<String, String> {
    let mut params = json!({"Target": target});
    if let Some(document) = document {
        params["DocumentName"] = document.into();
    }
    let answer = boto.call(keys, "ssm", "start_session", params).await?;
    Ok(answer["SessionId"].as_str().expect("an id").to_owned())
}

fn refused<T: std::fmt::Debug>(result: Result<T, String>) {
    assert_eq!(result.err().as_deref(), Some("AccessDeniedException"));
}

#[tokio::test]
async fn people_with_the_printed_policy_start_sessions_with_mfa_and_not_without() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let operators = text(Document::operators(&production()));
    for who in ["alice", "bob"] {
        attach(&lab, "user", who, "operators", &operators).await;
    }
    // Whatever else allows: the Deny outweighs it.
    attach(
        &lab,
        "user",
        "alice",
        "broad",
        &allow(&["ssm:StartSession"], "*"),
    )
    .await;
    let alice = lab.keys("alice");
    refused(start(&mut boto, &alice, WEB_1, Some(SHELL)).await);
    let without = boto.session(&lab, "alice", None).await.expect("a session");
    refused(start(&mut boto, &without, WEB_1, Some(SHELL)).await);
    refused(start(&mut boto, &without, WEB_1, None).await);

    let bob = boto.mfa_session(&lab, "bob").await;
    let own = start(&mut boto, &bob, WEB_1, Some(SHELL))
        .await
        .expect("allowed");
    start(&mut boto, &bob, WEB_1, None)
        .await
        .expect("the default is one of the documents");
    start(&mut boto, &bob, WEB_1, Some("AWS-StartSSHSession"))
        .await
        .expect("allowed");
    refused(start(&mut boto, &bob, WORKER, Some(SHELL)).await);
    for other in ["AWS-StartPortForwardingSessionToSocket", "Our-Own-Document"] {
        refused(start(&mut boto, &bob, WEB_1, Some(other)).await);
    }

    // Sessions of one's own, by their owner's tag and not by their name.
    let id = |session: &str| json!({"SessionId": session});
    let mfa = boto.mfa_session(&lab, "alice").await;
    let hers = start(&mut boto, &mfa, WEB_1, Some(SHELL))
        .await
        .expect("allowed");
    for operation in ["resume_session", "terminate_session"] {
        refused(boto.call(&mfa, "ssm", operation, id(&own)).await);
        refused(boto.call(&bob, "ssm", operation, id(&hers)).await);
    }
    boto.call(&bob, "ssm", "resume_session", id(&own))
        .await
        .expect("his own");

    // An hour later nothing begins, and what runs goes on and can be ended.
    lab.aws.clock().advance(time::Duration::seconds(3_601));
    boto.ask(&json!({"do": "set_skew", "seconds": 3_601})).await;
    refused(start(&mut boto, &bob, WEB_1, Some(SHELL)).await);
    refused(start(&mut boto, &mfa, WEB_1, Some(SHELL)).await);
    for operation in ["resume_session", "terminate_session"] {
        boto.call(&bob, "ssm", operation, id(&own))
            .await
            .expect("his own");
    }
}

#[tokio::test]
async fn a_role_session_starts_with_the_policy_for_roles_and_not_with_that_for_users() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let role = text(Document::operators_role(&production()));
    attach(&lab, "role", "operator", "operators-role", &role).await;
    // The role's trust policy demands MFA.
    let long_term = lab.keys("alice");
    assert!(boto.assume(&long_term, OPERATOR).await.is_err());
    let mfa = boto.mfa_session(&lab, "alice").await;
    let session = boto.assume(&mfa, OPERATOR).await.expect("assumed");
    let own = start(&mut boto, &session, WEB_1, Some(SHELL))
        .await
        .expect("allowed");
    refused(start(&mut boto, &session, WORKER, Some(SHELL)).await);
    let id = json!({"SessionId": own});
    boto.call(&session, "ssm", "terminate_session", id)
        .await
        .expect("its own");

    // Where the agent must record, SSM is shut.
    let recorded = text(Document::recorded(&production()));
    attach(&lab, "role", "operator", "recorded", &recorded).await;
    refused(start(&mut boto, &session, WEB_1, Some(SHELL)).await);

    // No role session carries MFA: a policy that asks for it there lets nobody in.
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let users = text(Document::operators(&production()));
    attach(&lab, "role", "operator", "operators", &users).await;
    let mfa = boto.mfa_session(&lab, "alice").await;
    let session = boto.assume(&mfa, OPERATOR).await.expect("assumed");
    refused(start(&mut boto, &session, WEB_1, Some(SHELL)).await);
}
