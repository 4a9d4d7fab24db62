//! What can be done to a log.

use super::*;

#[test]
fn an_untouched_store_holds_and_says_that_rollback_is_not_excluded() {
    let lab = Lab::with_sessions(200);
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!(report.size, 601);
    assert_eq!(report.recordings, 200);
    assert_eq!(report.sessions.len(), 200);
    assert!(!report.rollback_excluded());
    assert!(report.rollback().starts_with("rollback not excluded"));

    let report = lab.verify(&[lab.checkpoint()]);
    assert!(report.holds() && report.rollback_excluded());
    assert!(report.rollback().contains("601 by alice's laptop"));
}

#[test]
fn one_byte_changed_is_named() {
    for entry in [0, 5, 255, 256, 600] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| {
            let last = entries[at].len() - 3;
            entries[at][last] ^= 1;
        });
        assert_eq!(lab.faults()[0], Fault::EntryAltered { entry }, "{entry}");
    }
}

#[test]
fn one_entry_removed_is_named() {
    for entry in [0, 7, 300, 599] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| drop(entries.remove(at)));
        let faults = lab.faults();
        assert_eq!(faults[0], Fault::EntryRemoved { entry }, "{faults:?}");
    }
}

#[test]
fn a_foreign_entry_is_named() {
    let mut lab = Lab::with_sessions(20);
    lab.edit(9, |entries, at| entries.insert(at, b"{}".to_vec()));
    assert_eq!(lab.faults()[0], Fault::EntryInserted { entry: 9 });
}

#[test]
fn two_entries_swapped_are_named() {
    for (entry, with) in [(3, 4), (3, 40), (256, 511)] {
        let mut lab = Lab::with_sessions(200);
        lab.edit(entry, |entries, at| {
            entries.swap(at, (with % TILE_WIDTH) as usize)
        });
        let expected = Fault::EntriesSwapped { entry, with };
        assert_eq!(lab.faults()[0], expected, "{entry}");
    }
}

#[test]
fn a_cut_tail_is_named() {
    let mut lab = Lab::with_sessions(200);
    lab.edit(600, |entries, at| entries.truncate(at - 9));
    let cut = Fault::EntriesMissing { from: 591, to: 600 };
    assert!(lab.faults().contains(&cut), "{:?}", lab.faults());
    let gone = StorePath::Entries {
        index: 2,
        width: 89,
    };
    assert!(lab.store.files.remove(&gone).is_some());
    let cut = Fault::EntriesMissing { from: 512, to: 600 };
    assert!(lab.faults().contains(&cut), "{:?}", lab.faults());
}

#[test]
fn entries_and_tiles_rewritten_together_do_not_reproduce_the_checkpoint() {
    let mut lab = Lab::with_sessions(20);
    let honest = lab.store.files[&StorePath::Checkpoint].clone();
    let mut leaves = lab.leaves();
    leaves.swap(4, 8);
    lab.write_leaves(&leaves, 1);
    lab.store
        .files
        .insert(StorePath::Checkpoint, honest.clone());
    assert!(lab.faults().contains(&Fault::Sequence {
        entry: 4,
        states: 8
    }));

    // An edit that keeps the numbers right.
    lab.events[5].time_ms += 1;
    lab.write();
    lab.store.files.insert(StorePath::Checkpoint, honest);
    assert_eq!(lab.faults(), [Fault::Root { size: 61, good: 0 }]);
}

#[test]
fn a_tile_that_was_altered_is_named() {
    let mut lab = Lab::with_sessions(200);
    let path = StorePath::Tile {
        level: 1,
        index: 0,
        width: 2,
    };
    lab.store.files.get_mut(&path).unwrap()[40] ^= 1;
    let path = path.to_string();
    assert_eq!(lab.faults(), [Fault::Tile { path }]);
}

#[test]
fn a_rollback_is_found_by_a_checkpoint_from_outside_and_by_nothing_else() {
    let mut lab = Lab::with_sessions(20);
    let outside = lab.checkpoint();
    let rolled = Lab::with_sessions(19);
    lab.store.files = rolled.store.files;
    lab.identity = rolled.identity;
    assert!(lab.verify(&[]).holds());
    let report = lab.verify(&[outside]);
    let fault = Fault::RolledBack {
        name: "alice's laptop".to_owned(),
        size: 61,
        now: 58,
    };
    assert_eq!(report.faults, [fault]);
    assert!(!report.rollback_excluded());
}

#[test]
fn a_fork_by_whoever_holds_the_key_is_found_by_a_checkpoint_from_outside() {
    let mut lab = Lab::with_sessions(20);
    let outside = lab.checkpoint();
    lab.events[5].time_ms += 1;
    lab.events.push(started());
    lab.write();
    assert!(lab.verify(&[]).holds());
    let fault = Fault::Forked {
        name: "alice's laptop".to_owned(),
        size: 61,
    };
    assert_eq!(lab.verify(&[outside]).faults, [fault]);
}

#[test]
fn a_checkpoint_by_another_key_or_none_is_named() {
    let mut lab = Lab::with_sessions(3);
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 2);
    assert!(matches!(lab.faults()[..], [Fault::Checkpoint { .. }]));
    lab.store.files.remove(&StorePath::Checkpoint);
    assert_eq!(lab.faults()[0], Fault::NoCheckpoint);
}

#[test]
fn a_new_key_is_followed_when_the_old_one_named_it_in_the_log() {
    let mut lab = Lab::with_sessions(3);
    let (_, vkey) = new_key(&lab.origin, &[2; 32]).unwrap();
    let note = sign_key_change(&lab.origin, &vkey, &lab.signer(1)).unwrap();
    let change = Fact::LogKeyChanged { vkey, note };
    lab.events.push(event(None, change));
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 2);
    assert_eq!(lab.faults(), []);

    let (_, vkey) = new_key(&lab.origin, &[3; 32]).unwrap();
    let note = sign_key_change(&lab.origin, &vkey, &lab.signer(3)).unwrap();
    lab.events
        .push(event(None, Fact::LogKeyChanged { vkey, note }));
    let leaves = lab.leaves();
    lab.write_leaves(&leaves, 3);
    assert!(matches!(
        lab.faults()[..],
        [Fault::KeyChange { entry: 11, .. }, Fault::Checkpoint { .. }]
    ));
}

#[test]
fn a_session_without_an_end_is_named_once_the_agent_started_again() {
    let mut lab = Lab::with_sessions(1);
    lab.events.push(granted(5));
    lab.write();
    assert_eq!(lab.faults(), []);
    lab.events.extend([started(), started()]);
    lab.write();
    let fault = Fault::SessionWithoutEnd {
        session: session(5),
        granted: 4,
        restarted: 5,
    };
    assert_eq!(lab.faults(), [fault]);
}

#[test]
fn what_is_wrong_is_said_in_a_sentence_without_control_characters() {
    let fault = Fault::RolledBack {
        name: "\u{1b}[2Jevil".to_owned(),
        size: 3,
        now: 2,
    };
    let text = fault.to_string();
    assert!(text.starts_with("the log was rolled back"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
