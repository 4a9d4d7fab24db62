//! Keys of a log and the checkpoints that they sign.
//!
//! Sources: C2SP signed-note (Ed25519, type 0x01) and tlog-checkpoint; keys are written as Go's
//! `note` package does: `name+id+base64` (public), `PRIVATE+KEY+name+id+base64` (secret). The
//! name is the log's origin, which is the agent's id.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use signed_note::{
    Note, Signer as _, StandardSigner, StandardVerifier, Verifier as _, VerifierList,
};
use thiserror::Error;
use tlog_tiles::checkpoint::Checkpoint as Text;
use zeroize::Zeroizing;

use super::layout::CHECKPOINT_LIMIT;
use super::tree::Hash;
use crate::names::AgentId;

const ED25519: u8 = 1;
const KEY_CHANGE: &str = "postern-log-key-v1";

/// Why a key or a note was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoteError {
    /// A key's text is not a C2SP Ed25519 key.
    #[error("the log key is malformed")]
    Key,
    /// A key is not of this log.
    #[error("the log key is named `{name}`, the log is `{origin}`")]
    KeyName {
        /// The key's name.
        name: String,
        /// The log's.
        origin: AgentId,
    },
    /// Not a signed note, or one with another text than expected.
    #[error("malformed")]
    Malformed,
    /// No signature by a key of this log, or one that is wrong.
    #[error("not signed by a key of this log")]
    Signature,
    /// A checkpoint of another log.
    #[error("of the log `{0}`")]
    Origin(String),
}

/// Makes a log's key pair from 32 random bytes: secret and public text.
pub fn new_key(
    origin: &AgentId,
    seed: &[u8; 32],
) -> Result<(Zeroizing<String>, String), NoteError> {
    let public = public_of(seed)?;
    let id = signed_note::key_id(origin.as_str(), &public);
    let private = Zeroizing::new([[ED25519].as_slice(), seed].concat());
    let encoded = Zeroizing::new(STANDARD.encode(&*private));
    let secret = Zeroizing::new(format!("PRIVATE+KEY+{origin}+{id:08x}+{}", &*encoded));
    Ok((secret, verifier_key(origin.as_str(), &public)))
}

fn public_of(seed: &[u8]) -> Result<Vec<u8>, NoteError> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::Key)?;
    Ok([[ED25519].as_slice(), pair.public_key().as_ref()].concat())
}

fn verifier_key(name: &str, public: &[u8]) -> String {
    let id = signed_note::key_id(name, public);
    format!("{name}+{id:08x}+{}", STANDARD.encode(public))
}

/// A log's secret key.
pub struct LogSigner {
    signer: StandardSigner,
    vkey: String,
}

impl LogSigner {
    /// Reads a secret key; its name must be the log's.
    pub fn new(origin: &AgentId, secret: &str) -> Result<Self, NoteError> {
        let signer = StandardSigner::new(secret.trim()).map_err(|_| NoteError::Key)?;
        if signer.name() != origin.as_str() {
            return Err(NoteError::KeyName {
                name: signer.name().to_owned(),
                origin: origin.clone(),
            });
        }
        let encoded = secret.trim().splitn(5, '+').nth(4).ok_or(NoteError::Key)?;
        let private = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| NoteError::Key)?);
        let (_, seed) = private.split_first().ok_or(NoteError::Key)?;
        let vkey = verifier_key(origin.as_str(), &public_of(seed)?);
        Ok(Self { signer, vkey })
    }

    /// The public key's text.
    pub fn vkey(&self) -> &str {
        &self.vkey
    }
}

impl std::fmt::Debug for LogSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogSigner({})", self.vkey)
    }
}

/// Signs a state of the log with each of `signers`.
pub fn sign_checkpoint(
    origin: &AgentId,
    size: u64,
    root: Hash,
    signers: &[&LogSigner],
) -> Result<String, NoteError> {
    let text = Text::new(origin.as_str(), size, root, "").map_err(|_| NoteError::Malformed)?;
    sign(&text.to_bytes(), signers)
}

/// Has the old key name the new one: what stands in the log when a key changes.
pub fn sign_key_change(origin: &AgentId, new: &str, old: &LogSigner) -> Result<String, NoteError> {
    let text = format!("{KEY_CHANGE}\n{origin}\n{new}\n");
    sign(text.as_bytes(), &[old])
}

fn sign(text: &[u8], signers: &[&LogSigner]) -> Result<String, NoteError> {
    let mut note = Note::new(text, &[]).map_err(|_| NoteError::Malformed)?;
    let signers: Vec<&dyn signed_note::Signer> =
        signers.iter().map(|signer| &signer.signer as _).collect();
    note.add_sigs(&signers).map_err(|_| NoteError::Key)?;
    String::from_utf8(note.to_bytes()).map_err(|_| NoteError::Malformed)
}

/// A log's name and public keys, from the reader's configuration: never from the store.
#[derive(Clone)]
pub struct LogIdentity {
    origin: AgentId,
    keys: Vec<StandardVerifier>,
}

impl LogIdentity {
    /// The log `origin` with this public key.
    pub fn new(origin: AgentId, vkey: &str) -> Result<Self, NoteError> {
        let mut identity = Self {
            origin,
            keys: Vec::new(),
        };
        identity.trust(vkey)?;
        Ok(identity)
    }

    /// The log's name.
    pub fn origin(&self) -> &AgentId {
        &self.origin
    }

