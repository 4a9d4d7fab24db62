//! The key exchange itself: ephemeral keys, the shared secret, the exchange hash and the keys that
//! come of it (RFC 4253 sections 7.2 and 8).

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{self, SHA256, SHA384};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use postern_proto::wire::Writer;
use zeroize::Zeroizing;

use super::TransportError;
use super::negotiation::Method;

/// Lengths of ML-KEM-768 (FIPS 203): encapsulation key and ciphertext.
const ENCAPSULATION_KEY: usize = 1184;
const CIPHERTEXT: usize = 1088;

impl Method {
    fn curve(self) -> &'static agreement::Algorithm {
        match self {
            Self::MlKem768X25519 | Self::Curve25519 => &X25519,
            Self::NistP256 => &ECDH_P256,
            Self::NistP384 => &ECDH_P384,
        }
    }

    fn hash(self) -> &'static digest::Algorithm {
        match self {
            Self::NistP384 => &SHA384,
            Self::MlKem768X25519 | Self::Curve25519 | Self::NistP256 => &SHA256,
        }
    }
}

/// The client's ephemeral keys.
pub(super) struct Ephemeral {
    method: Method,
    curve: PrivateKey,
    kem: Option<DecapsulationKey>,
    /// What the client sends (`Q_C`, `C_INIT`).
    pub(super) public: Vec<u8>,
}

/// A shared secret, encoded as the exchange hash and the key derivation take it: an mpint, or a
/// string for the hybrid.
pub(super) struct Secret {
    encoded: Zeroizing<Vec<u8>>,
    method: Method,
}

impl Ephemeral {
    /// Fresh keys of a client.
    pub(super) fn generate(method: Method) -> Result<Self, TransportError> {
        let curve = PrivateKey::generate(method.curve()).map_err(|_| TransportError::Crypto)?;
        let mut public = Vec::new();
        let kem = match method {
            Method::MlKem768X25519 => {
                let kem =
                    DecapsulationKey::generate(&ML_KEM_768).map_err(|_| TransportError::Crypto)?;
                let key = kem
                    .encapsulation_key()
                    .map_err(|_| TransportError::Crypto)?;
                let bytes = key.key_bytes().map_err(|_| TransportError::Crypto)?;
                public.extend_from_slice(bytes.as_ref());
                Some(kem)
            }
            Method::Curve25519 | Method::NistP256 | Method::NistP384 => None,
        };
        let point = curve
            .compute_public_key()
            .map_err(|_| TransportError::Crypto)?;
        public.extend_from_slice(point.as_ref());
        Ok(Self {
            method,
            curve,
            kem,
            public,
        })
    }

    /// The secret shared with a server that answered `reply`.
    pub(super) fn finish(self, reply: &[u8]) -> Result<Secret, TransportError> {
        let Some(kem) = &self.kem else {
            return Ok(Secret::number(
                self.method,
                &agree(&self.curve, self.method, reply)?,
            ));
        };
        let (ciphertext, point) = reply
            .split_at_checked(CIPHERTEXT)
            .ok_or(TransportError::Framing("key exchange reply"))?;
        let quantum = kem
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| TransportError::Framing("key exchange reply"))?;
        let classic = agree(&self.curve, self.method, point)?;
        Ok(Secret::hybrid(quantum.as_ref(), &classic))
    }
}

/// A server's answer to a client's public value: what it sends back, and the secret.
pub(super) fn answer(method: Method, init: &[u8]) -> Result<(Vec<u8>, Secret), TransportError> {
    let curve = PrivateKey::generate(method.curve()).map_err(|_| TransportError::Crypto)?;
    let own = curve
        .compute_public_key()
        .map_err(|_| TransportError::Crypto)?;
    match method {
        Method::MlKem768X25519 => {
            let (key, point) = init
                .split_at_checked(ENCAPSULATION_KEY)
                .ok_or(TransportError::Framing("key exchange init"))?;
            let key = EncapsulationKey::new(&ML_KEM_768, key)
                .map_err(|_| TransportError::Framing("key exchange init"))?;
            let (ciphertext, quantum) = key
                .encapsulate()
                .map_err(|_| TransportError::Framing("key exchange init"))?;
            let classic = agree(&curve, method, point)?;
            let mut reply = ciphertext.as_ref().to_vec();
            reply.extend_from_slice(own.as_ref());
            Ok((reply, Secret::hybrid(quantum.as_ref(), &classic)))
        }
        Method::Curve25519 | Method::NistP256 | Method::NistP384 => {
            let shared = agree(&curve, method, init)?;
            Ok((own.as_ref().to_vec(), Secret::number(method, &shared)))
        }
    }
}

