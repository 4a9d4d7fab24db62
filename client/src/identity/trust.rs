//! Whom to believe that it is AWS: the profile's CA bundle, else the system's roots.

use std::sync::Arc;

use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::config::{ConfigError, read_small};

use super::aws::AwsProfile;

const BUNDLE_LIMIT: u64 = 4 * 1024 * 1024;

/// Why nobody can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TrustError {
    /// The CA bundle.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// The HTTP client of AWS's SDKs.
pub(crate) fn https(profile: &AwsProfile) -> Result<SharedHttpClient, TrustError> {
    let trust = match bundle(profile)? {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| TrustError::Tls(error.to_string()))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .tls_context(context)
        .build_https())
}

/// TLS 1.3 for what no SDK speaks: the streams of SSM sessions.
pub(crate) fn tls_config(profile: &AwsProfile) -> Result<Arc<ClientConfig>, TrustError> {
    let mut roots = RootCertStore::empty();
    match bundle(profile)? {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let unusable = |error: &dyn std::fmt::Display| {
                    TrustError::Tls(format!("the CA bundle: {error}"))
                };
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
        }
        None => {
            // Some systems carry roots that nobody can read; the rest serves.
            let (_added, _ignored) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TrustError::Tls("no CA certificate is known".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TrustError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn bundle(profile: &AwsProfile) -> Result<Option<Vec<u8>>, ConfigError> {
    profile
        .ca_bundle
        .as_deref()
        .map(|path| read_small("the CA bundle", path, BUNDLE_LIMIT))
        .transpose()
}
