#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

type Tiles = HashMap<(u8, u64), Vec<u8>>;

/// A tree that keeps every tile, full or partial, as a store would.
fn grown(size: u64) -> (Edge, Tiles, Vec<Hash>) {
    let (mut edge, mut tiles, mut roots) = (Edge::default(), TileEdge::default(), vec![]);
    let mut stored = HashMap::new();
    for number in 0..size {
        let leaf = leaf_hash(&number.to_be_bytes());
        roots.push(edge.root());
        edge.push(leaf);
        for full in tiles.push(leaf) {
            stored.insert((full.level, full.index), full.bytes);
        }
    }
    roots.push(edge.root());
    for (level, index, bytes) in tiles.partial() {
        stored.insert((level, index), bytes.to_vec());
    }
    (edge, stored, roots)
}

#[test]
fn proofs_hold_across_tiles_and_for_nothing_else() {
    let size = 70_000;
    let (edge, stored, roots) = grown(size);
    let tiles = |level: u8, index: u64| stored.get(&(level, index)).cloned();
    assert_eq!(root(&tiles, size), Ok(edge.root()));
    for index in [0u64, 1, 255, 256, 65_535, 65_536, 69_999] {
        let leaf = leaf_hash(&index.to_be_bytes());
        let proof = prove_leaf(&tiles, size, index).unwrap();
        assert_eq!(check_leaf(&proof, size, edge.root(), index, leaf), Ok(()));
        assert!(check_leaf(&proof, size, edge.root(), index ^ 1, leaf).is_err());
        let other = leaf_hash(b"other");
        assert!(check_leaf(&proof, size, edge.root(), index, other).is_err());
    }
    for old in [0, 1, 255, 256, 257, 65_536, 69_999, 70_000] {
        let proof = prove_growth(&tiles, size, old).unwrap();
        let before = roots[old as usize];
        assert_eq!(
            check_growth(&proof, size, edge.root(), old, before),
            Ok(()),
            "{old}"
        );
        let fork = leaf_hash(b"fork");
        assert!(
            check_growth(&proof, size, edge.root(), old, fork).is_err(),
            "{old}"
        );
    }
}

#[test]
fn a_tile_of_a_wrong_size_is_an_error_that_names_it() {
    let (_, mut stored, _) = grown(300);
    stored.get_mut(&(0, 1)).unwrap().truncate(100);
    let tiles = |level: u8, index: u64| stored.get(&(level, index)).cloned();
    assert_eq!(
        prove_leaf(&tiles, 300, 5),
        Err(TreeError::Tile { level: 0, index: 1 })
    );
    assert_eq!(prove_leaf(&tiles, 300, 300), Err(TreeError::Range));
    assert_eq!(prove_growth(&tiles, u64::MAX, 1), Err(TreeError::Range));
}

proptest! {
    #[test]
    fn a_hostile_proof_never_panics(
        proof in proptest::collection::vec(any::<[u8; 32]>(), 0..80),
        size in any::<u64>(), index in any::<u64>(),
    ) {
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        let root = leaf_hash(b"root");
        prop_assert!(check_leaf(&proof, size, root, index, leaf_hash(b"x")).is_err());
        if size != index {
            prop_assert!(check_growth(&proof, size, root, index, leaf_hash(b"y")).is_err());
        }
    }

    #[test]
    fn hostile_tiles_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000), size in 1..5000u64) {
        let tiles = |_: u8, _: u64| Some(bytes.clone());
        let _ = root(&tiles, size);
        let _ = prove_leaf(&tiles, size, size / 2);
        let _ = prove_growth(&tiles, size, size / 2);
    }
}
