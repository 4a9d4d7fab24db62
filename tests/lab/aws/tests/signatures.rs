//! Signatures that do not fit, refused in each protocol's words.

use super::*;

#[test]
fn keys_tokens_and_dates_that_do_not_fit_are_refused_in_each_protocols_words() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let ask = [("Action", "GetCallerIdentity")];
    let sts = |lab: &mut Lab, keys: &Keys| code_of(&lab.query(keys, Service::Sts, &ask));
    let wrong_secret = Keys {
        secret: "x".repeat(40),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &wrong_secret), "SignatureDoesNotMatch");
    let unknown = Keys {
        id: "AKIAAAAAAAAAAAAAAAAA".into(),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &unknown), "InvalidClientTokenId");
    let superfluous = Keys {
        token: Some("t".into()),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &superfluous), "InvalidClientTokenId");
    let session = lab.mfa_session("alice");
    let missing = Keys {
        token: None,
        ..session.clone()
    };
    assert_eq!(sts(&mut lab, &missing), "InvalidClientTokenId");
    let other = lab.session("alice", None).expect("a session");
    let swapped = Keys {
        token: other.token.clone(),
        ..session.clone()
    };
    assert_eq!(sts(&mut lab, &swapped), "InvalidClientTokenId");

    let stale = lab.signed(&alice, Service::Sts, &ask, &[]);
    lab.now += Duration::seconds(301);
    let answer = lab.send(stale);
    assert_eq!(code_of(&answer), "SignatureDoesNotMatch");
    assert!(answer.body.contains("Signature expired"), "{}", answer.body);

    assert!(lab.state.account.expire(&session.id, lab.now));
    assert_eq!(sts(&mut lab, &session), "ExpiredToken");
    let ec2 = lab.query(&session, Service::Ec2, &[("Action", "DescribeRegions")]);
    assert_eq!(code_of(&ec2), "RequestExpired");
    let ec2 = lab.query(
        &wrong_secret,
        Service::Ec2,
        &[("Action", "DescribeRegions")],
    );
    assert_eq!((ec2.status, code_of(&ec2).as_str()), (401, "AuthFailure"));
    let target = "AmazonSSM.DescribeInstanceInformation";
    let kind = |(status, body): (u16, Value)| (status, body["__type"].as_str().map(str::to_owned));
    let ssm = |lab: &mut Lab, keys: &Keys| kind(lab.json(keys, Service::Ssm, target, &json!({})));
    assert_eq!(
        ssm(&mut lab, &session),
        (400, Some("ExpiredTokenException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &wrong_secret),
        (400, Some("InvalidSignatureException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &unknown),
        (400, Some("UnrecognizedClientException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &alice),
        (400, Some("AccessDeniedException".into()))
    );
    assert_eq!(
        code_of(&lab.send(unsigned("Action=GetCallerIdentity".into()))),
        "MissingAuthenticationToken"
    );
}

#[test]
fn a_bind_header_counts_only_if_it_was_signed() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let ask = [("Action", "GetCallerIdentity")];
    let request = lab.signed(&alice, Service::Sts, &ask, &[("x-postern-bind", "right")]);
    assert_eq!(lab.send(request).status, 200);

    let mut tampered = lab.signed(&alice, Service::Sts, &ask, &[("x-postern-bind", "right")]);
    for (name, value) in &mut tampered.headers {
        if name == "x-postern-bind" {
            *value = b"wrong".to_vec();
        }
    }
    assert_eq!(code_of(&lab.send(tampered)), "SignatureDoesNotMatch");

    let mut added = lab.signed(&alice, Service::Sts, &ask, &[]);
    added
        .headers
        .push(("x-postern-bind".into(), b"right".to_vec()));
    for (name, value) in &mut added.headers {
        if name == "authorization" {
            let text =
                String::from_utf8_lossy(value).replace("x-amz-date", "x-amz-date;x-postern-bind");
            *value = text.into_bytes();
        }
    }
    assert_eq!(code_of(&lab.send(added)), "SignatureDoesNotMatch");

    let mut body = lab.signed(&alice, Service::Sts, &ask, &[]);
    body.body = Bytes::from_static(b"Action=GetSessionToken&Version=2011-06-15");
    assert_eq!(code_of(&lab.send(body)), "SignatureDoesNotMatch");
}

#[test]
fn a_scope_for_another_service_or_region_is_refused() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    for (region, service) in [("eu-central-1", "sts"), (REGION, "s3")] {
        let mut request = unsigned("Action=GetCallerIdentity&Version=2011-06-15".into());
        let form = b"application/x-www-form-urlencoded".to_vec();
        request.headers.push(("content-type".into(), form));
        let key = signer::Key {
            id: &alice.id,
            secret: &alice.secret,
            token: None,
        };
        signer::sign(&mut request, &key, (region, service), lab.now);
        assert_eq!(
            code_of(&lab.send(request)),
            "SignatureDoesNotMatch",
            "{region} {service}"
        );
    }
}
