use serde::Deserialize;

use super::*;

/// Made with botocore 1.44.5's `SigV4Auth` (`add_auth` on a POST to `https://HOST/` with the
/// headers `Content-Type` and `postern-bind`), which shares no code with us.
const VECTORS: &str = include_str!("vectors.json");
const BIND: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";
/// 2026-01-02T03:04:05Z.
const AT: i64 = 1_767_323_045;

#[derive(Deserialize)]
struct Vector {
    host: String,
    request: String,
    access_key_id: String,
    with_token: bool,
    date: String,
    authorization: String,
}

fn request(vector: &Vector) -> StsRequest {
    let role = "arn:aws:iam::111122223333:role/postern/attest";
    match vector.request.as_str() {
        "identity" => StsRequest::identity(&vector.host, BIND),
        "attest" => StsRequest::attest(&vector.host, BIND, role, None),
        _ => {
            let step_up = Some(("arn:aws:iam::111122223333:mfa/alice", "123456"));
            StsRequest::attest(&vector.host, BIND, role, step_up)
        }
    }
}

#[test]
fn our_signatures_are_botocore_s_byte_for_byte() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let keys = Keys {
            access_key_id: vector.access_key_id.clone(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: vector
                .with_token
                .then(|| "FwoGZXIvYXdzEXAMPLE/+token==".into()),
        };
        let request = request(&vector);
        let signature = aws_signature(&request, &keys, "eu-west-1", AT).unwrap();
        assert_eq!(date(AT), vector.date);
        let line = StsRequest::authorization(
            &vector.access_key_id,
            &vector.date,
            "eu-west-1",
            vector.with_token,
            &signature,
        );
        assert_eq!(line, vector.authorization, "{}", vector.request);
    }
}

#[test]
fn a_header_that_the_agent_would_not_send_is_never_signed() {
    let keys = Keys {
        access_key_id: "AKIAEXAMPLEEXAMPLE00".to_owned(),
        secret_access_key: "secret".into(),
        session_token: None,
    };
    let mut request = StsRequest::identity("sts.eu-west-1.amazonaws.com", BIND);
    request
        .headers
        .push(("x-amz-meta".to_owned(), "1".to_owned()));
    assert_eq!(
        aws_signature(&request, &keys, "eu-west-1", AT),
        Err(SignError::Headers(
            "content-type;host;postern-bind;x-amz-date;x-amz-meta".to_owned()
        ))
    );
}

#[test]
fn the_client_s_key_is_p256_and_does_not_print() {
    let key = ClientKey::generate().unwrap();
    let same = ClientKey::from_pkcs8(key.pkcs8()).unwrap();
    let public = key.public_key().unwrap();
    assert_eq!(public, same.public_key().unwrap());
    let (_, info) =
        <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<
            '_,
            x509_parser::error::X509Error,
        >>::from_der(&public)
        .unwrap();
    let signature = key.sign(b"message").unwrap();
    aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        &info.subject_public_key.data,
    )
    .verify(b"message", &signature)
    .unwrap();
    assert_eq!(format!("{key:?}"), "ClientKey(…)");
}
