//! The audit log's key: Ed25519, in the forms of C2SP signed-note.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::names::AgentId;
use signed_note::{Signer as _, StandardSigner};
use zeroize::{Zeroize as _, Zeroizing};

use super::CaError;

/// signed-note's number for Ed25519.
const ALGORITHM: u8 = 1;

/// A new log key: the signer key (secret) and the verifier key (for clients).
pub fn generate(agent: &AgentId) -> Result<(Zeroizing<String>, String), CaError> {
    let mut seed: [u8; 32] = super::random()?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| CaError::KeyKind {
        expected: "an Ed25519 seed",
    });
    let public = pair.map(|pair| prefixed(pair.public_key().as_ref()));
    let mut secret = Zeroizing::new(prefixed(&seed));
    seed.zeroize();
    let public = public?;
    let id = signed_note::key_id(agent.as_str(), &public);
    let encoded = Zeroizing::new(STANDARD.encode(secret.as_slice()));
    secret.zeroize();
    let signer = Zeroizing::new(format!("PRIVATE+KEY+{agent}+{id:08x}+{}", *encoded));
    Ok((
        signer,
        format!("{agent}+{id:08x}+{}", STANDARD.encode(public)),
    ))
}

/// Reads a signer key; its name must be the agent's id, the origin of the log.
pub fn signer(text: &str, agent: &AgentId) -> Result<StandardSigner, CaError> {
    match StandardSigner::new(text.trim()) {
        Ok(signer) if signer.name() == agent.as_str() => Ok(signer),
        Ok(_) => Err(CaError::KeyKind {
            expected: "named after this agent's id",
        }),
        Err(_) => Err(CaError::KeyKind {
            expected: "a C2SP signer key (`PRIVATE+KEY+…`)",
        }),
    }
}

/// The verifier key of a signer key, as clients configure it.
pub fn verifier_key(text: &str) -> Result<String, CaError> {
    let fault = || CaError::KeyKind {
        expected: "a C2SP signer key (`PRIVATE+KEY+…`)",
    };
    let text = text.trim().strip_prefix("PRIVATE+KEY+").ok_or_else(fault)?;
    let (name, rest) = text.split_once('+').ok_or_else(fault)?;
    let (_, key) = rest.split_once('+').ok_or_else(fault)?;
    let secret = Zeroizing::new(STANDARD.decode(key).map_err(|_| fault())?);
    let [ALGORITHM, seed @ ..] = secret.as_slice() else {
        return Err(fault());
    };
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| fault())?;
    let public = prefixed(pair.public_key().as_ref());
    let id = signed_note::key_id(name, &public);
    Ok(format!("{name}+{id:08x}+{}", STANDARD.encode(public)))
}

/// The 32 bytes of a verifier key. Base64 may hold a `+` of its own, so fields are counted from
/// the front.
pub fn public_key(verifier_key: &str) -> Option<Vec<u8>> {
    let key = verifier_key.splitn(3, '+').nth(2)?;
    match STANDARD.decode(key).ok()?.as_slice() {
        [ALGORITHM, public @ ..] => Some(public.to_vec()),
        _ => None,
    }
}

fn prefixed(key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![ALGORITHM];
    bytes.extend_from_slice(key);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use signed_note::{StandardVerifier, Verifier as _};

    #[test]
    fn what_the_signer_key_signs_the_verifier_key_verifies() {
        let agent = "bastion-1".parse().unwrap();
        let (secret, public) = generate(&agent).unwrap();
        let signer = signer(&secret, &agent).unwrap();
        let verifier = StandardVerifier::new(&public).unwrap();
        let signature = signer.sign(b"tree").unwrap();
        assert!(verifier.verify(b"tree", &signature));
        assert!(!verifier.verify(b"wood", &signature));
        assert_eq!(verifier_key(&secret).unwrap(), public);
    }

    #[test]
    fn a_verifier_key_is_read_whatever_base64_writes() {
        let agent: AgentId = "bastion-1".parse().unwrap();
        for last in 0..=255 {
            let public = [[0xfb; 31].as_slice(), &[last]].concat();
            let key = format!("{agent}+0badcafe+{}", STANDARD.encode(prefixed(&public)));
            assert!(key.split('+').count() > 3, "{key}");
            assert_eq!(public_key(&key), Some(public));
        }
        assert_eq!(public_key("bastion-1+0badcafe+AvvvvA=="), None);
        assert_eq!(public_key("bastion-1+0badcafe"), None);
    }

    #[test]
    fn a_key_of_another_agent_is_refused() {
        let (secret, _) = generate(&"bastion-1".parse().unwrap()).unwrap();
        assert!(signer(&secret, &"bastion-2".parse().unwrap()).is_err());
        assert!(signer("PRIVATE+KEY+x", &"bastion-1".parse().unwrap()).is_err());
        assert!(verifier_key("PRIVATE+KEY+x+00000000+AAAA").is_err());
    }
}
