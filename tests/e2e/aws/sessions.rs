//! SSM's session calls and KMS, judged by boto3: who may start what, and what AWS says otherwise.

use lab::aws::{Fault, FaultRule, Service, User};
use lab::ssm::Side;
use serde_json::{Value, json};

use super::clients::{Boto, Keys, Lab, WEB_1, allow, document};

const WORKER: &str = "i-00000000000000001";

/// dora may do everything, with MFA; eve may use named documents on production alone.
async fn lab() -> (Lab, Boto, Keys) {
    let lab = Lab::start().await;
    let mfa = json!({"Bool": {"aws:MultiFactorAuthPresent": "true"}});
    let all = json!({"Effect": "Allow", "Action": ["ssm:StartSession", "ssm:DescribeSessions",
        "ssm:GetDocument", "kms:*"], "Resource": "*", "Condition": mfa});
    let own = json!({"Effect": "Allow", "Action": ["ssm:ResumeSession", "ssm:TerminateSession"],
        "Resource": "arn:aws:ssm:*:*:session/${aws:username}-*"});
    let dora = User::new("dora").with_policy("all", document(&json!([all, own])));
    lab.aws.put_user(dora).expect("a user");
    let mut boto = lab.boto();
    let keys = boto.mfa_session(&lab, "dora").await;
    (lab, boto, keys)
}

async fn start(boto: &mut Boto, keys: &Keys, params: Value) -> Result<Value, String> {
    boto.call(keys, "ssm", "start_session", params).await
}

fn id(session: &Value) -> Value {
    json!({"SessionId": session["SessionId"]})
}

