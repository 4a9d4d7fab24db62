//! AWS's published vectors, and what must not pass.

use super::*;
use crate::aws::request::RawRequest;
use bytes::Bytes;

#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    secret: String,
    canonical: String,
    string_to_sign: String,
    signature: String,
}

impl Vector {
    fn request(&self) -> RawRequest {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        RawRequest {
            method: self.method.clone(),
            path: path.into(),
            query: query.into(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.to_lowercase(), value.clone().into_bytes()))
                .collect(),
            body: Bytes::from(self.body.clone()),
        }
    }
}

/// AWS's published test suite (aws-c-auth), the cases whose path is `/`.
fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../vectors/sigv4.json")).expect("the vectors are JSON")
}

const NOON: &str = "20150830T123600Z";

fn noon() -> OffsetDateTime {
    parse_date(NOON).expect("a date")
}

#[test]
fn every_published_vector_is_rebuilt_and_accepted() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 42);
    for vector in vectors {
        let request = vector.request();
        let signed = Signed::parse(&request).expect(&vector.name);
        let canonical = signed.canonical_request(&request).expect(&vector.name);
        assert_eq!(canonical, vector.canonical, "{}", vector.name);
        assert_eq!(
            signed.string_to_sign(&canonical),
            vector.string_to_sign,
            "{}",
            vector.name
        );
        assert_eq!(signed.signature, vector.signature, "{}", vector.name);
        assert_eq!(
            signed.verify(&request, &vector.secret),
            Ok(()),
            "{}",
            vector.name
        );
    }
}

#[test]
fn any_change_to_a_signed_request_is_noticed() {
    for vector in vectors() {
        let tampered = |change: &dyn Fn(&mut RawRequest)| {
            let mut request = vector.request();
            change(&mut request);
            let signed = Signed::parse(&request).expect(&vector.name);
            assert_eq!(
                signed.verify(&request, &vector.secret),
                Err(SignatureError::Mismatch),
                "{}",
                vector.name
            );
        };
        tampered(&|request| request.method = "PUT".into());
        tampered(&|request| request.path = "/x".into());
        tampered(&|request| request.query.push_str("&more=1"));
        tampered(&|request| request.body = Bytes::from_static(b"Action=Other"));
        tampered(&|request| {
            for (name, value) in &mut request.headers {
                if name == "host" {
                    *value = b"elsewhere.example".to_vec();
                }
            }
        });
        let request = vector.request();
        let signed = Signed::parse(&request).expect(&vector.name);
        assert_eq!(
            signed.verify(&request, "other"),
            Err(SignatureError::Mismatch)
        );
    }
}

fn plain() -> RawRequest {
    RawRequest {
        method: "POST".into(),
        path: "/".into(),
        query: String::new(),
        headers: vec![("host".into(), b"h".to_vec())],
        body: Bytes::from_static(b"Action=GetCallerIdentity"),
    }
}

const KEY: signer::Key<'_> = signer::Key {
    id: "AKIDEXAMPLE",
    secret: "s",
    token: None,
};

#[test]
fn host_and_every_amz_header_must_be_signed_and_others_need_not() {
    let mut request = plain();
    signer::sign(&mut request, &KEY, ("eu-west-1", "sts"), noon());
    let verify = |request: &RawRequest| {
        Signed::parse(request).and_then(|signed| signed.verify(request, "s"))
    };
    assert_eq!(verify(&request), Ok(()));
    request.headers.push(("x-other".into(), b"1".to_vec()));
    assert_eq!(verify(&request), Ok(()));
    request.headers.push(("x-amz-extra".into(), b"1".to_vec()));
    assert_eq!(
        verify(&request),
        Err(SignatureError::Unsigned("x-amz-extra".into()))
    );

    let mut request = plain();
    request.headers.clear();
    signer::sign(&mut request, &KEY, ("eu-west-1", "sts"), noon());
    request.headers.push(("host".into(), b"h".to_vec()));
    assert!(matches!(verify(&request), Err(SignatureError::Unsigned(_))));
}

#[test]
fn a_header_named_as_signed_but_signed_without_it_is_a_mismatch() {
    let mut request = plain();
    signer::sign(&mut request, &KEY, ("eu-west-1", "sts"), noon());
    request.headers.push(("x-bind".into(), b"hash".to_vec()));
    let authorization = &mut request
        .headers
        .iter_mut()
        .find(|(n, _)| n == "authorization");
    let value = &mut authorization.as_mut().expect("signed").1;
    let text = String::from_utf8(value.clone()).expect("text");
    *value = text
        .replace("host;x-amz-date", "host;x-amz-date;x-bind")
        .into_bytes();
    let signed = Signed::parse(&request).expect("readable");
    assert_eq!(signed.verify(&request, "s"), Err(SignatureError::Mismatch));
}

#[test]
fn dates_are_bound_by_form_and_service() {
    let signed = |form, service: &str, expires: Option<i64>| {
        let credential = format!("AKID/20150830/r/{service}/aws4_request");
        let expires = expires.map(Duration::seconds);
        Signed::build(
            form,
            &credential,
            NOON.into(),
            "host",
            String::new(),
            None,
            expires,
        )
        .expect("well-formed")
    };
    let after = |signed: &Signed, s| signed.check_time(noon() + Duration::seconds(s)).is_ok();
    let header = signed(Form::Header, "sts", None);
    assert!(after(&header, 300) && !after(&header, 301));
    assert!(after(&header, -300) && !after(&header, -301));
    // STS ignores X-Amz-Expires, both ways.
    for expires in [Some(60), Some(86_400), None] {
        let query = signed(Form::Query, "sts", expires);
        assert!(after(&query, 900) && !after(&query, 901));
    }
    let query = signed(Form::Query, "ec2", Some(60));
    assert!(after(&query, 60) && !after(&query, 61));
}

#[test]
fn malformed_claims_are_refused() {
    let parse = |credential: &str, date: &str, headers: &str| {
        let mut request = plain();
        request.headers.push(("x-amz-date".into(), date.into()));
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={headers}, Signature=00"
        );
        request.headers.push(("authorization".into(), value.into()));
        Signed::parse(&request)
    };
    let good = "AKID/20150830/r/sts/aws4_request";
    assert!(parse(good, NOON, "host;x-amz-date").is_ok());
    assert!(parse(good, NOON, "x-amz-date;host").is_err());
    assert!(parse(good, NOON, "host;host").is_err());
    assert!(parse(good, NOON, "Host").is_err());
    assert!(
        parse(good, "20150831T000000Z", "host").is_err(),
        "scope of another day"
    );
    assert!(parse(good, "2015-08-30T12:36:00Z", "host").is_err());
    assert!(parse("AKID/20150830/r/sts/aws5_request", NOON, "host").is_err());
    assert!(parse("AKID/20150830/r/aws4_request", NOON, "host").is_err());
    assert_eq!(
        Signed::parse(&plain()).expect_err("unsigned"),
        SignatureError::Missing
    );
}
