//! A signer for the tests, whose output the verifier reads; the verifier is checked against AWS's vectors.

use time::OffsetDateTime;

use super::{ALGORITHM, Form, Signed, TERMINATOR, amz_date};
use crate::aws::request::RawRequest;

pub(crate) struct Key<'a> {
    pub(crate) id: &'a str,
    pub(crate) secret: &'a str,
    pub(crate) token: Option<&'a str>,
}

/// Signs in the header form; signs every header that the request has by then.
pub(crate) fn sign(
    request: &mut RawRequest,
    key: &Key<'_>,
    scope: (&str, &str),
    at: OffsetDateTime,
) {
    let date = amz_date(at);
    request
        .headers
        .push(("x-amz-date".into(), date.clone().into_bytes()));
    if let Some(token) = key.token {
        request
            .headers
            .push(("x-amz-security-token".into(), token.into()));
    }
    let mut names: Vec<&str> = request
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let credential = format!(
        "{}/{}/{}/{}/{TERMINATOR}",
        key.id,
        &date[..8],
        scope.0,
        scope.1
    );
    let names = names.join(";");
    let signed = Signed::build(
        Form::Header,
        &credential,
        date,
        &names,
        String::new(),
        None,
        None,
    )
    .expect("well-formed");
    let canonical = signed.canonical_request(request).expect("well-formed");
    let signature = hex::encode(signed.sign(&canonical, key.secret));
    request.headers.push((
        "authorization".into(),
        format!(
            "{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        )
        .into(),
    ));
}
