//! A log that signs what it is told.

use postern_proto::audit::note::{LogSigner, new_key, sign_checkpoint};
use postern_proto::audit::tree::{Edge, Hash, TileEdge, leaf_hash, prove_growth, prove_leaf};
use postern_proto::gateway::message::Witness;
use postern_proto::names::AgentId;

/// Entries of one agent's log.
#[derive(Default)]
pub(crate) struct FakeLog {
    pub(crate) entries: Vec<String>,
}

impl FakeLog {
    /// The verifier key.
    pub(crate) fn key(&self) -> String {
        new_key(&origin(), &[1; 32]).unwrap().1
    }

    /// Appends an event and proves it to a client that knows `known` entries.
    pub(crate) fn append(&mut self, event: &str, known: Option<u64>) -> Witness {
        self.entries.push(event.to_owned());
        self.witness(known.unwrap_or(0))
    }

    /// Proves the last event.
    pub(crate) fn witness(&self, known: u64) -> Witness {
        let (secret, _) = new_key(&origin(), &[1; 32]).unwrap();
        let signer = LogSigner::new(&origin(), &secret).unwrap();
        let (mut edge, mut tiles) = (Edge::default(), TileEdge::default());
        for entry in &self.entries {
            edge.push(leaf_hash(entry.as_bytes()));
            tiles.push(leaf_hash(entry.as_bytes()));
        }
        let source = |level: u8, index: u64| {
            let found = tiles.partial().find(|(l, i, _)| (*l, *i) == (level, index));
            found.map(|(_, _, bytes)| bytes.to_vec())
        };
        let size = self.entries.len() as u64;
        let text = |hashes: Vec<Hash>| hashes.iter().map(|hash| hex::encode(hash.0)).collect();
        Witness {
            checkpoint: sign_checkpoint(&origin(), size, edge.root(), &[&signer]).unwrap(),
            leaf: size - 1,
            leaf_hash: hex::encode(leaf_hash(self.entries[size as usize - 1].as_bytes()).0),
            proof: text(prove_leaf(&source, size, size - 1).unwrap()),
            consistency: text(prove_growth(&source, size, known.min(size)).unwrap()),
        }
    }
}

fn origin() -> AgentId {
    "bastion-1".parse().unwrap()
}
