//! An answer read within its limits.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use zeroize::Zeroizing;

use super::{ANSWER_FORM, BODY_LIMIT, StsFault};
use crate::identity::answer;

/// Status, form and size first; then the body of a 200, or the code of a refusal.
pub(super) async fn read(response: Response<Incoming>) -> Result<Zeroizing<Vec<u8>>, StsFault> {
    let (head, body) = response.into_parts();
    let refused = match head.status {
        StatusCode::OK => false,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => true,
        other => return Err(StsFault::Status(other.as_u16())),
    };
    let form = head
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if !form.is_some_and(is_xml) || head.headers.contains_key(CONTENT_ENCODING) {
        return Err(if refused {
            StsFault::Status(head.status.as_u16())
        } else {
            StsFault::Form
        });
    }
    let mut limited = Limited::new(body, BODY_LIMIT);
    let mut bytes = Zeroizing::new(Vec::with_capacity(BODY_LIMIT));
    while let Some(frame) = limited.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                StsFault::TooLong
            } else {
                StsFault::Transport(error.to_string())
            }
        })?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
    }
    if refused {
        return Err(StsFault::Refused(answer::error_code(&bytes)?));
    }
    Ok(bytes)
}

/// Seconds since 1970 of the answer's `Date` (RFC 9110 5.6.7).
pub(super) async fn date_of(response: Response<Incoming>) -> Result<i64, StsFault> {
    let date = response.headers().get(DATE);
    let date = date
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let plain = date
        .strip_suffix(" GMT")
        .map(|date| format!("{date} +0000"));
    OffsetDateTime::parse(plain.as_deref().unwrap_or_default(), &Rfc2822)
        .map(OffsetDateTime::unix_timestamp)
        .map_err(|_| StsFault::Answer("it has no usable date".to_owned()))
}

/// `text/xml`, alone or with `charset=utf-8`.
pub(super) fn is_xml(form: &str) -> bool {
    let mut parts = form.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    kind.eq_ignore_ascii_case(ANSWER_FORM)
        && parts.all(|part| part.eq_ignore_ascii_case("charset=utf-8"))
}
