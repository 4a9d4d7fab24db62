//! IAM's simulation and the policies that a caller makes, as boto3 and the `aws` command see them.

use lab::aws::User;
use serde_json::{Value, json};

use super::clients::{ACCOUNT, Keys, Lab, OPERATOR, document};

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
