//! Who is at the other end of a connection, and what a session takes from it as proof.

use std::net::SocketAddr;

use postern_proto::gateway::message::{Join, join_proof};
use rustls::pki_types::CertificateDer;
use subtle::ConstantTimeEq;

use super::Session;

/// The other end of an authenticated connection.
pub(crate) struct Peer {
    /// Kept to be checked again.
    pub(crate) certificate: CertificateDer<'static>,
    /// TLS exporter for [`join_proof`].
    pub(crate) exporter: [u8; 32],
    pub(crate) source: SocketAddr,
}

impl Session {
    /// Whether `peer` holds the session's secret: it may ask for a further pipe.
    pub(crate) fn is_joined_by(&self, join: &Join, peer: &Peer) -> bool {
        let proof = join_proof(&self.secret, &peer.exporter, self.id);
        proof.as_bytes().ct_eq(join.proof.as_bytes()).into()
    }
}
