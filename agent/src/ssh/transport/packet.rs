//! Binary packets (RFC 4253 section 6): framing and the AEAD ciphers, in both directions.
//!
//! AES-GCM as in RFC 5647 with the names of OpenSSH (`PROTOCOL` 1.6), ChaCha20-Poly1305 as in
//! OpenSSH's `PROTOCOL.chacha20poly1305`. Ciphers without authentication are not offered.

use aws_lc_rs::aead::chacha20_poly1305_openssh as chacha;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{Buf, BytesMut};

use super::TransportError;

/// Longest packet (length field's value) before authentication: RFC 4253 section 6.1 asks for
/// 35,000 bytes.
pub(super) const BEFORE_AUTHENTICATION: usize = 35_000;

/// Longest packet afterwards: OpenSSH's own limit (`PACKET_MAX_SIZE`), since a command line may
/// fill it.
pub(super) const AFTER_AUTHENTICATION: usize = 256 * 1024;

const LENGTH: usize = 4;
const TAG: usize = 16;
const MIN_PADDING: usize = 4;

/// A cipher that we offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    /// `aes128-gcm@openssh.com`.
    Aes128Gcm,
    /// `aes256-gcm@openssh.com`.
    Aes256Gcm,
    /// `chacha20-poly1305@openssh.com`.
    ChaCha20Poly1305,
}

impl Cipher {
    /// In our order of preference: AES is several times faster where the processor has it.
    pub(super) const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Its name on the wire.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes128-gcm@openssh.com",
            Self::Aes256Gcm => "aes256-gcm@openssh.com",
            Self::ChaCha20Poly1305 => "chacha20-poly1305@openssh.com",
        }
    }

    /// Bytes of key that it takes from the key exchange.
    pub(super) fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm => 32,
            Self::ChaCha20Poly1305 => chacha::KEY_LEN,
        }
    }
}

/// Keys of one direction.
enum Key {
    Clear,
    Gcm {
        key: LessSafeKey,
        /// RFC 5647 section 7.1: 4 fixed bytes, then an invocation counter.
        nonce: [u8; 12],
    },
    Sealing(Box<chacha::SealingKey>),
    Opening(Box<chacha::OpeningKey>),
}

impl Key {
    /// `chacha` makes the one key that differs between the directions.
    fn new(
        cipher: Cipher,
        key: &[u8],
        iv: &[u8],
        chacha: impl FnOnce(&[u8; chacha::KEY_LEN]) -> Self,
    ) -> Result<Self, TransportError> {
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &AES_128_GCM,
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => {
                return Ok(chacha(key.try_into().map_err(|_| TransportError::Crypto)?));
            }
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| TransportError::Crypto)?;
        let nonce = iv.try_into().map_err(|_| TransportError::Crypto)?;
        Ok(Self::Gcm {
            key: LessSafeKey::new(key),
            nonce,
        })
    }

    /// What the length of a packet is aligned to, and whether the length field counts.
    fn alignment(&self) -> (usize, usize) {
        match self {
            Self::Clear => (8, LENGTH),
            Self::Gcm { .. } => (16, 0),
            Self::Sealing(_) | Self::Opening(_) => (8, 0),
        }
    }

    fn tag(&self) -> usize {
        if matches!(self, Self::Clear) { 0 } else { TAG }
    }
}

/// The next nonce; the counter wraps after 2^64 packets, and keys are replaced long before.
fn advance(nonce: &mut [u8; 12]) -> Nonce {
    let current = *nonce;
    if let Some(counter) = nonce.last_chunk_mut::<8>() {
        *counter = u64::from_be_bytes(*counter).wrapping_add(1).to_be_bytes();
    }
    Nonce::assume_unique_for_key(current)
}

/// Turns payloads into packets.
pub(super) struct Sealing {
    key: Key,
    sequence: u32,
    /// Bytes and packets under the current key.
    used: Used,
}

/// How much one key has protected.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// Bytes of payload.
    pub(super) bytes: u64,
    /// Packets.
    pub(super) packets: u32,
}

impl Sealing {
    pub(super) fn clear() -> Self {
        Self {
            key: Key::Clear,
            sequence: 0,
            used: Used::default(),
        }
    }

    /// Takes new keys into use.
    pub(super) fn rekey(
        &mut self,
        cipher: Cipher,
        key: &[u8],
        iv: &[u8],
    ) -> Result<(), TransportError> {
        self.key = Key::new(cipher, key, iv, |key| {
            Key::Sealing(Box::new(chacha::SealingKey::new(key)))
        })?;
        self.used = Used::default();
        Ok(())
    }

    /// Strict key exchange: numbers start again with new keys.
    pub(super) fn restart_sequence(&mut self) {
        self.sequence = 0;
    }

