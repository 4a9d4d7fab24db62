//! What a client demands of an agent's log with each grant and each close: it is the witness
//! whose memory the agent's owner cannot rewrite.

use thiserror::Error;

use super::note::{Checkpoint, LogIdentity, NoteError};
use super::tree::{self, Hash, TreeError};
use crate::gateway::message::Witness;

/// Why an agent's log is not to be trusted. Every variant but `Note` and `Malformed` is proof
/// that the log was changed after the fact.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WitnessError {
    /// A hash or proof is not hex of the right length.
    #[error("the agent's proof is malformed")]
    Malformed,
    /// The checkpoint is not a signed one of this log.
    #[error("the agent's checkpoint is {0}")]
    Note(#[from] NoteError),
    /// The event is not in the log that the checkpoint signs.
    #[error("the event is not in the log that the agent signed")]
    NotIncluded,
    /// The log is shorter than it was.
    #[error("the agent's log was rolled back: it had {known} entries, now {now}")]
    RolledBack {
        /// Entries of the checkpoint that was kept.
        known: u64,
        /// Entries now.
        now: u64,
    },
    /// The log does not begin with what it was.
    #[error("the agent's log was rewritten: its first {known} entries are not what they were")]
    Rewritten {
        /// Entries of the checkpoint that was kept.
        known: u64,
    },
    /// The log grew, and the agent did not prove that it begins with what it was.
    #[error("the agent gave no proof that its log still begins with the {known} entries known")]
    Unproven {
        /// Entries of the checkpoint that was kept.
        known: u64,
    },
}

/// Checks signature and inclusion, and consistency with the newest checkpoint that was kept.
/// Answers with the one to keep from now on.
pub fn check(
    log: &LogIdentity,
    witness: &Witness,
    known: Option<&Checkpoint>,
) -> Result<Checkpoint, WitnessError> {
    let now = log.checkpoint(&witness.checkpoint)?;
    let leaf = hash(&witness.leaf_hash)?;
    let proof = hashes(&witness.proof)?;
    tree::check_leaf(&proof, now.size, now.root, witness.leaf, leaf)
        .map_err(|_| WitnessError::NotIncluded)?;
    if let Some(known) = known {
        grown(&now, known, &hashes(&witness.consistency)?)?;
    }
    Ok(now)
}

/// Whether `now` begins with what was `known`.
pub fn grown(now: &Checkpoint, known: &Checkpoint, proof: &[Hash]) -> Result<(), WitnessError> {
    if now.size < known.size {
        return Err(WitnessError::RolledBack {
            known: known.size,
            now: now.size,
        });
    }
    if now.size > known.size && known.size > 0 && proof.is_empty() {
        return Err(WitnessError::Unproven { known: known.size });
    }
    tree::check_growth(proof, now.size, now.root, known.size, known.root).map_err(|error| {
        match error {
            TreeError::Range => WitnessError::Malformed,
            _ => WitnessError::Rewritten { known: known.size },
        }
    })
}

fn hash(text: &str) -> Result<Hash, WitnessError> {
    let mut bytes = [0; tree::HASH_SIZE];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| WitnessError::Malformed)?;
    Ok(Hash(bytes))
}

