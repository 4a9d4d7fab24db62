//! Choosing algorithms: `KEXINIT` (RFC 4253 section 7.1).

use postern_proto::wire::{Reader, Writer};

use super::packet::Cipher;
use super::{Role, TransportError};

/// `SSH_MSG_KEXINIT`.
pub(super) const KEXINIT: u8 = 20;

/// Longest name list that is read.
const MAX_LIST: usize = 8 * 1024;

/// Strict key exchange (OpenSSH `PROTOCOL` 1.10) against CVE-2023-48795.
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";

/// A key exchange method that we offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// `mlkem768x25519-sha256` (draft-ietf-sshm-mlkem-hybrid-kex): post-quantum hybrid.
    MlKem768X25519,
    /// `curve25519-sha256` (RFC 8731).
    Curve25519,
    /// `ecdh-sha2-nistp256` (RFC 5656): what targets in FIPS mode offer.
    NistP256,
    /// `ecdh-sha2-nistp384`.
    NistP384,
}

impl Method {
    const NAMES: [(&'static str, Self); 5] = [
        ("mlkem768x25519-sha256", Self::MlKem768X25519),
        ("curve25519-sha256", Self::Curve25519),
        ("curve25519-sha256@libssh.org", Self::Curve25519),
        ("ecdh-sha2-nistp256", Self::NistP256),
        ("ecdh-sha2-nistp384", Self::NistP384),
    ];
}

/// One side's offer, as far as we use it.
#[derive(Debug, Clone, Default)]
pub(super) struct Offer {
    methods: Vec<String>,
    host_keys: Vec<String>,
    ciphers_up: Vec<String>,
    ciphers_down: Vec<String>,
    compression_up: Vec<String>,
    compression_down: Vec<String>,
    guess_follows: bool,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) method: Method,
    /// Host key algorithm, a certificate type perhaps.
    pub(super) host_key: String,
    /// Client to server.
    pub(super) cipher_up: Cipher,
    /// Server to client.
    pub(super) cipher_down: Cipher,
    /// Both sides want strict key exchange.
    pub(super) strict: bool,
    /// The peer sent a packet for a wrong guess: it is ignored.
    pub(super) skip_guess: bool,
}

/// Our `KEXINIT`, whole, and what it offers.
pub(super) fn offer(
    role: Role,
    host_keys: &[String],
    first: bool,
) -> Result<(Vec<u8>, Offer), TransportError> {
    let mut cookie = [0; 16];
    aws_lc_rs::rand::fill(&mut cookie).map_err(|_| TransportError::Crypto)?;
    let mut methods: Vec<String> = Method::NAMES.map(|(name, _)| name.to_owned()).to_vec();
    if first {
        let strict = match role {
            Role::Client => STRICT_CLIENT,
            Role::Server => STRICT_SERVER,
        };
        methods.push(strict.to_owned());
    }
    let ciphers: Vec<String> = Cipher::ALL.map(|c| c.name().to_owned()).to_vec();
    let none = vec!["none".to_owned()];
    // The ciphers authenticate, so the MAC is ignored (RFC 5647 section 5.1); peers want a list.
    let macs = vec!["hmac-sha2-256-etm@openssh.com".to_owned()];
    let offer = Offer {
        methods,
        host_keys: host_keys.to_vec(),
        ciphers_up: ciphers.clone(),
        ciphers_down: ciphers,
        compression_up: none.clone(),
        compression_down: none,
        guess_follows: false,
    };
    let bytes = [
        &offer.methods,
        &offer.host_keys,
        &offer.ciphers_up,
        &offer.ciphers_down,
        &macs,
        &macs,
        &offer.compression_up,
        &offer.compression_down,
        &vec![],
        &vec![],
    ]
    .into_iter()
    .fold(Writer::new().u8(KEXINIT).raw(&cookie), |writer, list| {
        writer.vec32(list.join(",").as_bytes())
    })
    .u8(0)
    .u32(0)
    .finish();
    Ok((bytes, offer))
}

/// Reads the peer's `KEXINIT`.
pub(super) fn parse(payload: &[u8]) -> Result<Offer, TransportError> {
    let mut reader = Reader::new(payload);
    reader.u8("message")?;
    reader.array::<16>("cookie")?;
    let offer = Offer {
        methods: list(&mut reader)?,
        host_keys: list(&mut reader)?,
        ciphers_up: list(&mut reader)?,
        ciphers_down: list(&mut reader)?,
        compression_up: {
            reader.vec32("macs up", MAX_LIST)?;
            reader.vec32("macs down", MAX_LIST)?;
            list(&mut reader)?
        },
        compression_down: list(&mut reader)?,
        guess_follows: {
            reader.vec32("languages up", MAX_LIST)?;
            reader.vec32("languages down", MAX_LIST)?;
            reader.u8("guess")? != 0
        },
    };
    reader.u32("reserved")?;
    Ok(offer)
}

fn list(reader: &mut Reader<'_>) -> Result<Vec<String>, TransportError> {
    let text = reader.vec32("name list", MAX_LIST)?;
    let text = std::str::from_utf8(text).map_err(|_| TransportError::Framing("name list"))?;
    Ok(text.split(',').map(str::to_owned).collect())
}

