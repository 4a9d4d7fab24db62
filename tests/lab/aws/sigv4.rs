//! Signature Version 4, from the verifier's side: the canonical request is rebuilt from the bytes that came in.
//!
//! Source: "Signature Version 4 signing process" in the IAM user guide; the vectors in the tests are AWS's own
//! (aws-c-auth, Apache-2.0). Every service here lives at `/`, so paths are taken as sent and never normalised.

mod canonical;
#[cfg(test)]
pub(crate) mod signer;
#[cfg(test)]
mod tests;

use subtle::ConstantTimeEq as _;
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime, macros::format_description};

use super::request::{RawRequest, decode, split_query};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";

/// How far a signed header's date may be from the server's clock, either way.
const HEADER_SKEW: Duration = Duration::minutes(5);

/// How long STS honours a presigned request, whatever `X-Amz-Expires` says.
const STS_QUERY_LIFE: Duration = Duration::minutes(15);

/// Where the signature was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Header,
    Query,
}

/// What a signed request claims about itself. Nothing of it is proven before [`Signed::verify`].
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) form: Form,
    pub(crate) access_key_id: String,
    pub(crate) region: String,
    pub(crate) service: String,
    pub(crate) token: Option<String>,
    scope_date: String,
    /// `YYYYMMDDTHHMMSSZ`.
    date: String,
    at: OffsetDateTime,
    expires: Option<Duration>,
    signed_headers: Vec<String>,
    signature: String,
}

/// Why a signature does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    #[error("Request is missing Authentication Token")]
    Missing,
    #[error("{0}")]
    Incomplete(String),
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
         Access Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
    #[error("{0}")]
    Scope(String),
    #[error("'{0}' must be a 'SignedHeader' in the AWS Authorization.")]
    Unsigned(String),
    #[error("Signature expired: {date} is now earlier than {limit} ({now} - {minutes} min.)")]
    Expired {
        date: String,
        limit: String,
        now: String,
        minutes: i64,
    },
    #[error("Signature not yet current: {date} is still later than {limit} ({now} + 5 min.)")]
    Early {
        date: String,
        limit: String,
        now: String,
    },
}

fn incomplete(what: &str) -> SignatureError {
    SignatureError::Incomplete(what.to_owned())
}

impl Signed {
    /// Reads the claims of a request signed in either form.
    pub(crate) fn parse(request: &RawRequest) -> Result<Self, SignatureError> {
        let in_query = split_query(&request.query).any(|(name, _)| name == "X-Amz-Algorithm");
        match (request.header_count("authorization"), in_query) {
            (0, false) => Err(SignatureError::Missing),
            (0, true) => Self::from_query(request),
            (1, false) => Self::from_header(request),
            _ => Err(incomplete("Only one authentication mechanism is allowed")),
        }
    }

