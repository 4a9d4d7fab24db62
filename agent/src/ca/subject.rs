//! Whom a client certificate names: one SAN URI, readable and canonical.
//!
//! ```text
//! postern://v1/111122223333/AIDAEXAMPLEEXAMPLE1?arn=arn:aws:iam::111122223333:user/alice
//!   &assurance=aws-mfa&mfa-not-before=1790000000&claimed-end=1790003600
//!   &claimed-serial=arn:aws:iam::111122223333:mfa/alice&request=ID1&request=ID2
//! ```
//!
//! Parts come in this order; optional ones are left out. What is not exactly what [`ClientSubject`]
//! would write is refused, so that no two readers can differ about it.

use std::fmt::Write as _;

use postern_proto::names::{Assurance, Principal};

/// The start of every subject URI.
const PREFIX: &str = "postern://v1/";
/// The longest URI: an ARN has at most 2 KiB, the rest is short.
const URI_LIMIT: usize = 8 * 1024;

/// What a client certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSubject {
    /// Who, as AWS answered.
    pub principal: Principal,
    /// How MFA was attested.
    pub assurance: Assurance,
    /// Seconds since 1970: MFA is not older than this.
    pub mfa_not_before: i64,
    /// What the client claims of the end of its session.
    pub claimed_end: Option<i64>,
    /// What the client claims of its MFA device.
    pub claimed_serial: Option<String>,
    /// Ids of the STS requests that attested, as AWS answered them.
    pub aws_request_ids: Vec<String>,
}

/// A subject URI that this agent would not have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the certificate's subject URI is malformed")]
pub struct SubjectFault;

impl ClientSubject {
    /// The SAN URI.
    pub fn to_uri(&self) -> String {
        let principal = &self.principal;
        let mut uri = format!(
            "{PREFIX}{}/{}?arn={}&assurance={}&mfa-not-before={}",
            principal.account,
            principal.user_id,
            encode(&principal.arn),
            self.assurance,
            self.mfa_not_before,
        );
        // Writing to a string cannot fail.
        if let Some(end) = self.claimed_end {
            let _ = write!(uri, "&claimed-end={end}");
        }
        if let Some(serial) = &self.claimed_serial {
            let _ = write!(uri, "&claimed-serial={}", encode(serial));
        }
        for id in &self.aws_request_ids {
            let _ = write!(uri, "&request={}", encode(id));
        }
        uri
    }

    /// Reads what [`Self::to_uri`] wrote, and nothing else.
    pub fn from_uri(uri: &str) -> Result<Self, SubjectFault> {
        if uri.len() > URI_LIMIT {
            return Err(SubjectFault);
        }
        let subject = Self::read(uri).ok_or(SubjectFault)?;
        // Canonical or nothing: order, encoding, numbers with leading zeros, trailing text.
        if subject.to_uri() == uri {
            Ok(subject)
        } else {
            Err(SubjectFault)
        }
    }

    fn read(uri: &str) -> Option<Self> {
        let (path, query) = uri.strip_prefix(PREFIX)?.split_once('?')?;
        let (account, user_id) = path.split_once('/')?;
        let mut pairs = query.split('&').map(|pair| pair.split_once('=')).peekable();
        let mut take = |key: &str| match pairs.peek() {
            Some(Some((found, value))) if *found == key => {
                let value = decode(value);
                pairs.next();
                value
            }
            _ => None,
        };
        let arn = take("arn")?;
        let assurance = match take("assurance")?.as_str() {
            "aws-mfa" => Assurance::AwsMfa,
            "aws-mfa-fresh" => Assurance::AwsMfaFresh,
            _ => return None,
        };
        let mfa_not_before = take("mfa-not-before")?.parse().ok()?;
        let claimed_end = match take("claimed-end") {
            Some(end) => Some(end.parse().ok()?),
            None => None,
        };
        let claimed_serial = take("claimed-serial");
        let aws_request_ids = std::iter::from_fn(|| take("request")).collect();
        Some(Self {
            principal: Principal {
                account: account.parse().ok()?,
                user_id: user_id.parse().ok()?,
                arn,
            },
            assurance,
            mfa_not_before,
            claimed_end,
            claimed_serial,
            aws_request_ids,
        })
    }
}

/// Percent-encodes what has a meaning in our URI, and what is not printable ASCII.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:/@+,=".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        if *byte == b'%' {
            let [high, low, tail @ ..] = tail else {
                return None;
            };
            let mut decoded = [0];
            hex::decode_to_slice([*high, *low], &mut decoded).ok()?;
            bytes.extend_from_slice(&decoded);
            rest = tail;
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn alice() -> ClientSubject {
        ClientSubject {
            principal: Principal {
                account: "111122223333".parse().unwrap(),
                user_id: "AIDAALICEALICEALICE1".parse().unwrap(),
                arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
            },
            assurance: Assurance::AwsMfa,
            mfa_not_before: 1_790_000_000,
            claimed_end: Some(1_790_040_000),
            claimed_serial: Some("arn:aws:iam::111122223333:mfa/alice".to_owned()),
            aws_request_ids: vec!["6f1c-1".to_owned(), "6f1c-2".to_owned()],
        }
    }

    #[test]
    fn a_subject_reads_back_as_it_was_written() {
        let mut odd = alice();
        odd.principal.arn = "arn:aws:iam::1:user/ä&b=c?d%e#f".to_owned();
        odd.claimed_end = None;
        odd.claimed_serial = None;
        odd.aws_request_ids.clear();
        for subject in [alice(), odd] {
            let uri = subject.to_uri();
            let read = ClientSubject::from_uri(&uri).unwrap();
            assert_eq!(read, subject);
            assert_eq!(read.principal.arn, subject.principal.arn);
            assert!(uri.is_ascii() && !uri.contains(' '));
        }
    }

    #[test]
    fn a_subject_that_is_not_canonical_is_refused() {
        let uri = alice().to_uri();
        for bad in [
            uri.replace("v1", "v2"),
            uri.replace("mfa-not-before=1", "mfa-not-before=01"),
            uri.replace("mfa-not-before=", "mfa-not-before=%31"),
            uri.replace("assurance=aws-mfa", "assurance=none"),
            uri.replace(
                "assurance=aws-mfa",
                "assurance=aws-mfa&assurance=aws-mfa-fresh",
            ),
            uri.replace("alice&", "%61lice&"),
            uri.replace("AIDA", "aida"),
            format!("{uri}&admin=1"),
            format!("{uri}#x"),
            format!("{uri}%"),
            uri.replace("arn=", "Arn="),
            uri.replace("&claimed-end=1790040000", "") + "&claimed-end=1790040000",
            String::new(),
            format!("{PREFIX}?"),
            format!("{uri}{}", "&request=x".repeat(2000)),
        ] {
            assert_eq!(
                ClientSubject::from_uri(&bad),
                Err(SubjectFault),
                "{bad:.200}"
            );
        }
    }
}