fn hashes(texts: &[String]) -> Result<Vec<Hash>, WitnessError> {
    if texts.len() > tree::PROOF_LIMIT {
        return Err(WitnessError::Malformed);
    }
    texts.iter().map(|text| hash(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::note::{LogSigner, new_key, sign_checkpoint};
    use crate::audit::tree::{Edge, TileEdge, leaf_hash, prove_growth, prove_leaf};
    use crate::names::AgentId;

    /// A log with its witness for the last entry, which proves growth from `old`.
    fn witness(entries: &[&str], old: u64, seed: u8) -> (LogIdentity, Witness) {
        let origin: AgentId = "bastion-1".parse().unwrap();
        let (secret, vkey) = new_key(&origin, &[seed; 32]).unwrap();
        let signer = LogSigner::new(&origin, &secret).unwrap();
        let (mut edge, mut tiles) = (Edge::default(), TileEdge::default());
        for entry in entries {
            edge.push(leaf_hash(entry.as_bytes()));
            tiles.push(leaf_hash(entry.as_bytes()));
        }
        let source = |level: u8, index: u64| {
            tiles
                .partial()
                .find(|(l, i, _)| (*l, *i) == (level, index))
                .map(|(_, _, bytes)| bytes.to_vec())
        };
        let (size, leaf) = (entries.len() as u64, entries.len() as u64 - 1);
        let text = |hashes: Vec<Hash>| hashes.iter().map(|h| hex::encode(h.0)).collect();
        let witness = Witness {
            checkpoint: sign_checkpoint(&origin, size, edge.root(), &[&signer]).unwrap(),
            leaf,
            leaf_hash: hex::encode(leaf_hash(entries.last().unwrap().as_bytes()).0),
            proof: text(prove_leaf(&source, size, leaf).unwrap()),
            consistency: text(prove_growth(&source, size, old.min(size)).unwrap()),
        };
        (LogIdentity::new(origin, &vkey).unwrap(), witness)
    }

    #[test]
    fn a_log_that_grew_is_accepted_and_its_checkpoint_kept() {
        let (log, first) = witness(&["a", "b", "c"], 0, 1);
        let known = check(&log, &first, None).unwrap();
        let (_, second) = witness(&["a", "b", "c", "d", "e"], 3, 1);
        assert_eq!(check(&log, &second, Some(&known)).unwrap().size, 5);
        // The same state again.
        assert_eq!(check(&log, &first, Some(&known)), Ok(known));
    }

    #[test]
    fn a_rolled_back_log_is_refused_by_a_client_that_kept_a_newer_checkpoint() {
        let (log, first) = witness(&["a", "b", "c"], 0, 1);
        let known = check(&log, &first, None).unwrap();
        let (_, shorter) = witness(&["a", "b"], 0, 1);
        assert_eq!(
            check(&log, &shorter, Some(&known)),
            Err(WitnessError::RolledBack { known: 3, now: 2 })
        );
    }

    #[test]
    fn a_rewritten_log_is_refused_even_when_it_is_longer_and_signed() {
        let (log, first) = witness(&["a", "b", "c"], 0, 1);
        let known = check(&log, &first, None).unwrap();
        for entries in [
            ["a", "x", "c"].as_slice(),
            &["a", "x", "c", "d"],
            &["x", "b", "c", "d"],
        ] {
            let (_, rewritten) = witness(entries, 3, 1);
            assert_eq!(
                check(&log, &rewritten, Some(&known)),
                Err(WitnessError::Rewritten { known: 3 }),
                "{entries:?}"
            );
        }
    }

    #[test]
    fn growth_without_a_proof_is_refused() {
        let (log, first) = witness(&["a", "b", "c"], 0, 1);
        let known = check(&log, &first, None).unwrap();
        let (_, mut second) = witness(&["a", "b", "c", "d"], 3, 1);
        second.consistency.clear();
        assert_eq!(
            check(&log, &second, Some(&known)),
            Err(WitnessError::Unproven { known: 3 })
        );
    }

    #[test]
    fn an_event_that_is_not_in_the_log_is_refused() {
        let (log, good) = witness(&["a", "b", "c"], 0, 1);
        let other = Witness {
            leaf_hash: hex::encode(leaf_hash(b"other").0),
            ..good.clone()
        };
        assert_eq!(check(&log, &other, None), Err(WitnessError::NotIncluded));
        let elsewhere = Witness {
            leaf: 0,
            ..good.clone()
        };
        assert_eq!(
            check(&log, &elsewhere, None),
            Err(WitnessError::NotIncluded)
        );
        let (_, foreign) = witness(&["a", "b", "c"], 0, 2);
        assert_eq!(
            check(&log, &foreign, None),
            Err(WitnessError::Note(NoteError::Signature))
        );
        let broken = Witness {
            proof: vec!["zz".to_owned()],
            ..good
        };
        assert_eq!(check(&log, &broken, None), Err(WitnessError::Malformed));
    }
}
