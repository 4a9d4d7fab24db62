//! What the emulated AWS starts with, and why it may not start.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::clock::Clock;
use super::fleet::PasswordError;
use super::policy::MalformedPolicy;
use super::seed::{Instance, Role, Root, Subnet, User, Vpc};
use crate::ssm::SessionDocument;

/// What the emulated AWS starts with.
#[derive(Debug)]
pub struct AwsConfig {
    /// Twelve digits.
    pub account: String,
    /// Regions that are enabled; the first is the account's main one.
    pub regions: Vec<String>,
    /// An address of 127.0.0.0/8; port 0 takes a free one.
    pub listen: SocketAddr,
    pub tls: Tls,
    pub clock: Clock,
    pub root: Root,
    pub users: Vec<User>,
    /// In order: a trust policy can name users and the roles before it.
    pub roles: Vec<Role>,
    pub vpcs: Vec<Vpc>,
    pub subnets: Vec<Subnet>,
    pub instances: Vec<Instance>,
    /// Session documents of the account's own.
    pub documents: Vec<SessionDocument>,
    /// Aliases of KMS keys, without `alias/`.
    pub kms_keys: Vec<String>,
}

impl AwsConfig {
    /// An empty account in one region.
    #[must_use]
    pub fn new(account: &str, region: &str, listen: SocketAddr, tls: Tls) -> Self {
        Self {
            account: account.to_owned(),
            regions: vec![region.to_owned()],
            listen,
            tls,
            clock: Clock::system(),
            root: Root::default(),
            users: Vec::new(),
            roles: Vec::new(),
            vpcs: Vec::new(),
            subnets: Vec::new(),
            instances: Vec::new(),
            documents: Vec::new(),
            kms_keys: Vec::new(),
        }
    }
}

/// The endpoint's certificate chain, its own certificate first, and key.
pub struct Tls {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Tls {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// If either is missing or not PEM.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, StartError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| StartError::Certificate(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| StartError::Certificate(error.to_string()))?;
        Ok(Self { chain, key })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why the emulated AWS did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is not an account id of twelve digits")]
    Account(String),
    #[error("no region is enabled")]
    NoRegion,
    #[error("the lab's AWS listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    #[error("the certificate or key of the lab's AWS cannot be used: {0}")]
    Certificate(String),
    #[error("the lab's AWS cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("{0} has a policy that IAM would refuse: {1}")]
    Policy(String, MalformedPolicy),
    #[error(transparent)]
    Password(#[from] PasswordError),
}

/// TLS 1.3, and 1.2 as AWS's own endpoints still offer it.
pub(super) fn acceptor(tls: Tls) -> Result<TlsAcceptor, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let unusable = |error: rustls::Error| StartError::Certificate(error.to_string());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(tls.chain, tls.key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