    fn trust(&mut self, vkey: &str) -> Result<(), NoteError> {
        let key = StandardVerifier::new(vkey.trim()).map_err(|_| NoteError::Key)?;
        if key.name() != self.origin.as_str() {
            return Err(NoteError::KeyName {
                name: key.name().to_owned(),
                origin: self.origin.clone(),
            });
        }
        if !self.keys.iter().any(|known| known.key_id() == key.key_id()) {
            self.keys.push(key);
        }
        Ok(())
    }

    /// Accepts a new key when a key that is trusted already names it ([`sign_key_change`]).
    pub fn follow(&mut self, change: &str) -> Result<(), NoteError> {
        let text = self.open(change)?;
        let mut lines = text.lines();
        let (Some(KEY_CHANGE), Some(origin), Some(vkey), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Malformed);
        };
        if origin != self.origin.as_str() {
            return Err(NoteError::Origin(origin.chars().take(64).collect()));
        }
        self.trust(vkey)
    }

    /// Checks a checkpoint's signature and name.
    pub fn checkpoint(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let text = self.open(note)?;
        let parsed = Text::from_bytes(text.as_bytes()).map_err(|_| NoteError::Malformed)?;
        if parsed.origin() != self.origin.as_str() {
            return Err(NoteError::Origin(
                parsed.origin().chars().take(64).collect(),
            ));
        }
        Ok(Checkpoint {
            size: parsed.size(),
            root: *parsed.hash(),
            note: note.to_owned(),
        })
    }

    fn open(&self, note: &str) -> Result<String, NoteError> {
        if note.len() as u64 > CHECKPOINT_LIMIT {
            return Err(NoteError::Malformed);
        }
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| NoteError::Malformed)?;
        let known = VerifierList::new(
            self.keys
                .iter()
                .map(|key| Box::new(key.clone()) as Box<dyn signed_note::Verifier>)
                .collect(),
        );
        parsed.verify(&known).map_err(|_| NoteError::Signature)?;
        String::from_utf8(parsed.text().to_vec()).map_err(|_| NoteError::Malformed)
    }
}

impl std::fmt::Debug for LogIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogIdentity({}, {} keys)", self.origin, self.keys.len())
    }
}

/// A signed state of a log whose signature was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Entries in it.
    pub size: u64,
    /// The root of its tree.
    pub root: Hash,
    /// The note as it was signed.
    pub note: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin() -> AgentId {
        "bastion-1".parse().unwrap()
    }

    #[test]
    fn a_checkpoint_holds_for_its_key_and_its_log_alone() {
        let (secret, vkey) = new_key(&origin(), &[7; 32]).unwrap();
        let signer = LogSigner::new(&origin(), &secret).unwrap();
        assert_eq!(signer.vkey(), vkey);
        let root = super::super::tree::leaf_hash(b"a");
        let note = sign_checkpoint(&origin(), 9, root, &[&signer]).unwrap();
        let identity = LogIdentity::new(origin(), &vkey).unwrap();
        let checkpoint = identity.checkpoint(&note).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (9, root));

        let grown = note.replace("\n9\n", "\n8\n");
        assert_eq!(identity.checkpoint(&grown), Err(NoteError::Signature));
        let (_, other) = new_key(&origin(), &[8; 32]).unwrap();
        let other = LogIdentity::new(origin(), &other).unwrap();
        assert_eq!(other.checkpoint(&note), Err(NoteError::Signature));
        let elsewhere: AgentId = "bastion-2".parse().unwrap();
        assert!(matches!(
            LogSigner::new(&elsewhere, &secret),
            Err(NoteError::KeyName { .. })
        ));
        assert!(LogIdentity::new(elsewhere, &vkey).is_err());
    }

    #[test]
    fn a_new_key_counts_once_the_old_one_named_it() {
        let (old, old_vkey) = new_key(&origin(), &[1; 32]).unwrap();
        let (new, new_vkey) = new_key(&origin(), &[2; 32]).unwrap();
        let (thief, thief_vkey) = new_key(&origin(), &[3; 32]).unwrap();
        let [old, new, thief] =
            [old, new, thief].map(|secret| LogSigner::new(&origin(), &secret).unwrap());
        let root = super::super::tree::leaf_hash(b"a");
        let note = sign_checkpoint(&origin(), 3, root, &[&new]).unwrap();

        let mut identity = LogIdentity::new(origin(), &old_vkey).unwrap();
        assert!(identity.checkpoint(&note).is_err());
        let forged = sign_key_change(&origin(), &thief_vkey, &thief).unwrap();
        assert_eq!(identity.follow(&forged), Err(NoteError::Signature));
        let change = sign_key_change(&origin(), &new_vkey, &old).unwrap();
        assert_eq!(identity.follow(&change), Ok(()));
        assert!(identity.checkpoint(&note).is_ok());
        // A checkpoint is no key change.
        assert_eq!(identity.follow(&note), Err(NoteError::Malformed));
    }

    #[test]
    fn a_secret_key_does_not_print() {
        let (secret, _) = new_key(&origin(), &[7; 32]).unwrap();
        let signer = LogSigner::new(&origin(), &secret).unwrap();
        let encoded = secret.rsplit('+').next().unwrap().to_owned();
        assert!(!format!("{signer:?}").contains(&encoded));
    }

    proptest! {
        #[test]
        fn a_hostile_note_never_panics(text in "(\\PC|\n|— |bastion-1|[A-Za-z0-9+/=]{8}){0,40}") {
            let (_, vkey) = new_key(&origin(), &[7; 32]).unwrap();
            let mut identity = LogIdentity::new(origin(), &vkey).unwrap();
            prop_assert!(identity.checkpoint(&text).is_err());
            prop_assert!(identity.follow(&text).is_err());
        }
    }
}
