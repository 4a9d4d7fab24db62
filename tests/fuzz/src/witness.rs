//! What an agent proves of its log to a client that remembers.

use std::collections::HashMap;
use std::sync::LazyLock;

use postern_proto::audit::note::{Checkpoint, LogIdentity, LogSigner, new_key, sign_checkpoint};
use postern_proto::audit::tree::{Edge, Hash, TileEdge, leaf_hash, prove_growth, prove_leaf};
use postern_proto::audit::witness::check;
use postern_proto::gateway::message::Witness;
use postern_proto::names::AgentId;

static KEYS: LazyLock<(AgentId, LogSigner, LogIdentity)> = LazyLock::new(|| {
    let origin: AgentId = "bastion-1".parse().expect("a name");
    let (secret, public) = new_key(&origin, &[5; 32]).expect("a seed");
    let signer = LogSigner::new(&origin, &secret).expect("a key");
    let log = LogIdentity::new(origin.clone(), &public).expect("a key");
    (origin, signer, log)
});

/// Entries of a log, each as one number.
type Log = Vec<u16>;

/// A log that grows, with honest answers about it, and with answers of an agent that has the key
/// and forges: whatever the client takes goes on from what it knew, and holds the event.
pub(crate) fn witness(input: &[u8]) {
    let mut log: Log = vec![0];
    let mut known: Option<(Checkpoint, Log)> = None;
    for operation in input.chunks_exact(4) {
        let &[kind, a, b, c] = operation else { return };
        let at = usize::from(u16::from_be_bytes([a, b])) % log.len();
        let old = known.as_ref().map_or(0, |(_, log)| log.len());
        match kind % 4 {
            0 if log.len() < 700 => {
                let first = u16::try_from(log.len()).expect("short");
                log.extend(first..=first + u16::from(a));
            }
            // Honest.
            0 | 1 => {
                let answer = answer(&log, at, old);
                let before = known.as_ref().map(|(checkpoint, _)| checkpoint);
                let now = check(&KEYS.2, &answer, before).expect("an honest answer is refused");
                known = Some((now, log.clone()));
            }
            // Another log, rewritten from somewhere on, or cut.
            2 => {
                let mut other = log[..=at].to_vec();
                other.extend((0..c).map(|n| u16::from(n) + if a & 1 == 0 { 0x8000 } else { 1 }));
                let old = old.min(other.len());
                let said = answer(&other, usize::from(b) % other.len(), old);
                // Nobody who was told can tell: that is the agent's log now.
                if take(&mut known, &said, &other) {
                    log = other;
                }
            }
            // An honest answer, changed.
            _ => {
                let mut said = answer(&log, at, old);
                let part = usize::from(b);
                match a % 8 {
                    0 => said.leaf = said.leaf.wrapping_add(u64::from(b)),
                    1 => said.leaf_hash = hex::encode(leaf_hash(&[b]).0),
                    2 => swap(&mut said.proof, part, c),
                    3 => swap(&mut said.consistency, part, c),
                    4 => said.consistency = answer(&log, at, part.min(log.len())).consistency,
                    5 => said.proof = answer(&log, part % log.len(), old).proof,
                    6 => {
                        let cut = &log[..=part % log.len()];
                        said.checkpoint = answer(cut, 0, 0).checkpoint;
                    }
                    _ => said.checkpoint.insert(part % 20, char::from(c & 0x7f)),
                }
                let _ = take(&mut known, &said, &log);
            }
        }
    }
}

/// A client is told something about `log`, or about less of it. Whether it takes that.
fn take(known: &mut Option<(Checkpoint, Log)>, said: &Witness, log: &[u16]) -> bool {
    let before = known.as_ref().map(|(checkpoint, _)| checkpoint);
    let Ok(now) = check(&KEYS.2, said, before) else {
        return false;
    };
    let size = usize::try_from(now.size).expect("short");
    let log = log.get(..size).expect("larger than it ever was");
    let leaf = usize::try_from(said.leaf).ok().and_then(|at| log.get(at));
    let leaf = leaf.expect("an event from beyond the end");
    assert_eq!(said.leaf_hash.to_lowercase(), hex::encode(hashed(*leaf).0));
    if let Some((_, before)) = known {
        assert!(log.starts_with(before), "the log forgot something");
    }
    *known = Some((now, log.to_vec()));
    true
}

fn hashed(entry: u16) -> Hash {
    leaf_hash(&entry.to_be_bytes())
}

/// What an agent with this log answers about the entry at `at` to who knows `old` entries.
fn answer(log: &[u16], at: usize, old: usize) -> Witness {
    let (mut edge, mut tiles, mut full) = (Edge::default(), TileEdge::default(), HashMap::new());
    for entry in log {
        edge.push(hashed(*entry));
        for tile in tiles.push(hashed(*entry)) {
            full.insert((tile.level, tile.index), tile.bytes);
        }
    }
    let source = |level: u8, index: u64| {
        let mut partial = tiles.partial();
        let partial = partial.find(|(l, i, _)| (*l, *i) == (level, index));
        let partial = partial.map(|(_, _, bytes)| bytes.to_vec());
        full.get(&(level, index)).cloned().or(partial)
    };
    let text = |hashes: Vec<Hash>| hashes.iter().map(|h| hex::encode(h.0)).collect();
    let (size, leaf) = (log.len() as u64, at as u64);
    let proof = prove_leaf(&source, size, leaf).expect("it is there");
    let growth = prove_growth(&source, size, old as u64).expect("it is there");
    let (origin, signer, _) = &*KEYS;
    Witness {
        checkpoint: sign_checkpoint(origin, size, edge.root(), &[signer]).expect("a size"),
        leaf,
        leaf_hash: hex::encode(hashed(log[at]).0),
        proof: text(proof),
        consistency: text(growth),
    }
}

/// Another hash, one fewer, or one more.
fn swap(hashes: &mut Vec<String>, part: usize, how: u8) {
    let at = part % hashes.len().max(1);
    match how % 4 {
        0 if at < hashes.len() => drop(hashes.remove(at)),
        1 => hashes.insert(at, hex::encode([how; 32])),
        2 => hashes.insert(at, "é".repeat(usize::from(how))),
        _ => hashes.reverse(),
    }
}
