//! Certificates as PEM text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::CaError;

/// All certificates of a text, at least one.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let fault = CaError::Pem {
        expected: "PEM certificate",
    };
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(fault),
    }
}

/// Certificates as PEM, one after the other, lines of 64 characters (RFC 7468).
pub fn certificates_to_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        let body = STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, left) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = left;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_reads_back_as_it_was_written() {
        let chain = [
            CertificateDer::from(vec![1; 48]),
            CertificateDer::from(vec![2; 49]),
        ];
        let text = certificates_to_pem(&chain);
        assert_eq!(certificates_from_pem(text.as_bytes()).unwrap(), chain);
        assert!(certificates_from_pem(b"nothing").is_err());
    }
}