    pub(super) fn used(&self) -> Used {
        self.used
    }

    /// Appends `payload` as one packet.
    pub(super) fn seal(
        &mut self,
        payload: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), TransportError> {
        let (block, counted) = self.key.alignment();
        let unpadded = counted + 1 + payload.len();
        let mut padding = block - unpadded % block;
        if padding < MIN_PADDING {
            padding += block;
        }
        let length = 1 + payload.len() + padding;
        let wire_length = u32::try_from(length).map_err(|_| TransportError::TooLong(length))?;
        let start = out.len();
        out.reserve(LENGTH + length + TAG);
        out.extend_from_slice(&wire_length.to_be_bytes());
        // `padding` is below 4 + 16.
        out.extend_from_slice(&[u8::try_from(padding).unwrap_or(u8::MAX)]);
        out.extend_from_slice(payload);
        // Zeros: an AEAD leaves nothing for random padding to hide, and clear packets are public.
        out.resize(start + LENGTH + length, 0);
        let (_, packet) = out.split_at_mut(start);
        let sequence = self.sequence;
        match &mut self.key {
            Key::Clear => {}
            Key::Gcm { key, nonce } => {
                let (head, body) = packet
                    .split_first_chunk_mut::<LENGTH>()
                    .ok_or(TransportError::Crypto)?;
                let tag = key
                    .seal_in_place_separate_tag(advance(nonce), Aad::from(*head), body)
                    .map_err(|_| TransportError::Crypto)?;
                out.extend_from_slice(tag.as_ref());
            }
            Key::Sealing(key) => {
                let mut tag = [0; TAG];
                key.seal_in_place(sequence, packet, &mut tag);
                out.extend_from_slice(&tag);
            }
            Key::Opening(_) => return Err(TransportError::Crypto),
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.used.bytes = self.used.bytes.saturating_add(payload.len() as u64);
        self.used.packets = self.used.packets.saturating_add(1);
        Ok(())
    }
}

/// Turns received bytes into payloads.
pub(super) struct Opening {
    key: Key,
    sequence: u32,
    used: Used,
    limit: usize,
    /// Length of the packet that is being received, once its first bytes are there.
    expected: Option<usize>,
}

impl Opening {
    pub(super) fn clear() -> Self {
        Self {
            key: Key::Clear,
            sequence: 0,
            used: Used::default(),
            limit: BEFORE_AUTHENTICATION,
            expected: None,
        }
    }

    /// Allows the packets of an authenticated peer.
    pub(super) fn raise_limit(&mut self) {
        self.limit = AFTER_AUTHENTICATION;
    }

    /// Takes new keys into use.
    pub(super) fn rekey(
        &mut self,
        cipher: Cipher,
        key: &[u8],
        iv: &[u8],
    ) -> Result<(), TransportError> {
        self.key = Key::new(cipher, key, iv, |key| {
            Key::Opening(Box::new(chacha::OpeningKey::new(key)))
        })?;
        self.used = Used::default();
        Ok(())
    }

    /// Strict key exchange: numbers start again with new keys.
    pub(super) fn restart_sequence(&mut self) {
        self.sequence = 0;
    }

    pub(super) fn used(&self) -> Used {
        self.used
    }

    /// Number of the packet that [`Self::open`] returned last, for `UNIMPLEMENTED`.
    pub(super) fn last_sequence(&self) -> u32 {
        self.sequence.wrapping_sub(1)
    }

    /// Bytes that the buffer must hold before [`Self::open`] can return the next packet, as far
    /// as that is known.
    pub(super) fn wanted(&self) -> usize {
        self.expected
            .map_or(LENGTH, |length| LENGTH + length + self.key.tag())
    }

    /// The next payload, when all of its packet is in `input`. It refers to the bytes of `input`.
    pub(super) fn open(
        &mut self,
        input: &mut BytesMut,
    ) -> Result<Option<BytesMut>, TransportError> {
        let Some(length) = self.length(input)? else {
            return Ok(None);
        };
        let total = LENGTH + length + self.key.tag();
        if input.len() < total {
            return Ok(None);
        }
        let mut packet = input.split_to(total);
        match &mut self.key {
            Key::Clear => {}
            Key::Gcm { key, nonce } => {
                let (head, body) = packet
                    .split_first_chunk_mut::<LENGTH>()
                    .ok_or(TransportError::Forged)?;
                key.open_in_place(advance(nonce), Aad::from(*head), body)
                    .map_err(|_| TransportError::Forged)?;
            }
            Key::Opening(key) => {
                let tag = packet.split_off(LENGTH + length);
                let tag = tag
                    .as_ref()
                    .try_into()
                    .map_err(|_| TransportError::Forged)?;
                key.open_in_place(self.sequence, &mut packet, &tag)
                    .map_err(|_| TransportError::Forged)?;
            }
            Key::Sealing(_) => return Err(TransportError::Crypto),
        }
        self.expected = None;
        let padding = usize::from(packet.get(LENGTH).copied().unwrap_or(0));
        let payload = (length - 1).checked_sub(padding);
        let Some(payload) = payload.filter(|_| padding >= MIN_PADDING) else {
            return Err(TransportError::Framing("padding"));
        };
        packet.advance(LENGTH + 1);
        packet.truncate(payload);
        self.sequence = self.sequence.wrapping_add(1);
        self.used.bytes = self.used.bytes.saturating_add(payload as u64);
        self.used.packets = self.used.packets.saturating_add(1);
        Ok(Some(packet))
    }

