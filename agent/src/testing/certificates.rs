//! Certificates as `init` makes them, and of two clients.

use std::collections::HashMap;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::principal;
use crate::ca::ClientSubject;
use crate::ca::client::ClientCa;
use crate::ca::x509::{Authority, Purpose};

/// What an agent starts with, and its clients.
pub(super) struct Issued {
    pub(super) server: (CertificateDer<'static>, PrivateKeyDer<'static>),
    pub(super) own: CertificateDer<'static>,
    pub(super) certificates: Certificates,
}

/// What clients need.
pub(super) struct Certificates {
    pub(super) root: CertificateDer<'static>,
    pub(super) clients:
        HashMap<&'static str, (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// As `init` makes them: a server CA, this agent's client CA, and what they sign.
pub(super) fn issue() -> Issued {
    let agent = "bastion-1".parse().unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let servers = Authority::root(Purpose::Server, "servers", now).unwrap();
    let (server, server_key) = servers.server_certificate(&agent, now).unwrap();
    let clients = Authority::root(Purpose::Client, "clients", now).unwrap();
    let ca = ClientCa::new(clients.intermediate(&agent, now).unwrap());
    let certify = |name: &'static str| {
        let key = KeyPair::generate().unwrap();
        let who = principal(name);
        let subject = ClientSubject {
            principal: who.principal().clone(),
            assurance: who.assurance(),
            mfa_not_before: now - 60,
            claimed_end: None,
            claimed_serial: None,
            aws_request_ids: vec!["login".to_owned()],
        };
        let spki = key.subject_public_key_info();
        let issued = ca.issue(&subject, &spki, now, now + 3600).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (name, (issued.chain.to_vec(), key))
    };
    let clients = ["alice", "bobby"].map(certify).into();
    Issued {
        server: (
            server,
            PrivateKeyDer::from_pem_slice(server_key.as_bytes()).unwrap(),
        ),
        own: ca.certificate().clone(),
        certificates: Certificates {
            root: servers.certificate().clone(),
            clients,
        },
    }
}
