//! The lab's AWS, judged by Amazon's own clients: botocore, boto3 and the `aws` command.

mod clients;
mod lookups;
mod sessions;
mod signatures;
mod simulation;

use std::time::Duration;

pub(crate) use clients::python;
use clients::{ATTEST, Keys, Lab, OPERATOR};
use serde_json::{Value, json};

fn denied(result: &Result<Keys, String>) -> bool {
    result.as_ref().err().map(String::as_str) == Some("AccessDenied")
}

#[tokio::test]
async fn the_cli_logs_in_with_a_code_assumes_a_role_and_looks_instances_up() {
    let lab = Lab::start().await;
    let serial = lab.aws.mfa_serial("alice");
    let code = lab.aws.unused_code("alice").expect("a code");
    let login = [
        "sts",
        "get-session-token",
        "--serial-number",
        &serial,
        "--token-code",
        &code,
    ];
    let alice = lab.keys("alice");
    let answer = lab.cli(&alice, &login).await.json();
    let session = Keys::read(&answer["Credentials"]);
    assert!(session.id.starts_with("ASIA"), "{}", session.id);
    assert!(
        lab.cli(&alice, &login).await.failed_with("AccessDenied"),
        "a code opens once"
    );

    let who = lab
        .cli(&session, &["sts", "get-caller-identity"])
        .await
        .json();
    assert_eq!(who["Arn"], "arn:aws:iam::111122223333:user/alice");
    let assume = [
        "sts",
        "assume-role",
        "--role-arn",
        OPERATOR,
        "--role-session-name",
        "alice-laptop",
    ];
    assert!(
        lab.cli(&alice, &assume).await.failed_with("AccessDenied"),
        "the role demands MFA"
    );
    let answer = lab.cli(&session, &assume).await.json();
    assert_eq!(
        answer["AssumedRoleUser"]["Arn"],
        "arn:aws:sts::111122223333:assumed-role/operator/alice-laptop"
    );
    let role = Keys::read(&answer["Credentials"]);
    let find = [
        "ec2",
        "describe-instances",
        "--filters",
        "Name=tag:Name,Values=web-1",
    ];
    let found = lab.cli(&role, &find).await.json();
    let instance = &found["Reservations"][0]["Instances"][0];
    assert_eq!(instance["PrivateIpAddress"], "127.20.0.11");
    assert_eq!(instance["State"]["Name"], "running");
    assert!(
        lab.cli(&session, &find)
            .await
            .failed_with("UnauthorizedOperation"),
        "alice herself may not"
    );
}

#[tokio::test]
async fn only_a_session_with_mfa_opens_the_attestation_role() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let long_term = lab.keys("alice");
    assert!(denied(&boto.assume(&long_term, ATTEST).await), "no MFA");
    let without = boto
        .session(&lab, "alice", None)
        .await
        .expect("a session without MFA");
    assert!(
        denied(&boto.assume(&without, ATTEST).await),
        "a session without MFA"
    );
    let with = boto.mfa_session(&lab, "alice").await;
    assert!(boto.assume(&with, ATTEST).await.is_ok());
    let role = boto
        .assume(&with, OPERATOR)
        .await
        .expect("the operator's role");
    assert!(
        denied(&boto.assume(&role, ATTEST).await),
        "a role session carries no MFA"
    );
    let carol = boto.mfa_session(&lab, "carol").await;
    assert!(
        denied(&boto.assume(&carol, ATTEST).await),
        "not allowed by her own policies"
    );

    let seen: Vec<(Value, bool)> = lab
        .aws
        .events_of("AssumeRole")
        .iter()
        .map(|event| {
            let attributes = &event["userIdentity"]["sessionContext"]["attributes"];
            (
                attributes["mfaAuthenticated"].clone(),
                event.get("errorCode").is_none(),
            )
        })
        .collect();
    let expected = [
        ("false", false),
        ("false", false),
        ("true", true),
        ("true", true),
        ("false", false),
        ("true", false),
    ];
    assert_eq!(seen, expected.map(|(mfa, ok)| (json!(mfa), ok)));
}

#[tokio::test]
async fn a_code_must_be_right_fresh_and_of_the_callers_own_device() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let code = lab.aws.unused_code("alice").expect("a code");
    let wrong = if code == "123456" { "654321" } else { "123456" };
    assert!(
        denied(&boto.session(&lab, "alice", Some(wrong)).await),
        "a wrong code"
    );
    let other_device = json!({"SerialNumber": lab.aws.mfa_serial("alice"), "TokenCode": code});
    let bob = lab.keys("bob");
    let result = boto
        .credentials(&bob, "get_session_token", other_device)
        .await;
    assert!(denied(&result), "another user's device");
    assert!(
        boto.session(&lab, "alice", Some(&code)).await.is_ok(),
        "it was not burnt by bob"
    );
    assert!(
        denied(&boto.session(&lab, "alice", Some(&code)).await),
        "reused"
    );
    let missing = json!({"SerialNumber": lab.aws.mfa_serial("nobody"), "TokenCode": "000000"});
    let result = boto.credentials(&bob, "get_session_token", missing).await;
    assert!(denied(&result), "no such device");
}

#[tokio::test]
async fn one_code_used_many_times_at_once_opens_one_session() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let code = lab.aws.unused_code("alice").expect("a code");
    let request = json!({"do": "race", "times": 8, "service": "sts",
        "operation": "get_session_token", "keys": lab.keys("alice").json(),
        "params": {"SerialNumber": lab.aws.mfa_serial("alice"), "TokenCode": code}});
    let answers = boto.ask(&request).await;
    let answers = answers["answers"].as_array().expect("a list");
    assert_eq!(answers.len(), 8);
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.get("ok").is_some())
            .count(),
        1
    );
}

