//! Requests that botocore signed, as they are and after somebody changed them.

use lab::aws::{Fault, FaultRule, Service};
use serde_json::{Value, json};

use super::clients::{Boto, Lab};

const WHO: &str = "Action=GetCallerIdentity&Version=2011-06-15";

/// A signed GetCallerIdentity with a bind header; `more` overrides any part.
fn who(lab: &Lab, more: &Value) -> Value {
    let mut request = json!({"do": "raw", "keys": lab.keys("alice").json(), "body": WHO,
    "headers": {
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        "X-Postern-Bind": "right",
    }});
    for (name, value) in more.as_object().expect("an object") {
        request[name] = value.clone();
    }
    request
}

/// The code of the error that a changed request meets.
async fn refusal(boto: &mut Boto, request: &Value) -> String {
    let answer = boto.ask(request).await;
    assert_ne!(answer["status"], 200, "{answer}");
    let body = answer["body"].as_str().expect("text");
    let (_, rest) = body
        .split_once("<Code>")
        .unwrap_or_else(|| panic!("no code: {answer}"));
    rest.split_once('<').expect("a closed element").0.to_owned()
}

#[tokio::test]
async fn a_request_changed_after_signing_is_refused() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let fine = boto.ask(&who(&lab, &json!({}))).await;
    assert_eq!(fine["status"], 200, "{fine}");
    let extra = json!({"change": {"headers": {"X-Unsigned": "1"}}});
    assert_eq!(
        boto.ask(&who(&lab, &extra)).await["status"],
        200,
        "others need not be signed"
    );

    let address = lab.aws.endpoint();
    for (what, change) in [
        (
            "an added query string",
            json!({"url": {format!("{address}/"): format!("{address}/?x=1")}}),
        ),
        (
            "a tampered signed header",
            json!({"headers": {"X-Postern-Bind": "wrong"}}),
        ),
        (
            "a removed signed header",
            json!({"headers": {"X-Postern-Bind": null}}),
        ),
        (
            "an unsigned amz header",
            json!({"headers": {"X-Amz-Extra": "1"}}),
        ),
        (
            "a header dropped from the list",
            json!({"authorization": {";x-postern-bind": ""}}),
        ),
        (
            "another region",
            json!({"authorization": {"eu-west-1": "us-east-1"}}),
        ),
        (
            "another service",
            json!({"authorization": {"/sts/": "/iam/"}}),
        ),
        (
            "another date",
            json!({"headers": {"X-Amz-Date": "20200101T000000Z"}}),
        ),
        (
            "another body",
            json!({"body": "Action=GetSessionToken&Version=2011-06-15"}),
        ),
    ] {
        let code = refusal(&mut boto, &who(&lab, &json!({ "change": change }))).await;
        assert_eq!(code, "SignatureDoesNotMatch", "{what}");
    }
    let unsigned_bind = json!({
        "headers": {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
        "change": {
            "headers": {"X-Postern-Bind": "right"},
            "authorization": {"x-amz-date": "x-amz-date;x-postern-bind"},
        },
    });
    let code = refusal(&mut boto, &who(&lab, &unsigned_bind)).await;
    assert_eq!(
        code, "SignatureDoesNotMatch",
        "a bind header that was not signed"
    );
}

#[tokio::test]
async fn keys_and_dates_that_do_not_fit_are_refused() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let alice = lab.keys("alice");
    let with = |keys: Value| who(&lab, &json!({ "keys": keys }));
    let wrong_secret = json!({"id": alice.id, "secret": "x".repeat(40)});
    assert_eq!(
        refusal(&mut boto, &with(wrong_secret)).await,
        "SignatureDoesNotMatch"
    );
    let unknown = json!({"id": "AKIAAAAAAAAAAAAAAAAA", "secret": alice.secret});
    assert_eq!(
        refusal(&mut boto, &with(unknown)).await,
        "InvalidClientTokenId"
    );
    let superfluous = json!({"id": alice.id, "secret": alice.secret, "token": "t"});
    assert_eq!(
        refusal(&mut boto, &with(superfluous)).await,
        "InvalidClientTokenId"
    );
    let session = boto.mfa_session(&lab, "alice").await;
    let no_token = json!({"id": session.id, "secret": session.secret});
    assert_eq!(
        refusal(&mut boto, &with(no_token)).await,
        "InvalidClientTokenId"
    );
    let nobody = who(&lab, &json!({"form": "none"}));
    assert_eq!(
        refusal(&mut boto, &nobody).await,
        "MissingAuthenticationToken"
    );

    for seconds in [-310, 310] {
        boto.ask(&json!({"do": "set_skew", "seconds": seconds}))
            .await;
        let code = refusal(&mut boto, &who(&lab, &json!({}))).await;
        assert_eq!(code, "SignatureDoesNotMatch", "{seconds} seconds away");
    }
    boto.ask(&json!({"do": "set_skew", "seconds": -240})).await;
    assert_eq!(
        boto.ask(&who(&lab, &json!({}))).await["status"],
        200,
        "within five minutes"
    );
}

