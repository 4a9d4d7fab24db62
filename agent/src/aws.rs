//! How the agent reaches AWS services other than STS: credentials, endpoint, trust.
//!
//! The SDK's own types are named only where a service is called (`inventory/ec2.rs`,
//! `instance_connect.rs`) and here.

mod region;

use std::path::PathBuf;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use crate::files::{self, FileError};

pub use region::region_suffix;

/// How one AWS service is reached.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// `https://HOST[:PORT]` in place of the region's own endpoint.
    pub endpoint_url: Option<String>,
    /// PEM file of the CAs of that endpoint, in place of the system's roots.
    pub ca_bundle: Option<PathBuf>,
    /// In place of the default chain (environment, shared files, the instance's role).
    pub credentials: Option<Credentials>,
}

/// Why AWS cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// The CA bundle cannot be read.
    #[error("the CA bundle: {0}")]
    Bundle(#[from] FileError),
    /// The CA bundle holds no certificate that could be used.
    #[error("the CA bundle {} cannot be used: {reason}", path.display())]
    Certificates {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Credentials and answers would travel in the clear.
    #[error("the endpoint `{0}` is not an https URL")]
    Endpoint(String),
}

impl AwsSettings {
    /// The SDK's configuration, for clients of any region. Reads files, calls nobody.
    pub(crate) async fn load(&self) -> Result<SdkConfig, AwsError> {
        // The default chain keeps the SDK's own client: its services are not this endpoint.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(ATTEMPT)
            .operation_timeout(OPERATION)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
        if let Some(credentials) = &self.credentials {
            loader =
                loader.credentials_provider(SharedCredentialsProvider::new(credentials.clone()));
        }
        let mut config = loader.load().await.into_builder();
        let context = TlsContext::builder()
            .with_trust_store(self.trust()?)
            .build()
            .map_err(|error| self.unusable(&error.to_string()))?;
        let client = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(context)
            .build_https();
        config.set_http_client(Some(client));
        if let Some(url) = &self.endpoint_url {
            if !url.starts_with("https://") {
                return Err(AwsError::Endpoint(clean(url)));
            }
            config.set_endpoint_url(Some(url.clone()));
        }
        Ok(config.build())
    }

    fn trust(&self) -> Result<TrustStore, AwsError> {
        let Some(path) = &self.ca_bundle else {
            return Ok(TrustStore::default());
        };
        let pem = files::read(path, MAX_BUNDLE)?;
        // The SDK would panic on it at the first call.
        use rustls_pki_types::pem::PemObject as _;
        let mut certificates = 0;
        for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| self.unusable(&error.to_string()))?;
            rustls::RootCertStore::empty()
                .add(certificate)
                .map_err(|error| self.unusable(&error.to_string()))?;
            certificates += 1;
        }
        if certificates == 0 {
            return Err(self.unusable("it holds no certificate"));
        }
        Ok(TrustStore::empty().with_pem_certificate(pem))
    }

    fn unusable(&self, reason: &str) -> AwsError {
        AwsError::Certificates {
            path: self.ca_bundle.clone().unwrap_or_default(),
            reason: clean(reason),
        }
    }
}

/// What a failed call says, the whole chain of causes: the SDK's own text is only `service error`.
pub(crate) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if parts.len() < 8 && parts.last() != Some(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    clean(&parts.join(": "))
}

/// Text from outside on its way to a log or a terminal: one line, bounded, nothing that a terminal
/// would obey or that turns the order of letters.
pub(crate) fn clean(text: &str) -> String {
    let safe = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let breaks = matches!(c, '\u{2028}' | '\u{2029}');
        if c.is_control() || turns || breaks {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().take(MAX_TEXT).map(safe).collect()
}

const CONNECT: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(15);
const OPERATION: Duration = Duration::from_secs(40);
/// Bytes of a CA bundle: the public roots are about 250 KiB.
const MAX_BUNDLE: u64 = 4 << 20;
/// Characters of a text from outside.
const MAX_TEXT: usize = 512;

#[cfg(test)]
pub(crate) mod fake;