    fn from_header(request: &RawRequest) -> Result<Self, SignatureError> {
        let header = request
            .header("authorization")
            .ok_or_else(|| incomplete("Authorization header is not readable"))?;
        let fields = header
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with(' '))
            .ok_or_else(|| incomplete("Unsupported AWS 'algorithm' in Authorization header"))?;
        let (mut credential, mut headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field
                .trim()
                .split_once('=')
                .ok_or_else(|| incomplete("Authorization header is not a list of key=value"))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut headers,
                "Signature" => &mut signature,
                _ => return Err(incomplete("Authorization header has an unknown parameter")),
            };
            if slot.replace(value.to_owned()).is_some() {
                return Err(incomplete("Authorization header repeats a parameter"));
            }
        }
        for once in ["x-amz-date", "x-amz-security-token", "host"] {
            if request.header_count(once) > 1 {
                return Err(SignatureError::Incomplete(format!(
                    "The header {once} is repeated"
                )));
            }
        }
        let need = |value: Option<String>, name| {
            value.ok_or_else(|| {
                SignatureError::Incomplete(format!(
                    "Authorization header requires '{name}' parameter."
                ))
            })
        };
        let date = request.header("x-amz-date").ok_or_else(|| {
            incomplete("Authorization header requires existence of a 'X-Amz-Date' header.")
        })?;
        Self::build(
            Form::Header,
            &need(credential, "Credential")?,
            date.to_owned(),
            &need(headers, "SignedHeaders")?,
            need(signature, "Signature")?,
            request.header("x-amz-security-token").map(str::to_owned),
            None,
        )
    }

    fn from_query(request: &RawRequest) -> Result<Self, SignatureError> {
        let get = |wanted: &str| -> Result<Option<String>, SignatureError> {
            let mut values = split_query(&request.query)
                .filter(|(name, _)| *name == wanted)
                .map(|(_, v)| v);
            let Some(value) = values.next() else {
                return Ok(None);
            };
            if values.next().is_some() {
                return Err(SignatureError::Incomplete(format!("{wanted} is repeated")));
            }
            decode(value)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .map(Some)
                .ok_or_else(|| SignatureError::Incomplete(format!("{wanted} is not readable")))
        };
        let need = |name: &str| {
            get(name)?.ok_or_else(|| {
                SignatureError::Incomplete(format!(
                    "AWS query-string parameters must include '{name}'."
                ))
            })
        };
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete("Unsupported X-Amz-Algorithm"));
        }
        let expires = get("X-Amz-Expires")?
            .map(|text| {
                text.parse::<i64>()
                    .ok()
                    .filter(|seconds| (1..=604_800).contains(seconds))
                    .map(Duration::seconds)
                    .ok_or_else(|| incomplete("X-Amz-Expires must be between 1 and 604800"))
            })
            .transpose()?;
        Self::build(
            Form::Query,
            &need("X-Amz-Credential")?,
            need("X-Amz-Date")?,
            &need("X-Amz-SignedHeaders")?,
            need("X-Amz-Signature")?,
            get("X-Amz-Security-Token")?,
            expires,
        )
    }

    fn build(
        form: Form,
        credential: &str,
        date: String,
        headers: &str,
        signature: String,
        token: Option<String>,
        expires: Option<Duration>,
    ) -> Result<Self, SignatureError> {
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key_id, scope_date, region, service, terminator] = parts[..] else {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements",
            ));
        };
        if terminator != TERMINATOR {
            return Err(SignatureError::Scope(format!(
                "Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{terminator}'."
            )));
        }
        let at = parse_date(&date).ok_or_else(|| {
            incomplete("Date must be in ISO-8601 'basic format', YYYYMMDDTHHMMSSZ")
        })?;
        if scope_date != &date[..8] {
            return Err(SignatureError::Scope(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: \
                 '{scope_date}' != '{}', from '{date}'.",
                &date[..8]
            )));
        }
        let signed_headers: Vec<String> = headers.split(';').map(str::to_owned).collect();
        // Sorted, lower case, each once: any other list is one that a signer of AWS's never writes.
        let in_order = signed_headers.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order || headers.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(incomplete(
                "SignedHeaders must be sorted, lower case and without repeats",
            ));
        }
        Ok(Self {
            form,
            access_key_id: access_key_id.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            token,
            scope_date: scope_date.to_owned(),
            date,
            at,
            expires,
            signed_headers,
            signature,
        })
    }

    /// Refuses a request whose date is too far from `now`.
    pub(crate) fn check_time(&self, now: OffsetDateTime) -> Result<(), SignatureError> {
        let life = match (self.form, self.expires) {
            (Form::Header, _) => HEADER_SKEW,
            (Form::Query, Some(expires)) if self.service != "sts" => expires,
            (Form::Query, _) => STS_QUERY_LIFE,
        };
        if self.at < now - life {
            return Err(SignatureError::Expired {
                date: self.date.clone(),
                limit: amz_date(now - life),
                now: amz_date(now),
                minutes: life.whole_minutes(),
            });
        }
        if self.at > now + HEADER_SKEW {
            return Err(SignatureError::Early {
                date: self.date.clone(),
                limit: amz_date(now + HEADER_SKEW),
                now: amz_date(now),
            });
        }
        Ok(())
    }

    /// Proves that the holder of `secret` signed exactly these bytes, and every header that matters.
    pub(crate) fn verify(&self, request: &RawRequest, secret: &str) -> Result<(), SignatureError> {
        self.check_coverage(request)?;
        let canonical = self.canonical_request(request)?;
        let ours = hex::encode(self.sign(&canonical, secret));
        if bool::from(ours.as_bytes().ct_eq(self.signature.as_bytes())) {
            Ok(())
        } else {
            Err(SignatureError::Mismatch)
        }
    }

    fn check_coverage(&self, request: &RawRequest) -> Result<(), SignatureError> {
        let signed = |name: &str| self.signed_headers.iter().any(|header| header == name);
        if !signed("host") {
            return Err(SignatureError::Unsigned("Host' or ':authority".to_owned()));
        }
        let needs = |name: &str| name.starts_with("x-amz-");
        match request
            .headers
            .iter()
            .find(|(name, _)| needs(name) && !signed(name))
        {
            Some((name, _)) => Err(SignatureError::Unsigned(name.clone())),
            None => Ok(()),
        }
    }
}

fn parse_date(text: &str) -> Option<OffsetDateTime> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    PrimitiveDateTime::parse(text, format)
        .ok()
        .filter(|at| (2000..2200).contains(&Date::year(at.date())))
        .map(PrimitiveDateTime::assume_utc)
}

/// `YYYYMMDDTHHMMSSZ`.
pub(crate) fn amz_date(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}