    /// Length of the packet at the start of `input`, checked before anything is done with it.
    fn length(&mut self, input: &BytesMut) -> Result<Option<usize>, TransportError> {
        if let Some(length) = self.expected {
            return Ok(Some(length));
        }
        let Some(head) = input.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let head = match &self.key {
            Key::Opening(key) => key.decrypt_packet_length(self.sequence, *head),
            _ => *head,
        };
        let length = u32::from_be_bytes(head) as usize;
        if length > self.limit {
            return Err(TransportError::TooLong(length));
        }
        let (block, counted) = self.key.alignment();
        if length < 1 + MIN_PADDING || !(length + counted).is_multiple_of(block) {
            return Err(TransportError::Framing("length"));
        }
        self.expected = Some(length);
        Ok(Some(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(cipher: Cipher) -> (Sealing, Opening) {
        let key = vec![7; cipher.key_length()];
        let (mut sealing, mut opening) = (Sealing::clear(), Opening::clear());
        sealing.rekey(cipher, &key, &[3; 12]).unwrap();
        opening.rekey(cipher, &key, &[3; 12]).unwrap();
        (sealing, opening)
    }

    #[test]
    fn packets_arrive_however_the_bytes_are_cut() {
        for cipher in Cipher::ALL {
            for step in [1, 3, 7, 1000] {
                let (mut sealing, mut opening) = pair(cipher);
                let mut wire = BytesMut::new();
                let payloads: Vec<Vec<u8>> = (0..40_usize).map(|n| vec![n as u8; n * 13]).collect();
                for payload in &payloads {
                    sealing.seal(payload, &mut wire).unwrap();
                }
                let mut got = Vec::new();
                let mut input = BytesMut::new();
                for piece in wire.chunks(step) {
                    input.extend_from_slice(piece);
                    while let Some(payload) = opening.open(&mut input).unwrap() {
                        got.push(payload.to_vec());
                    }
                }
                assert_eq!(got, payloads, "{cipher:?} by {step}");
                assert!(input.is_empty());
            }
        }
    }

    #[test]
    fn a_changed_bit_anywhere_is_refused() {
        for cipher in Cipher::ALL {
            let (mut sealing, _) = pair(cipher);
            let mut wire = BytesMut::new();
            sealing.seal(b"exit-status", &mut wire).unwrap();
            for at in 0..wire.len() {
                let (_, mut opening) = pair(cipher);
                let mut changed = wire.clone();
                changed[at] ^= 1;
                // A changed length may ask for more bytes instead: nothing is released either way.
                assert!(
                    !matches!(opening.open(&mut changed), Ok(Some(_))),
                    "{cipher:?} byte {at}"
                );
            }
        }
    }

    #[test]
    fn a_packet_that_is_repeated_or_left_out_is_refused() {
        for cipher in Cipher::ALL {
            let (mut sealing, mut opening) = pair(cipher);
            let (mut first, mut second) = (BytesMut::new(), BytesMut::new());
            sealing.seal(b"first", &mut first).unwrap();
            sealing.seal(b"second", &mut second).unwrap();
            assert!(!matches!(opening.open(&mut second.clone()), Ok(Some(_))));
            let (_, mut opening) = pair(cipher);
            let again = first.clone();
            assert!(opening.open(&mut first).unwrap().is_some());
            assert!(!matches!(opening.open(&mut again.clone()), Ok(Some(_))));
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_the_bytes_are_there() {
        let mut opening = Opening::clear();
        let mut input = BytesMut::from(&[0, 1, 0, 4][..]);
        assert!(matches!(
            opening.open(&mut input),
            Err(TransportError::TooLong(65_540))
        ));
        let mut input = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        opening.raise_limit();
        assert!(opening.open(&mut input).is_err());
    }

    #[test]
    fn padding_that_does_not_fit_is_refused() {
        for bytes in [
            &[0, 0, 0, 12, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 12, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 12, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0][..],
            &[0, 0, 0, 1, 0][..],
        ] {
            let mut opening = Opening::clear();
            assert!(
                opening.open(&mut BytesMut::from(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
