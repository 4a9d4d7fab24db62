//! Exchanging keys: the messages of it, for either role, the first time and again.

use postern_proto::wire::{Reader, Writer};
use zeroize::Zeroizing;

use super::exchange::{self, Ephemeral, Said, Secret};
use super::negotiation::{self, Choice, KEXINIT, Offer};
use super::packet::{Cipher, Used};
use super::{Role, Transport, TransportError, message, signing};

/// New keys before a sequence number (32 bits) comes again. By volume: [`super::REKEY_BYTES`].
const REKEY_PACKETS: u32 = 1 << 30;

/// Where a key exchange is.
pub(super) enum Kex {
    /// None is running.
    Idle,
    /// Our offer is out.
    Offered { bytes: Vec<u8>, offer: Offer },
    /// A server waits for the client's public value.
    AwaitInit(Agreed),
    /// A client waits for the server's.
    AwaitReply(Agreed, Box<Ephemeral>),
    /// Our `NEWKEYS` is out, the peer's not in.
    AwaitNewKeys { cipher: Cipher, keys: Keys },
}

/// Both offers and what came of them.
pub(super) struct Agreed {
    choice: Choice,
    client_offer: Vec<u8>,
    server_offer: Vec<u8>,
}

/// Key and initial value of one direction.
pub(super) struct Keys {
    key: Zeroizing<Vec<u8>>,
    iv: Zeroizing<Vec<u8>>,
}

impl Transport {
    pub(super) fn rekey_when_due(&mut self) -> Result<(), TransportError> {
        let due = |used: Used| used.bytes >= self.rekey_bytes || used.packets >= REKEY_PACKETS;
        if self.authenticated
            && matches!(self.kex, Kex::Idle)
            && (due(self.sealing.used()) || due(self.opening.used()))
        {
            self.start_exchange()?;
        }
        Ok(())
    }

    pub(super) fn start_exchange(&mut self) -> Result<(), TransportError> {
        let first = self.session.is_empty();
        let (bytes, offer) = negotiation::offer(self.role, &self.host_key_algorithms, first)?;
        self.sealing.seal(&bytes, &mut self.output)?;
        self.kex = Kex::Offered { bytes, offer };
        Ok(())
    }

    pub(super) fn on_offer(&mut self, theirs: &[u8]) -> Result<(), TransportError> {
        if matches!(self.kex, Kex::Idle) {
            self.start_exchange()?;
        }
        let Kex::Offered { bytes, offer } = std::mem::replace(&mut self.kex, Kex::Idle) else {
            return Err(TransportError::Unexpected(KEXINIT));
        };
        let first = self.session.is_empty();
        let parsed = negotiation::parse(theirs)?;
        let choice = negotiation::choose(self.role, &offer, &parsed, first)?;
        self.strict |= choice.strict;
        self.skip_guess = choice.skip_guess;
        self.kex = match self.role {
            Role::Server => Kex::AwaitInit(Agreed {
                choice,
                client_offer: theirs.to_vec(),
                server_offer: bytes,
            }),
            Role::Client => {
                let ephemeral = Box::new(Ephemeral::generate(choice.method)?);
                let init = Writer::new()
                    .u8(message::KEX_INIT)
                    .vec32(&ephemeral.public)
                    .finish();
                self.sealing.seal(&init, &mut self.output)?;
                let agreed = Agreed {
                    choice,
                    client_offer: bytes,
                    server_offer: theirs.to_vec(),
                };
                Kex::AwaitReply(agreed, ephemeral)
            }
        };
        Ok(())
    }

    pub(super) fn on_exchange(&mut self, kind: u8, payload: &[u8]) -> Result<(), TransportError> {
        let mut reader = Reader::new(payload);
        reader.u8("message")?;
        match (kind, std::mem::replace(&mut self.kex, Kex::Idle)) {
            (message::KEX_INIT, Kex::AwaitInit(agreed)) => {
                let init = reader.vec32("public value", 2048)?;
                reader.finish()?;
                self.answer(&agreed, init)
            }
            (message::KEX_REPLY, Kex::AwaitReply(agreed, ephemeral)) => {
                let host_key = reader.vec32("host key", 16 * 1024)?;
                let reply = reader.vec32("public value", 2048)?;
                let signature = reader.vec32("signature", 2048)?;
                reader.finish()?;
                self.conclude(&agreed, *ephemeral, host_key, reply, signature)
            }
            (message::NEWKEYS, Kex::AwaitNewKeys { cipher, keys }) => {
                reader.finish()?;
                self.opening.rekey(cipher, &keys.key, &keys.iv)?;
                if self.strict {
                    self.opening.restart_sequence();
                }
                self.secured = true;
                Ok(())
            }
            _ => Err(TransportError::Unexpected(kind)),
        }
    }