#[tokio::test]
async fn a_presigned_sts_url_lives_fifteen_minutes_whatever_it_says() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let mut urls = Vec::new();
    for expires in [60, 86_400] {
        let request = json!({"do": "presign", "service": "sts", "operation": "get_caller_identity",
            "params": {}, "keys": lab.keys("alice").json(), "expires": expires});
        let url = boto.ask(&request).await["url"]
            .as_str()
            .expect("a URL")
            .to_owned();
        let answer = boto.ask(&json!({"do": "get", "url": url})).await;
        assert_eq!(answer["status"], 200, "{answer}");
        assert!(
            answer["body"]
                .as_str()
                .is_some_and(|body| body.contains(":user/alice<"))
        );
        urls.push(url);
    }
    let tampered = urls[0].replace("X-Amz-Expires=60", "X-Amz-Expires=600");
    let code = refusal(&mut boto, &json!({"do": "get", "url": tampered})).await;
    assert_eq!(code, "SignatureDoesNotMatch");
    let doubled = format!("{}&Action=GetSessionToken", urls[0]);
    assert_eq!(
        boto.ask(&json!({"do": "get", "url": doubled})).await["status"],
        403
    );

    lab.aws.clock().advance(
        std::time::Duration::from_secs(780)
            .try_into()
            .expect("in range"),
    );
    let answer = boto.ask(&json!({"do": "get", "url": urls[0]})).await;
    assert_eq!(answer["status"], 200, "X-Amz-Expires=60 is ignored");
    lab.aws.clock().advance(
        std::time::Duration::from_secs(200)
            .try_into()
            .expect("in range"),
    );
    for url in urls {
        let code = refusal(&mut boto, &json!({"do": "get", "url": url})).await;
        assert_eq!(code, "SignatureDoesNotMatch", "older than fifteen minutes");
    }
}

#[tokio::test]
async fn faults_are_answered_on_order_and_end_when_cleared() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let inject = |fault| {
        lab.aws
            .inject(FaultRule::once(Service::Sts, "GetCallerIdentity", fault))
    };
    let request = who(&lab, &json!({}));

    inject(Fault::Html);
    let answer = boto.ask(&request).await;
    assert_eq!(
        (&answer["status"], &answer["headers"]["content-type"]),
        (&json!(200), &json!("text/html"))
    );
    inject(Fault::Json);
    let answer = boto.ask(&request).await;
    let body: Value = serde_json::from_str(answer["body"].as_str().expect("text")).expect("JSON");
    assert!(body["GetCallerIdentityResponse"]["GetCallerIdentityResult"]["Arn"].is_string());
    inject(Fault::XmlInJson);
    let answer = boto.ask(&request).await;
    assert!(
        answer["body"]
            .as_str()
            .is_some_and(|b| b.starts_with('{') && b.contains("<Arn>"))
    );
    inject(Fault::DoubledElement {
        name: "Arn".into(),
        second: "arn:aws:iam::1:root".into(),
    });
    let answer = boto.ask(&request).await;
    assert_eq!(
        answer["body"]
            .as_str()
            .map(|body| body.matches("<Arn>").count()),
        Some(2)
    );
    inject(Fault::Redirect("https://127.0.0.1:1/".into()));
    let answer = boto.ask(&request).await;
    assert_eq!(answer["status"], 302);
    assert_eq!(answer["headers"]["location"], "https://127.0.0.1:1/");
    inject(Fault::ServerError);
    assert_eq!(boto.ask(&request).await["status"], 500);

    lab.aws.inject(FaultRule::always(
        Service::Sts,
        "GetCallerIdentity",
        Fault::ServerError,
    ));
    assert_eq!(boto.ask(&request).await["status"], 500);
    lab.aws.clear_faults();
    let answer = boto.ask(&request).await;
    assert_eq!(
        (&answer["status"], &answer["headers"]["content-type"]),
        (&json!(200), &json!("text/xml"))
    );
    let shown = lab
        .aws
        .events_of("GetCallerIdentity")
        .pop()
        .expect("an event");
    assert_eq!(shown["requestID"], answer["headers"]["x-amzn-requestid"]);
}

#[tokio::test]
async fn the_front_door_refuses_what_is_not_a_request_and_answers_late_on_order() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let put = who(&lab, &json!({"method": "PUT"}));
    assert_eq!(boto.ask(&put).await["status"], 405);
    let large = who(&lab, &json!({"body": "x".repeat(300 * 1024)}));
    assert_eq!(boto.ask(&large).await["status"], 413);
    let delay = Fault::Delay(std::time::Duration::from_millis(50));
    lab.aws
        .inject(FaultRule::once(Service::Sts, "GetCallerIdentity", delay));
    assert_eq!(boto.ask(&who(&lab, &json!({}))).await["status"], 200);
}
