//! Where STS may be, and by whose word it is STS.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustls::RootCertStore;

use super::StsFault;
use crate::keys;

/// Refuses a name as soon as one of its addresses is not public: a resolver that answers so is
/// lying or misconfigured.
pub(super) fn check_public(host: &str, addresses: &[SocketAddr]) -> Result<(), StsFault> {
    match addresses.iter().find(|address| !is_public(address.ip())) {
        Some(address) => Err(StsFault::Address {
            host: host.to_owned(),
            address: address.ip(),
        }),
        None => Ok(()),
    }
}

/// Whether an address is one of the public internet (IANA special-purpose registries).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b & 0xfe) == 18)
                || (a == 192 && b == 0 && c == 0))
        }
        IpAddr::V6(v6) => {
            let [a, b, ..] = v6.segments();
            // 2000::/3 is what is allocated; documentation, 6to4 and Teredo in it carry no STS.
            (a & 0xe000) == 0x2000 && a != 0x2002 && !(a == 0x2001 && (b == 0xdb8 || b == 0))
        }
    }
}

/// The roots of a CA bundle.
pub(super) fn bundle(path: &Path) -> Result<RootCertStore, StsFault> {
    let fault = |error: String| StsFault::Endpoint(error);
    let chain = keys::certificates_of(path).map_err(|error| fault(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in chain {
        roots
            .add(certificate)
            .map_err(|error| fault(format!("{}: {error}", path.display())))?;
    }
    Ok(roots)
}

/// The system's own.
pub(super) fn system_roots() -> Result<RootCertStore, StsFault> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system's bundle may hold a certificate that webpki cannot use; the others serve.
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        return Err(StsFault::Endpoint(
            "the system has no root certificates; name some in `sts.ca_bundle`".to_owned(),
        ));
    }
    Ok(roots)
}