    /// The server's side of the exchange.
    fn answer(&mut self, agreed: &Agreed, init: &[u8]) -> Result<(), TransportError> {
        let identity = self.identity.clone().ok_or(TransportError::Crypto)?;
        let host_key = identity.blob(&agreed.choice.host_key)?;
        let (reply, secret) = exchange::answer(agreed.choice.method, init)?;
        let hash = secret.exchange_hash(&Said {
            client_identification: self.peer_identification.as_deref().unwrap_or_default(),
            server_identification: &self.identification,
            client_offer: &agreed.client_offer,
            server_offer: &agreed.server_offer,
            host_key: &host_key,
            init,
            reply: &reply,
        });
        let signature = identity.sign(&hash)?;
        let message = Writer::new()
            .u8(message::KEX_REPLY)
            .vec32(&host_key)
            .vec32(&reply)
            .vec32(&signature)
            .finish();
        self.sealing.seal(&message, &mut self.output)?;
        self.take_keys(&agreed.choice, &secret, hash)
    }

    /// The client's side of it.
    fn conclude(
        &mut self,
        agreed: &Agreed,
        ephemeral: Ephemeral,
        blob: &[u8],
        reply: &[u8],
        signature: &[u8],
    ) -> Result<(), TransportError> {
        let algorithm = &agreed.choice.host_key;
        let host_key = signing::host_key(algorithm, blob)?;
        let init = ephemeral.public.clone();
        let secret = ephemeral.finish(reply)?;
        let hash = secret.exchange_hash(&Said {
            client_identification: &self.identification,
            server_identification: self.peer_identification.as_deref().unwrap_or_default(),
            client_offer: &agreed.client_offer,
            server_offer: &agreed.server_offer,
            host_key: blob,
            init: &init,
            reply,
        });
        signing::verify(algorithm, &host_key.key, &hash, signature)?;
        match &self.host_key {
            Some((first, _)) if first != blob => {
                return Err(TransportError::HostKey("it changed within the connection"));
            }
            _ => self.host_key = Some((blob.to_vec(), host_key)),
        }
        self.take_keys(&agreed.choice, &secret, hash)
    }

    /// Sends `NEWKEYS`, takes the sending keys into use, and waits for the peer's.
    fn take_keys(
        &mut self,
        choice: &Choice,
        secret: &Secret,
        hash: Vec<u8>,
    ) -> Result<(), TransportError> {
        self.sealing.seal(&[message::NEWKEYS], &mut self.output)?;
        if self.session.is_empty() {
            self.session = hash.clone();
        }
        let keys = |iv: u8, key: u8, cipher: Cipher| Keys {
            iv: secret.derive(iv, &hash, &self.session, 12),
            key: secret.derive(key, &hash, &self.session, cipher.key_length()),
        };
        let up = keys(b'A', b'C', choice.cipher_up);
        let down = keys(b'B', b'D', choice.cipher_down);
        let (sealing, sealing_cipher, opening, opening_cipher) = match self.role {
            Role::Client => (up, choice.cipher_up, down, choice.cipher_down),
            Role::Server => (down, choice.cipher_down, up, choice.cipher_up),
        };
        self.sealing
            .rekey(sealing_cipher, &sealing.key, &sealing.iv)?;
        if self.strict {
            self.sealing.restart_sequence();
        }
        self.kex = Kex::AwaitNewKeys {
            cipher: opening_cipher,
            keys: opening,
        };
        for payload in std::mem::take(&mut self.held) {
            self.sealing.seal(&payload, &mut self.output)?;
        }
        self.held_bytes = 0;
        Ok(())
    }
}
