//! What tests of this part share: a configuration, certificate authorities, verified people, and
//! an STS that says whatever a test wants.

mod sts;

use std::sync::{Arc, Mutex};

use postern_proto::audit::event::Event;
use postern_proto::names::{Assurance, Principal};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{PeerTrust, Record, VerifiedPrincipal};
use crate::ca::client::ClientCa;
use crate::ca::x509::{Authority, Purpose};
use crate::ca::{ClientSubject, certificates_to_pem};
use crate::config::Config;

pub(crate) use sts::{FakeSts, Reply, Seen, assumed_xml, error, genuine, http, identity_xml, sign};

pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/postern-attest";
pub(crate) const ALICE: &str = "AIDAALICEALICEALICE1";
const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

pub(crate) fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// What a certificate says of somebody of the account 111122223333.
pub(crate) struct Says<'a> {
    pub(crate) name: &'a str,
    pub(crate) user_id: &'a str,
    pub(crate) assurance: Assurance,
    pub(crate) mfa_not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) serial: &'a str,
    pub(crate) key_hash: [u8; 32],
}

impl Default for Says<'_> {
    /// Alice with MFA, for ever.
    fn default() -> Self {
        Self {
            name: "alice",
            user_id: ALICE,
            assurance: Assurance::AwsMfa,
            mfa_not_before: 0,
            not_after: i64::MAX,
            serial: "01",
            key_hash: [0; 32],
        }
    }
}

impl Says<'_> {
    /// As if it had been checked.
    pub(crate) fn verified(self) -> VerifiedPrincipal {
        VerifiedPrincipal {
            principal: Principal {
                account: "111122223333".parse().unwrap(),
                user_id: self.user_id.parse().unwrap(),
                arn: format!("arn:aws:iam::111122223333:user/{}", self.name),
            },
            assurance: self.assurance,
            mfa_not_before: self.mfa_not_before,
            serial: self.serial.to_owned(),
            not_after: self.not_after,
            claimed_end: None,
            key_hash: self.key_hash,
            aws_request_ids: vec![],
        }
    }
}

/// A user of the account 111122223333.
pub(crate) fn principal(user_id: &str) -> Principal {
    let says = Says {
        user_id,
        ..Says::default()
    };
    says.verified().principal
}

/// A client with its certificate.
pub(crate) struct Certified {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) serial: String,
}

impl Certified {
    /// Alice, for an hour.
    pub(crate) fn alice(ca: &ClientCa) -> Self {
        let key = KeyPair::generate().unwrap();
        let subject = ClientSubject {
            principal: principal(ALICE),
            assurance: Assurance::AwsMfa,
            mfa_not_before: now() - 3600,
            claimed_end: None,
            claimed_serial: None,
            aws_request_ids: vec!["r1".to_owned()],
        };
        let spki = key.subject_public_key_info();
        let issued = ca.issue(&subject, &spki, now(), now() + 3600).unwrap();
        Self {
            chain: issued.chain.to_vec(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            serial: issued.serial,
        }
    }
}

/// A folder with all that one agent needs.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) server_ca: Authority,
    pub(crate) client_root: Authority,
    pub(crate) client_ca: Arc<ClientCa>,
}

impl Bench {
    /// An agent `bastion-1`; `extra` is appended to its configuration.
    pub(crate) fn new(sts: &str, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "id = \"bastion-1\"\nstate = \"state\"\n\
             [sts]\nregion = \"eu-west-1\"\n{sts}\n\
             [attestation]\nrole = \"{ROLE}\"\n\
             [evidence]\nrecipients = [\"{RECIPIENT}\"]\n{extra}"
        );
        let config = Config::parse(&text, &folder.path().join("agent.toml")).unwrap();
        let client_root = Authority::root(Purpose::Client, "root", now()).unwrap();
        let client_ca = client_root.intermediate(&config.id, now()).unwrap();
        Self {
            folder,
            config,
            server_ca: Authority::root(Purpose::Server, "servers", now()).unwrap(),
            client_root,
            client_ca: Arc::new(ClientCa::new(client_ca)),
        }
    }

    /// Whose certificates it accepts: its own.
    pub(crate) fn trust(&self) -> Arc<PeerTrust> {
        let own = self.client_ca.certificate();
        Arc::new(PeerTrust::load(&self.config, own, None).unwrap())
    }

    /// A server certificate with its key.
    pub(crate) fn server(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (chain, key) = self
            .server_ca
            .server_certificate(&self.config.id, now())
            .unwrap();
        (
            chain,
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
    }
}

/// Remembers events.
pub(crate) fn remember() -> (Record, Arc<Mutex<Vec<Event>>>) {
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let kept = events.clone();
    let record: Record = Arc::new(move |event| {
        kept.lock().unwrap().push(event);
        Box::pin(async { Ok(()) })
    });
    (record, events)
}

/// A chain as PEM, for files.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    certificates_to_pem(std::slice::from_ref(certificate))
}
