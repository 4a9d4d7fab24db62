//! The canonical request and the string to sign.

use aws_lc_rs::{digest, hmac};

use super::{ALGORITHM, Form, SignatureError, Signed, TERMINATOR};
use crate::aws::request::{RawRequest, decode, encode, split_query};

impl Signed {
    pub(super) fn canonical_request(&self, request: &RawRequest) -> Result<String, SignatureError> {
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

    pub(super) fn string_to_sign(&self, canonical: &str) -> String {
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

    pub(super) fn sign(&self, canonical: &str, secret: &str) -> Vec<u8> {
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
