//! Signatures: AWS's over the two requests of an enrolment, and the client key's own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings};
use aws_sigv4::sign::v4;
use postern_proto::enroll::StsRequest;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::secret::Keys;

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The request cannot be signed: a header or the host is malformed.
    #[error("the request cannot be signed: {0}")]
    Request(String),
    /// More or less was signed than the agent will send.
    #[error("other headers were signed than the agent will send: {0}")]
    Headers(String),
    /// The client's key.
    #[error("the client's key cannot be used: {0}")]
    Key(String),
}

/// The signature (64 hex digits) of `request` at `at` (seconds since 1970), by AWS Signature
/// Version 4 for the service `sts`.
pub(crate) fn aws_signature(
    request: &StsRequest,
    keys: &Keys,
    region: &str,
    at: i64,
) -> Result<String, SignError> {
    let failed = |error: &dyn std::error::Error| SignError::Request(error.to_string());
    let credentials = Credentials::new(
        &keys.access_key_id,
        keys.secret_access_key.expose(),
        keys.session_token
            .as_ref()
            .map(|token| token.expose().to_owned()),
        None,
        "postern",
    )
    .into();
    let parameters = v4::SigningParams::builder()
        .identity(&credentials)
        .region(region)
        .name("sts")
        .time(time_of(at))
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let signable = SignableRequest::new(
        "POST",
        format!("https://{}/", request.host),
        request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
        SignableBody::Bytes(request.body.as_bytes()),
    )
    .map_err(|error| failed(&error))?;
    let (instructions, signature) = aws_sigv4::http_request::sign(signable, &parameters)
        .map_err(|error| failed(&error))?
        .into_parts();
    let expected = StsRequest::authorization(
        &keys.access_key_id,
        &date(at),
        region,
        keys.session_token.is_some(),
        &signature,
    );
    // The agent rebuilds this line; if it would not be ours, AWS would only say "does not match".
    match instructions
        .headers()
        .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
    {
        Some((_, line)) if line == expected => Ok(signature),
        Some((_, line)) => Err(SignError::Headers(signed_headers(line).to_owned())),
        None => Err(SignError::Headers("none".to_owned())),
    }
}

/// `YYYYMMDDTHHMMSSZ`.
pub(crate) fn date(at: i64) -> String {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    time::OffsetDateTime::from_unix_timestamp(at)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_default()
}

fn time_of(at: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap_or_default())
}

fn signed_headers(authorization: &str) -> &str {
    authorization
        .split(", ")
        .find_map(|part| part.strip_prefix("SignedHeaders="))
        .unwrap_or_default()
}

/// The client's key of one login: P-256. It never leaves this computer.
pub(crate) struct ClientKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl ClientKey {
    pub(crate) fn generate() -> Result<Self, SignError> {
        let failed = |what: &str| SignError::Key(what.to_owned());
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| failed("no randomness"))?;
        let pkcs8 = pair
            .to_pkcs8v1()
            .map_err(|_| failed("it cannot be written"))?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SignError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)
            .map_err(|error| SignError::Key(error.to_string()))?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            pair,
        })
    }

    /// PKCS#8, DER.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// For TLS.
    pub(crate) fn to_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn public_key(&self) -> Result<Vec<u8>, SignError> {
        self.pair
            .public_key()
            .as_der()
            .map(|der| der.as_ref().to_vec())
            .map_err(|_| SignError::Key("its public half cannot be written".to_owned()))
    }

    /// ECDSA with SHA-256, ASN.1.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| SignError::Key("it does not sign".to_owned()))
    }
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKey(…)")
    }
}

#[cfg(test)]
mod tests;