#[tokio::test]
async fn step_up_signs_the_code_into_the_assume_role_call() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let alice = lab.keys("alice");
    let code = lab.aws.unused_code("alice").expect("a code");
    let deny_all = clients::document(&json!({"Effect": "Deny", "Action": "*", "Resource": "*"}));
    let step_up = json!({"RoleArn": ATTEST, "RoleSessionName": "bind", "DurationSeconds": 900,
        "Policy": deny_all, "SerialNumber": lab.aws.mfa_serial("alice"), "TokenCode": code});
    let answer = boto
        .call(&alice, "sts", "assume_role", step_up.clone())
        .await
        .expect("assumed");
    assert_eq!(
        answer["AssumedRoleUser"]["Arn"],
        "arn:aws:sts::111122223333:assumed-role/postern-attest/bind"
    );
    let again = boto.call(&alice, "sts", "assume_role", step_up).await;
    assert_eq!(again, Err("AccessDenied".into()));
    let events = lab.aws.events_of("AssumeRole");
    let mfa = &events[0]["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"];
    assert_eq!(mfa, "true");
    assert!(
        !events[0].to_string().contains(&code),
        "a code is never logged"
    );
}

#[tokio::test]
async fn a_session_is_refused_when_its_mfa_is_too_old_and_when_it_has_ended() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let session = boto.mfa_session(&lab, "alice").await;
    lab.aws
        .clock()
        .advance(Duration::from_secs(3_700).try_into().expect("in range"));
    boto.ask(&json!({"do": "set_skew", "seconds": 3_700})).await;
    assert!(
        denied(&boto.assume(&session, ATTEST).await),
        "older than the role's limit"
    );
    assert!(boto.assume(&session, OPERATOR).await.is_ok(), "but alive");
    assert!(lab.aws.expire_session(&session.id));
    let result = boto.assume(&session, OPERATOR).await;
    assert_eq!(result.err().as_deref(), Some("ExpiredToken"));
    let result = boto
        .call(&session, "ec2", "describe_regions", json!({}))
        .await;
    assert_eq!(result, Err("RequestExpired".into()));
    let result = boto
        .call(&session, "ssm", "describe_instance_information", json!({}))
        .await;
    assert_eq!(result, Err("ExpiredTokenException".into()));
}

#[tokio::test]
async fn session_credentials_reach_two_actions_of_sts_and_nothing_of_iam_without_mfa() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let without = boto.session(&lab, "reader", None).await.expect("a session");
    let result = boto
        .call(&without, "sts", "get_session_token", json!({}))
        .await;
    assert_eq!(result, Err("AccessDenied".into()));
    let info = json!({"AccessKeyId": without.id});
    let result = boto
        .call(&without, "sts", "get_access_key_info", info)
        .await;
    assert_eq!(result, Err("AccessDenied".into()));
    assert!(
        boto.call(&without, "sts", "get_caller_identity", json!({}))
            .await
            .is_ok()
    );
    let role = json!({"RoleName": "postern-attest"});
    let result = boto.call(&without, "iam", "get_role", role.clone()).await;
    assert_eq!(result, Err("InvalidClientTokenId".into()));
    let answer = boto
        .call(&lab.keys("reader"), "iam", "get_role", role)
        .await
        .expect("allowed");
    let condition = &answer["Role"]["AssumeRolePolicyDocument"]["Statement"]["Condition"];
    assert_eq!(condition["Bool"]["aws:MultiFactorAuthPresent"], "true");
}

#[tokio::test]
async fn an_mfa_device_is_enrolled_with_codes_that_another_implementation_made() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let seed = lab
        .aws
        .user("alice")
        .and_then(|user| user.totp_secret)
        .expect("a device");
    // Asked twice, so that a step that ends in between does not matter.
    let before = lab.aws.totp("alice");
    let theirs = boto.ask(&json!({"do": "totp", "seed": seed})).await["code"].clone();
    let after = lab.aws.totp("alice");
    assert!([before, after].contains(&theirs.as_str().map(str::to_owned)));

    let reader = lab.keys("reader");
    let name = json!({"VirtualMFADeviceName": "reader"});
    let created = boto
        .call(&reader, "iam", "create_virtual_mfa_device", name)
        .await
        .expect("created");
    let device = &created["VirtualMFADevice"];
    // boto3 undoes one base64, boto.py's JSON adds it again.
    let seed = device["Base32StringSeed"].as_str().expect("a seed");
    let seed = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, seed);
    let seed = String::from_utf8(seed.expect("base64")).expect("base32");
    let mut codes = Vec::new();
    for steps in [0, 1] {
        let request = json!({"do": "totp", "seed": seed, "steps": steps});
        codes.push(boto.ask(&request).await["code"].clone());
    }
    let enable = |first: &Value, second: &Value| {
        json!({"UserName": "reader", "SerialNumber": device["SerialNumber"],
            "AuthenticationCode1": first, "AuthenticationCode2": second})
    };
    let result = boto
        .call(
            &reader,
            "iam",
            "enable_mfa_device",
            enable(&codes[1], &codes[0]),
        )
        .await;
    assert_eq!(
        result,
        Err("InvalidAuthenticationCode".into()),
        "not consecutive"
    );
    boto.call(
        &reader,
        "iam",
        "enable_mfa_device",
        enable(&codes[0], &codes[1]),
    )
    .await
    .expect("enabled");
    let listed = boto
        .call(&reader, "iam", "list_mfa_devices", json!({}))
        .await
        .expect("listed");
    assert_eq!(
        listed["MFADevices"][0]["SerialNumber"],
        device["SerialNumber"]
    );
}