/// Applies the rule of RFC 4253: the client's first that the server has too.
pub(super) fn choose(
    role: Role,
    ours: &Offer,
    theirs: &Offer,
    first: bool,
) -> Result<Choice, TransportError> {
    let (client, server) = match role {
        Role::Client => (ours, theirs),
        Role::Server => (theirs, ours),
    };
    let method_name = agree("key exchange", &client.methods, &server.methods)?;
    let host_key = agree("host key", &client.host_keys, &server.host_keys)?;
    agree(
        "compression",
        &client.compression_up,
        &server.compression_up,
    )?;
    agree(
        "compression",
        &client.compression_down,
        &server.compression_down,
    )?;
    let guess_was_right = client.methods.first() == server.methods.first()
        && client.host_keys.first() == server.host_keys.first();
    Ok(Choice {
        method: method(&method_name)?,
        cipher_up: cipher(&agree("cipher", &client.ciphers_up, &server.ciphers_up)?)?,
        cipher_down: cipher(&agree(
            "cipher",
            &client.ciphers_down,
            &server.ciphers_down,
        )?)?,
        host_key,
        strict: first && has(&client.methods, STRICT_CLIENT) && has(&server.methods, STRICT_SERVER),
        skip_guess: theirs.guess_follows && !guess_was_right,
    })
}

fn agree(
    what: &'static str,
    client: &[String],
    server: &[String],
) -> Result<String, TransportError> {
    client
        .iter()
        .find(|name| has(server, name))
        .cloned()
        .ok_or_else(|| TransportError::NothingInCommon {
            what,
            client: shown(client),
            server: shown(server),
        })
}

/// A peer's list for a message: short, and without control characters.
fn shown(names: &[String]) -> String {
    let text: String = names.join(",").chars().take(300).collect();
    text.escape_debug().to_string()
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|n| n == name)
}

/// A name that is not a method (`ext-info-c`, `kex-strict-…`) cannot be chosen: only we could
/// have offered it too, and we offer no method by that name.
fn method(name: &str) -> Result<Method, TransportError> {
    Method::NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, method)| *method)
        .ok_or(TransportError::Framing("key exchange method"))
}

fn cipher(name: &str) -> Result<Cipher, TransportError> {
    Cipher::ALL
        .into_iter()
        .find(|cipher| cipher.name() == name)
        .ok_or(TransportError::Framing("cipher"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<String> {
        vec!["ssh-ed25519".to_owned()]
    }

    fn choose_with(change: impl FnOnce(&mut Offer)) -> Result<Choice, TransportError> {
        let (_, server) = offer(Role::Server, &keys(), true)?;
        let (_, mut client) = offer(Role::Client, &keys(), true)?;
        change(&mut client);
        choose(Role::Server, &server, &client, true)
    }

    #[test]
    fn the_post_quantum_hybrid_comes_first_and_the_exchange_is_strict() {
        let choice = choose_with(|_| {}).unwrap();
        assert_eq!(choice.method, Method::MlKem768X25519);
        assert!(choice.strict && !choice.skip_guess);
    }

    #[test]
    fn our_own_offer_is_read_back() {
        let (bytes, sent) = offer(Role::Client, &keys(), true).unwrap();
        let got = parse(&bytes).unwrap();
        assert_eq!(got.methods, sent.methods);
        assert_eq!(got.ciphers_down, sent.ciphers_down);
        assert_eq!(got.compression_up, sent.compression_up);
    }

    #[test]
    fn a_peer_without_a_common_algorithm_is_told_what_was_offered() {
        let error = choose_with(|client| client.ciphers_up = vec!["aes128-cbc".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("aes128-cbc") && error.contains("aes256-gcm"),
            "{error}"
        );
        assert!(choose_with(|client| client.compression_up = vec!["zlib".to_owned()]).is_err());
    }

    #[test]
    fn a_wrong_guess_is_skipped_and_a_right_one_is_not() {
        let right = choose_with(|client| client.guess_follows = true).unwrap();
        assert!(!right.skip_guess);
        let wrong = choose_with(|client| {
            client.guess_follows = true;
            client
                .methods
                .insert(0, "sntrup761x25519-sha512".to_owned());
        })
        .unwrap();
        assert!(wrong.skip_guess);
        assert_eq!(wrong.method, Method::MlKem768X25519);
    }

    #[test]
    fn strictness_needs_both_sides_and_the_first_exchange() {
        let choice = choose_with(|client| client.methods.retain(|m| m != STRICT_CLIENT)).unwrap();
        assert!(!choice.strict);
        // A client that names the server's marker does not count.
        let choice = choose_with(|client| {
            client.methods.retain(|m| m != STRICT_CLIENT);
            client.methods.push(STRICT_SERVER.to_owned());
        });
        assert!(!choice.unwrap().strict);
    }

    #[test]
    fn a_cut_offer_is_refused() {
        let (bytes, _) = offer(Role::Client, &keys(), true).unwrap();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}
