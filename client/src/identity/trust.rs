//! Whom to believe that it is AWS: the profile's CA bundle, else the system's roots.

use std::sync::Arc;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
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

/// The HTTP client of AWS's SDKs, for a service at `host`: directly, or through a proxy.
pub(crate) fn https(profile: &AwsProfile, host: &str) -> Result<SharedHttpClient, TrustError> {
    let trust = match bundle(profile)? {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| TrustError::Tls(error.to_string()))?;
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
    let Some(proxy) = profile.proxies.toward(host) else {
        let direct = Builder::new().tls_provider(provider).tls_context(context);
        return Ok(direct.build_https());
    };
    let proxy = ProxyConfig::https(proxy.url())
        // The reason would show the URL, and with it the password.
        .map_err(|_| TrustError::Tls("the proxy's URL cannot be used".to_owned()))?;
    Ok(
        Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder().proxy_config(proxy.clone());
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|it| it.sleep_impl()));
            connector
                .tls_provider(provider.clone())
                .tls_context(context.clone())
                .build()
        }),
    )
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
