//! Certificates.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::identity::ClientCertificate;

/// A CA for the server and one for clients.
pub(crate) struct Pki {
    server: Issuer<'static, KeyPair>,
    pub(crate) server_pem: Vec<u8>,
    client: Issuer<'static, KeyPair>,
    client_ca: CertificateDer<'static>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let (server, server_pem, _) = authority();
        let (client, _, client_ca) = authority();
        Self {
            server,
            server_pem: server_pem.into_bytes(),
            client,
            client_ca,
        }
    }

    /// A server that speaks `alpn` and demands a certificate of the client CA.
    pub(crate) fn server(&self, name: &str, alpn: &[&[u8]], expired: bool) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.server).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.client_ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], private(&key))
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    pub(crate) fn client(&self) -> ClientCertificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["alice".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.client).unwrap();
        ClientCertificate {
            chain: vec![certificate.der().clone()],
            key: private(&key),
            not_after: i64::MAX,
        }
    }
}

fn authority() -> (Issuer<'static, KeyPair>, String, CertificateDer<'static>) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (
        Issuer::new(params, key),
        certificate.pem(),
        certificate.der().clone(),
    )
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}
