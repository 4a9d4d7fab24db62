//! A request as it came in, and the parameters of AWS's query protocols.

use bytes::Bytes;

/// The bytes of one HTTP request that a signature covers.
pub(crate) struct RawRequest {
    pub(crate) method: String,
    /// As sent, still encoded.
    pub(crate) path: String,
    /// As sent, without the question mark.
    pub(crate) query: String,
    /// Lower-case names, in the order of arrival.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Bytes,
}

impl RawRequest {
    /// The first value of a header, if it is readable text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
            .map(str::trim)
    }

    /// How often a header was sent.
    pub(crate) fn header_count(&self, name: &str) -> usize {
        self.headers
            .iter()
            .filter(|(header, _)| header == name)
            .count()
    }
}

/// Decoded parameters of the query and ec2 protocols, from query string and form body. Every name occurs once.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

/// A form that cannot be read unambiguously.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MalformedQuery {
    #[error("the query string is not valid percent-encoded UTF-8")]
    Encoding,
    #[error("the parameter {0} occurs more than once")]
    Duplicate(String),
}

impl Params {
    pub(crate) fn parse(request: &RawRequest) -> Result<Self, MalformedQuery> {
        let mut params = Self::default();
        params.extend(&request.query)?;
        let form = request
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
        if form {
            let body = std::str::from_utf8(&request.body).map_err(|_| MalformedQuery::Encoding)?;
            params.extend(body)?;
        }
        Ok(params)
    }

    fn extend(&mut self, encoded: &str) -> Result<(), MalformedQuery> {
        for (name, value) in split_query(encoded) {
            let name = decode(name).ok_or(MalformedQuery::Encoding)?;
            let value = decode(value).ok_or(MalformedQuery::Encoding)?;
            let name = String::from_utf8(name).map_err(|_| MalformedQuery::Encoding)?;
            let value = String::from_utf8(value).map_err(|_| MalformedQuery::Encoding)?;
            if self.get(&name).is_some() {
                return Err(MalformedQuery::Duplicate(name));
            }
            self.0.push((name, value));
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// `Name.1`, `Name.2`, ... in order, up to the first gap.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        (1..)
            .map_while(|index: usize| self.get(&format!("{name}.{index}")))
            .collect()
    }

    /// Whether any parameter starts with this prefix.
    pub(crate) fn any_starts_with(&self, prefix: &str) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(prefix))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The encoded name and value of each non-empty parameter.
pub(crate) fn split_query(encoded: &str) -> impl Iterator<Item = (&str, &str)> {
    encoded
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// Percent-decoding; a plus is a space, as in forms (signers write `%2B` for a plus). `None` if malformed.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(decoded)
}

/// Percent-encoding as SigV4 wants it: everything but unreserved characters, upper-case hex.
pub(crate) fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(*byte));
            }
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &str, body: &'static str) -> RawRequest {
        RawRequest {
            method: "POST".into(),
            path: "/".into(),
            query: query.into(),
            headers: vec![(
                "content-type".into(),
                b"application/x-www-form-urlencoded; charset=utf-8".to_vec(),
            )],
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn parameters_come_from_query_and_form_and_lists_keep_their_order() {
        let params = Params::parse(&request("Action=A", "V.2=b&V.1=a%20+%2B&V.4=d&E="))
            .expect("a readable form");
        assert_eq!(params.get("Action"), Some("A"));
        assert_eq!(params.list("V"), ["a  +", "b"]);
        assert_eq!(params.get("E"), Some(""));
        assert!(params.any_starts_with("V."));
    }

    #[test]
    fn a_repeated_or_undecodable_parameter_is_refused() {
        let error = |query, body| Params::parse(&request(query, body)).expect_err("malformed");
        assert_eq!(
            error("Action=A", "Action=B"),
            MalformedQuery::Duplicate("Action".into())
        );
        assert_eq!(error("a=%zz", ""), MalformedQuery::Encoding);
        assert_eq!(error("a=%", ""), MalformedQuery::Encoding);
        assert_eq!(error("", "a=%ff"), MalformedQuery::Encoding);
    }
}
