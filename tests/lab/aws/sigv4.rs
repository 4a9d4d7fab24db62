//! Signature Version 4, from the verifier's side: the canonical request is rebuilt from the bytes that came in.
//!
//! Source: "Signature Version 4 signing process" in the IAM user guide; the vectors in the tests are AWS's own
//! (aws-c-auth, Apache-2.0). Every service here lives at `/`, so paths are taken as sent and never normalised.

use aws_lc_rs::{digest, hmac};
use subtle::ConstantTimeEq as _;
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime, macros::format_description};

use super::request::{RawRequest, decode, encode, split_query};

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

    fn canonical_request(&self, request: &RawRequest) -> Result<String, SignatureError> {
        let mut text = format!("{}\n{}\n", request.method, request.path);
        text.push_str(&self.canonical_query(&request.query)?);
        text.push('\n');
        for name in &self.signed_headers {
            text.push_str(&canonical_header(request, name)?);
        }
        let hash = hex::encode(digest::digest(&digest::SHA256, &request.body));
        if request
            .header("x-amz-content-sha256")
            .is_some_and(|claimed| claimed != hash)
        {
            return Err(SignatureError::Mismatch);
        }
        Ok(format!("{text}\n{}\n{hash}", self.signed_headers.join(";")))
    }

    fn canonical_query(&self, query: &str) -> Result<String, SignatureError> {
        let mut pairs = Vec::new();
        for (name, value) in split_query(query) {
            if self.form == Form::Query && name == "X-Amz-Signature" {
                continue;
            }
            let name = decode(name).ok_or(SignatureError::Mismatch)?;
            let value = decode(value).ok_or(SignatureError::Mismatch)?;
            pairs.push((encode(&name), encode(&value)));
        }
        pairs.sort();
        let pairs: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
        Ok(pairs.join("&"))
    }

    fn string_to_sign(&self, canonical: &str) -> String {
        let hash = digest::digest(&digest::SHA256, canonical.as_bytes());
        format!(
            "{ALGORITHM}\n{}\n{}/{}/{}/{TERMINATOR}\n{}",
            self.date,
            self.scope_date,
            self.region,
            self.service,
            hex::encode(hash)
        )
    }

    fn sign(&self, canonical: &str, secret: &str) -> Vec<u8> {
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [&*self.scope_date, &*self.region, &*self.service, TERMINATOR] {
            key = mac(&key, part.as_bytes());
        }
        mac(&key, self.string_to_sign(canonical).as_bytes())
    }
}

fn canonical_header(request: &RawRequest, name: &str) -> Result<String, SignatureError> {
    let mut values = Vec::new();
    for (_, value) in request.headers.iter().filter(|(header, _)| header == name) {
        let text = std::str::from_utf8(value).map_err(|_| SignatureError::Mismatch)?;
        let words: Vec<&str> = text
            .split([' ', '\t'])
            .filter(|word| !word.is_empty())
            .collect();
        values.push(words.join(" "));
    }
    if values.is_empty() {
        return Err(SignatureError::Mismatch);
    }
    Ok(format!("{name}:{}\n", values.join(",")))
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, data).as_ref().to_vec()
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

/// A signer for the tests, checked against AWS's vectors through the verifier that reads its output.
#[cfg(test)]
pub(crate) mod signer {
    use super::*;

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
}

#[cfg(test)]
mod tests {
    use super::*;
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
        serde_json::from_str(include_str!("vectors/sigv4.json")).expect("the vectors are JSON")
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
}
