//! Our log against the files that another implementation made (`golden/make.py`).
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_proto::audit::layout::{StorePath, TILE_WIDTH, push_entry, split_entries};
use postern_proto::audit::note::{LogIdentity, LogSigner, new_key, sign_checkpoint};
use postern_proto::audit::tree::{
    Edge, HASH_SIZE, Hash, TileEdge, check_growth, check_leaf, leaf_hash, prove_growth, prove_leaf,
    root,
};
use postern_proto::names::AgentId;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    size: u64,
    seed: String,
    vkey: String,
    skey: String,
    roots: BTreeMap<String, String>,
    inclusion: BTreeMap<String, Vec<String>>,
    consistency: BTreeMap<String, Vec<String>>,
}

fn golden(path: &str) -> Option<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read(folder.join(path)).ok()
}

fn expected() -> Expected {
    serde_json::from_slice(&golden("expected.json").unwrap()).unwrap()
}

fn entries(size: u64) -> Vec<Vec<u8>> {
    StorePath::bundles(size)
        .flat_map(|(index, width)| {
            let bundle = golden(&StorePath::Entries { index, width }.to_string()).unwrap();
            let (entries, taken) = split_entries(&bundle);
            assert_eq!((entries.len(), taken), (usize::from(width), bundle.len()));
            entries.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

fn tile(level: u8, index: u64) -> Option<Vec<u8>> {
    let (_, width) = StorePath::tiles(level, expected().size).nth(usize::try_from(index).ok()?)?;
    golden(
        &StorePath::Tile {
            level,
            index,
            width,
        }
        .to_string(),
    )
}

#[test]
fn entry_bundles_are_those_of_the_other_implementation() {
    let size = expected().size;
    let entries = entries(size);
    for (index, width) in StorePath::bundles(size) {
        let first = (index * TILE_WIDTH) as usize;
        let mut bundle = Vec::new();
        for entry in &entries[first..first + usize::from(width)] {
            assert!(push_entry(&mut bundle, entry));
        }
        let path = StorePath::Entries { index, width }.to_string();
        assert_eq!(Some(bundle), golden(&path), "{path}");
    }
}

#[test]
fn tiles_are_those_of_the_other_implementation() {
    let size = expected().size;
    let mut tiles = TileEdge::default();
    let mut made = BTreeMap::new();
    for entry in entries(size) {
        for full in tiles.push(leaf_hash(&entry)) {
            made.insert((full.level, full.index), full.bytes);
        }
    }
    for (level, index, bytes) in tiles.partial() {
        made.insert((level, index), bytes.to_vec());
    }
    let mut names = 0;
    for level in 0..=7 {
        for (index, width) in StorePath::tiles(level, size) {
            let path = StorePath::Tile {
                level,
                index,
                width,
            };
            let bytes = made.remove(&(level, index)).unwrap();
            assert_eq!(bytes.len(), usize::from(width) * HASH_SIZE);
            assert_eq!(Some(bytes), golden(&path.to_string()), "{path}");
            names += 1;
        }
    }
    assert!(made.is_empty());
    assert_eq!(names, 4);
}

#[test]
fn roots_and_proofs_are_those_of_the_other_implementation() {
    let expected = expected();
    let entries = entries(expected.size);
    let mut edge = Edge::default();
    let mut roots = vec![edge.root()];
    for entry in &entries {
        edge.push(leaf_hash(entry));
        roots.push(edge.root());
    }
    for (size, hex) in &expected.roots {
        let size: usize = size.parse().unwrap();
        assert_eq!(&hex::encode(roots[size].0), hex, "{size}");
    }
    assert_eq!(root(&tile, expected.size).unwrap(), edge.root());
    let text = |proof: &[Hash]| {
        proof
            .iter()
            .map(|hash| hex::encode(hash.0))
            .collect::<Vec<_>>()
    };
    for (index, proof) in &expected.inclusion {
        let index: u64 = index.parse().unwrap();
        let ours = prove_leaf(&tile, expected.size, index).unwrap();
        assert_eq!(&text(&ours), proof, "{index}");
        let leaf = leaf_hash(&entries[index as usize]);
        check_leaf(&ours, expected.size, edge.root(), index, leaf).unwrap();
    }
    for (old, proof) in &expected.consistency {
        let old: u64 = old.parse().unwrap();
        let ours = prove_growth(&tile, expected.size, old).unwrap();
        assert_eq!(&text(&ours), proof, "{old}");
        check_growth(&ours, expected.size, edge.root(), old, roots[old as usize]).unwrap();
    }
}

#[test]
fn keys_and_checkpoint_are_those_of_the_other_implementation() {
    let expected = expected();
    let origin: AgentId = "golden-1".parse().unwrap();
    let seed: [u8; 32] = hex::decode(&expected.seed).unwrap().try_into().unwrap();
    let (secret, public) = new_key(&origin, &seed).unwrap();
    assert_eq!(*secret, expected.skey);
    assert_eq!(public, expected.vkey);

    let theirs = String::from_utf8(golden("checkpoint").unwrap()).unwrap();
    let identity = LogIdentity::new(origin.clone(), &expected.vkey).unwrap();
    let checkpoint = identity.checkpoint(&theirs).unwrap();
    assert_eq!(checkpoint.size, expected.size);
    // Ed25519 is deterministic: the same key over the same text is the same note.
    let signer = LogSigner::new(&origin, &secret).unwrap();
    let ours = sign_checkpoint(&origin, expected.size, checkpoint.root, &[&signer]).unwrap();
    assert_eq!(ours, theirs);
}