#[tokio::test]
async fn a_session_needs_mfa_and_leave_for_its_instance_and_its_document() {
    let (lab, mut boto, keys) = lab().await;
    let target = json!({"Target": WEB_1});
    let denied = Err("AccessDeniedException".to_owned());
    let long_term = lab.keys("dora");
    assert_eq!(start(&mut boto, &long_term, target.clone()).await, denied);
    let session = start(&mut boto, &keys, target.clone()).await.expect("MFA");
    let session_id = session["SessionId"].as_str().expect("an id");
    let suffix = session_id.strip_prefix("dora-").expect(session_id);
    assert!(suffix.len() == 17 && suffix.chars().all(|c| c.is_ascii_hexdigit()));
    let url = format!(
        "wss://{}/v1/data-channel/{session_id}?role=publish_subscribe",
        lab.aws.gateway_address()
    );
    assert_eq!(session["StreamUrl"], url.as_str());

    let instances = json!({"Effect": "Allow", "Action": "ssm:StartSession",
        "Resource": "arn:aws:ec2:*:*:instance/*",
        "Condition": {"StringEquals": {"ssm:resourceTag/env": "production"}}});
    let documents = json!({"Effect": "Allow", "Action": "ssm:StartSession",
        "Resource": "arn:aws:ssm:*::document/AWS-StartSSHSession"});
    let eve = User::new("eve").with_policy("some", document(&json!([instances, documents])));
    lab.aws.put_user(eve).expect("a user");
    let eve = lab.keys("eve");
    assert!(start(&mut boto, &eve, target).await.is_ok());
    let worker = json!({"Target": WORKER});
    assert_eq!(start(&mut boto, &eve, worker).await, denied);
    let with = |name: &str| json!({"Target": WEB_1, "DocumentName": name});
    assert!(
        start(&mut boto, &eve, with("AWS-StartSSHSession"))
            .await
            .is_ok()
    );
    let forward = with("AWS-StartPortForwardingSession");
    assert_eq!(start(&mut boto, &eve, forward).await, denied);

    // The access check makes the default document count too.
    let mut checked = instances;
    checked["Condition"]["BoolIfExists"] = json!({"ssm:SessionDocumentAccessCheck": "true"});
    let fay = User::new("fay").with_policy("some", document(&json!([checked, documents])));
    lab.aws.put_user(fay).expect("a user");
    let fay = lab.keys("fay");
    assert_eq!(
        start(&mut boto, &fay, json!({"Target": WEB_1})).await,
        denied
    );
    assert!(
        start(&mut boto, &fay, with("AWS-StartSSHSession"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn sessions_are_resumed_and_ended_by_their_owner_alone() {
    let (lab, mut boto, keys) = lab().await;
    let params = json!({"Target": WEB_1, "Reason": "because"});
    let session = start(&mut boto, &keys, params).await.expect("a session");
    let resumed = boto
        .call(&keys, "ssm", "resume_session", id(&session))
        .await;
    let resumed = resumed.expect("a token");
    assert_eq!(resumed["StreamUrl"], session["StreamUrl"]);
    assert_ne!(resumed["TokenValue"], session["TokenValue"]);

    let other = allow(
        &["ssm:ResumeSession", "ssm:TerminateSession"],
        "arn:aws:ssm:*:*:session/${aws:username}-*",
    );
    lab.aws
        .put_user(User::new("eve").with_policy("own", other))
        .expect("a user");
    for operation in ["resume_session", "terminate_session"] {
        let answer = boto
            .call(&lab.keys("eve"), "ssm", operation, id(&session))
            .await;
        assert_eq!(
            answer,
            Err("AccessDeniedException".to_owned()),
            "{operation}"
        );
    }

    // By the tag that AWS puts on sessions, and not by their name.
    let tagged = json!({"Effect": "Allow", "Action": "ssm:ResumeSession", "Resource": "*",
        "Condition": {"StringEquals": {"ssm:resourceTag/aws:ssmmessages:session-id": "${aws:userid}"}}});
    let eve = lab.aws.user("eve").expect("a user");
    lab.aws
        .put_user(eve.with_policy("tagged", document(&tagged)))
        .expect("a user");
    let answer = boto
        .call(&lab.keys("eve"), "ssm", "resume_session", id(&session))
        .await;
    assert_eq!(answer, Err("AccessDeniedException".to_owned()));

    let list = |state: &str| json!({"State": state, "Filters": [{"key": "Owner", "value": "arn:aws:iam::111122223333:user/dora"}]});
    let active = boto
        .call(&keys, "ssm", "describe_sessions", list("Active"))
        .await;
    let active = active.expect("a list");
    let listed = &active["Sessions"][0];
    assert_eq!(listed["SessionId"], session["SessionId"]);
    assert_eq!(
        (
            &listed["Status"],
            &listed["Reason"],
            &listed["DocumentName"]
        ),
        (
            &json!("Connecting"),
            &json!("because"),
            &json!("SSM-SessionManagerRunShell")
        )
    );
    let ended = boto
        .call(&keys, "ssm", "terminate_session", id(&session))
        .await;
    assert!(ended.is_ok(), "{ended:?}");
    let active = boto
        .call(&keys, "ssm", "describe_sessions", list("Active"))
        .await;
    assert_eq!(active.expect("a list")["Sessions"], json!([]));
    let history = boto
        .call(&keys, "ssm", "describe_sessions", list("History"))
        .await;
    assert_eq!(
        history.expect("a list")["Sessions"][0]["Status"],
        "Terminated"
    );
    // It is known still, and has no token any more.
    let resumed = boto
        .call(&keys, "ssm", "resume_session", id(&session))
        .await;
    assert_eq!(resumed.expect("an answer")["TokenValue"], Value::Null);
    let unknown = json!({"SessionId": "dora-0123456789abcdef0"});
    let resumed = boto.call(&keys, "ssm", "resume_session", unknown).await;
    assert_eq!(resumed, Err("DoesNotExistException".to_owned()));
    assert_eq!(lab.aws.cut(Side::Client, lab::ssm::Cut::Close, None), 0);
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_in_the_words_of_aws() {
    let (lab, mut boto, keys) = lab().await;
    let ssh = |port: &str| json!({"Target": WEB_1, "DocumentName": "AWS-StartSSHSession", "Parameters": {"portNumber": [port]}});
    for (params, code) in [
        (
            json!({"Target": "i-0ffffffffffffffff"}),
            "TargetNotConnected",
        ),
        (
            json!({"Target": WEB_1, "DocumentName": "No-Such"}),
            "InvalidDocument",
        ),
        (ssh("0"), "InvalidParameters"),
        (
            json!({"Target": WEB_1, "Parameters": {"command": ["id"]}}),
            "InvalidParameters",
        ),
        (
            json!({"Target": WEB_1, "DocumentName": "AWS-StartInteractiveCommand"}),
            "InvalidParameters",
        ),
    ] {
        let refused = start(&mut boto, &keys, params.clone()).await;
        assert_eq!(refused, Err(code.to_owned()), "{params}");
    }
    lab.aws.set_ssm_online(WEB_1, false);
    let target = json!({"Target": WEB_1});
    let offline = start(&mut boto, &keys, target.clone()).await;
    assert_eq!(offline, Err("TargetNotConnected".to_owned()));
    lab.aws.set_ssm_online(WEB_1, true);

    lab.aws.change_knobs(|knobs| knobs.session_limit = Some(1));
    assert!(start(&mut boto, &keys, target.clone()).await.is_ok());
    let limited = start(&mut boto, &keys, target.clone()).await;
    assert_eq!(limited, Err("SessionLimitExceededException".to_owned()));
    lab.aws.change_knobs(|knobs| knobs.session_limit = None);

    let throttled = Fault::Error {
        status: 400,
        code: "ThrottlingException".to_owned(),
        message: "Rate exceeded".to_owned(),
    };
    lab.aws
        .inject(FaultRule::once(Service::Ssm, "StartSession", throttled));
    let refused = start(&mut boto, &keys, target.clone()).await;
    assert_eq!(refused, Err("ThrottlingException".to_owned()));
    assert!(start(&mut boto, &keys, target.clone()).await.is_ok());
    lab.aws.expire_sessions_of("dora");
    let expired = start(&mut boto, &keys, target).await;
    assert_eq!(expired, Err("ExpiredTokenException".to_owned()));
}

#[tokio::test]
async fn documents_of_sessions_can_be_read() {
    let (_lab, mut boto, keys) = lab().await;
    for (name, kind) in [
        ("SSM-SessionManagerRunShell", "Standard_Stream"),
        ("AWS-StartSSHSession", "Port"),
        ("AWS-StartPortForwardingSession", "Port"),
        ("AWS-StartPortForwardingSessionToRemoteHost", "Port"),
        ("AWS-StartInteractiveCommand", "InteractiveCommands"),
        ("AWS-StartNonInteractiveCommand", "NonInteractiveCommands"),
    ] {
        let got = boto
            .call(&keys, "ssm", "get_document", json!({"Name": name}))
            .await;
        let got = got.expect(name);
        let content: Value =
            serde_json::from_str(got["Content"].as_str().expect("text")).expect("JSON");
        assert_eq!(
            (&got["DocumentType"], &content["sessionType"]),
            (&json!("Session"), &json!(kind))
        );
    }
    let unknown = boto
        .call(&keys, "ssm", "get_document", json!({"Name": "AWS-Nothing"}))
        .await;
    assert_eq!(unknown, Err("InvalidDocument".to_owned()));
}

#[tokio::test]
async fn data_keys_are_bound_to_their_context_and_to_a_living_key() {
    let (lab, mut boto, keys) = lab().await;
    let context = json!({"aws:ssm:SessionId": "dora-1", "aws:ssm:TargetId": WEB_1});
    let generate =
        |key: &str| json!({"KeyId": key, "NumberOfBytes": 64, "EncryptionContext": context});
    let made = boto
        .call(
            &keys,
            "kms",
            "generate_data_key",
            generate("alias/sessions"),
        )
        .await;
    let made = made.expect("a data key");
    // boto.py tells bytes as base64.
    assert_eq!(made["Plaintext"].as_str().map(str::len), Some(88));
    assert_eq!(
        made["CiphertextBlob"].as_str().map(|text| text.len() > 100),
        Some(true)
    );
    let unknown = boto
        .call(&keys, "kms", "generate_data_key", generate("alias/other"))
        .await;
    assert_eq!(unknown, Err("NotFoundException".to_owned()));
    let denied = boto
        .call(
            &lab.keys("dora"),
            "kms",
            "generate_data_key",
            generate("alias/sessions"),
        )
        .await;
    assert_eq!(denied, Err("AccessDeniedException".to_owned()));
    assert!(lab.aws.enable_key("alias/sessions", false));
    let disabled = boto
        .call(
            &keys,
            "kms",
            "generate_data_key",
            generate("alias/sessions"),
        )
        .await;
    assert_eq!(disabled, Err("DisabledException".to_owned()));
}