/// Diffie-Hellman on the method's curve. aws-lc-rs checks the point and refuses an all-zero
/// X25519 secret.
fn agree(
    own: &PrivateKey,
    method: Method,
    peer: &[u8],
) -> Result<Zeroizing<Vec<u8>>, TransportError> {
    let length = match method {
        Method::MlKem768X25519 | Method::Curve25519 => 32,
        Method::NistP256 => 65,
        Method::NistP384 => 97,
    };
    // The library would read other encodings of a key too; the protocol has this one.
    if peer.len() != length {
        return Err(TransportError::Framing("public value"));
    }
    agreement::agree(
        own,
        UnparsedPublicKey::new(method.curve(), peer),
        TransportError::Framing("public value"),
        |secret| Ok(Zeroizing::new(secret.to_vec())),
    )
}

impl Secret {
    fn number(method: Method, secret: &[u8]) -> Self {
        let significant: &[u8] = match secret.iter().position(|byte| *byte != 0) {
            Some(start) => secret.get(start..).unwrap_or_default(),
            None => &[],
        };
        // An mpint is signed: a set top bit needs a zero before it (RFC 4251 section 5).
        let zero: &[u8] = match significant.first() {
            Some(byte) if *byte >= 0x80 => &[0],
            _ => &[],
        };
        let number = Zeroizing::new([zero, significant].concat());
        Self {
            encoded: Zeroizing::new(Writer::new().vec32(&number).finish()),
            method,
        }
    }

    fn hybrid(quantum: &[u8], classic: &[u8]) -> Self {
        let both = Zeroizing::new([quantum, classic].concat());
        let hash = digest::digest(&SHA256, &both);
        Self {
            encoded: Zeroizing::new(Writer::new().vec32(hash.as_ref()).finish()),
            method: Method::MlKem768X25519,
        }
    }

    /// The exchange hash `H` over everything that both sides said.
    pub(super) fn exchange_hash(&self, said: &Said<'_>) -> Vec<u8> {
        let text = Writer::new()
            .vec32(said.client_identification)
            .vec32(said.server_identification)
            .vec32(said.client_offer)
            .vec32(said.server_offer)
            .vec32(said.host_key)
            .vec32(said.init)
            .vec32(said.reply)
            .raw(&self.encoded)
            .finish();
        let text = Zeroizing::new(text);
        digest::digest(self.method.hash(), &text).as_ref().to_vec()
    }

    /// `length` bytes of key material named `letter` (RFC 4253 section 7.2).
    pub(super) fn derive(
        &self,
        letter: u8,
        hash: &[u8],
        session: &[u8],
        length: usize,
    ) -> Zeroizing<Vec<u8>> {
        let mut context = digest::Context::new(self.method.hash());
        context.update(&self.encoded);
        context.update(hash);
        context.update(&[letter]);
        context.update(session);
        let mut key = Zeroizing::new(context.finish().as_ref().to_vec());
        while key.len() < length {
            let mut context = digest::Context::new(self.method.hash());
            context.update(&self.encoded);
            context.update(hash);
            context.update(&key);
            let more = context.finish();
            // A new vector, so that no old copy of the key is left behind by growth.
            key = Zeroizing::new([key.as_slice(), more.as_ref()].concat());
        }
        key.truncate(length);
        key
    }
}

/// What goes into the exchange hash, in its order.
pub(super) struct Said<'a> {
    pub(super) client_identification: &'a [u8],
    pub(super) server_identification: &'a [u8],
    pub(super) client_offer: &'a [u8],
    pub(super) server_offer: &'a [u8],
    pub(super) host_key: &'a [u8],
    pub(super) init: &'a [u8],
    pub(super) reply: &'a [u8],
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [Method; 4] = [
        Method::MlKem768X25519,
        Method::Curve25519,
        Method::NistP256,
        Method::NistP384,
    ];

    #[test]
    fn both_sides_get_the_same_secret() {
        for method in METHODS {
            let client = Ephemeral::generate(method).unwrap();
            let (reply, server) = answer(method, &client.public).unwrap();
            let client = client.finish(&reply).unwrap();
            assert_eq!(client.encoded, server.encoded, "{method:?}");
        }
    }

    #[test]
    fn public_values_of_a_wrong_length_or_weak_are_refused() {
        for method in METHODS {
            for bad in [
                vec![],
                vec![0; 31],
                vec![0; 32],
                vec![4; 65],
                vec![0; 1216],
                vec![1; 2000],
            ] {
                assert!(answer(method, &bad).is_err(), "{method:?} {}", bad.len());
                let client = Ephemeral::generate(method).unwrap();
                assert!(client.finish(&bad).is_err(), "{method:?} {}", bad.len());
            }
        }
    }

    #[test]
    fn a_secret_is_encoded_as_the_shortest_positive_number() {
        let encoded = |secret: &[u8]| Secret::number(Method::Curve25519, secret).encoded.to_vec();
        assert_eq!(encoded(&[0, 0, 0x7f, 1]), [0, 0, 0, 2, 0x7f, 1]);
        assert_eq!(encoded(&[0, 0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(encoded(&[0, 0]), [0, 0, 0, 0]);
    }
}
