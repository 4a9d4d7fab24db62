//! A disk in memory that can stop after any step.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::audit::event::Source;
use crate::audit::note::new_key;
use crate::audit::ocsf::Place;

#[derive(Default, Clone)]
struct Disk(RefCell<BTreeMap<String, Vec<u8>>>);

impl Disk {
    fn run(&self, step: Step<'_>) {
        let mut files = self.0.borrow_mut();
        match step {
            Step::Replace { file, bytes } => {
                files.insert(file.to_string(), bytes.to_vec());
            }
            Step::Create { path, bytes } => {
                files.insert(path.to_string(), bytes.to_vec());
            }
            Step::Publish {
                index,
                width,
                bytes,
            } => {
                let path = StorePath::Entries { index, width };
                files.insert(path.to_string(), bytes.to_vec());
            }
            Step::Grow {
                index,
                offset,
                bytes,
            } => {
                let file = files.entry(LogFile::Growing { index }.to_string());
                let file = file.or_default();
                file.resize((offset as usize + bytes.len()).max(file.len()), 0);
                file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

impl LogFiles for Disk {
    fn read(&self, file: LogFile, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.0.borrow().get(&file.to_string()).cloned();
        if bytes.as_ref().is_some_and(|b| b.len() as u64 > limit) {
            return Err(io::Error::other("longer"));
        }
        Ok(bytes)
    }

    fn has_entries(&self) -> bool {
        self.0.borrow().keys().any(|path| path != "checkpoint")
    }
}

fn origin() -> AgentId {
    "bastion-1".parse().unwrap()
}

fn signers() -> Vec<LogSigner> {
    let (secret, _) = new_key(&origin(), &[7; 32]).unwrap();
    vec![LogSigner::new(&origin(), &secret).unwrap()]
}

fn entry(sequence: u64) -> Vec<u8> {
    let event = crate::audit::event::Event {
        time_ms: 1,
        session: None,
        actor: None,
        source: None,
        target: None,
        fact: crate::audit::event::Fact::AgentStopped,
    };
    let place = Place {
        origin: &origin(),
        sequence,
        version: "0",
        access: None,
        source: Source::Agent,
    };
    ocsf::encode(&event, place, &mut |plain| Ok(plain.to_vec())).unwrap()
}

/// Opens what is on the disk as a writer does, and commits what was left.
fn open(disk: &Disk) -> (Tail, u64) {
    let checkpoint = match last_checkpoint(disk, &origin(), &signers()).unwrap() {
        Some(checkpoint) => checkpoint,
        None => {
            let checkpoint = first_checkpoint(&origin(), &signers()).unwrap();
            disk.run(Step::Replace {
                file: LogFile::Static(StorePath::Checkpoint),
                bytes: checkpoint.note.as_bytes(),
            });
            checkpoint
        }
    };
    let tail = replay(disk, &checkpoint, |_| {}).unwrap();
    let quick = resume(disk, &checkpoint).unwrap();
    assert_eq!(quick.size(), tail.size());
    assert_eq!(quick.edge.root(), tail.edge.root());
    assert_eq!(quick.bundle, tail.bundle);
    assert!(quick.tiles.partial().eq(tail.tiles.partial()));
    if let Some(step) = mend(disk, &tail).unwrap() {
        disk.run(step);
    }
    let left = left(disk, &tail).unwrap();
    left.steps().for_each(|step| disk.run(step));
    let kept = left.kept.len() as u64;
    if left.kept.is_empty() {
        return (tail, 0);
    }
    let commit = tail.commit(&origin(), &signers(), &left.kept).unwrap();
    commit.steps().into_iter().for_each(|step| disk.run(step));
    let next = commit.done().0;
    (next, kept)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_step_is_the_last_one_no_committed_entry_is_lost(
        batches in proptest::collection::vec(1..90u64, 1..9),
        stop in 0..12usize,
    ) {
        let disk = Disk::default();
        let mut committed = 0;
        for batch in batches {
            let (tail, kept) = open(&disk);
            committed += kept;
            prop_assert_eq!(tail.size(), committed);
            let entries: Vec<_> = (committed..committed + batch).map(entry).collect();
            let commit = tail.commit(&origin(), &signers(), &entries).unwrap();
            let steps = commit.steps();
            // The last step is what makes it count.
            let all = steps.len() <= stop;
            for step in steps.into_iter().take(stop) {
                disk.run(step);
            }
            if all {
                committed += batch;
            }
        }
        let (tail, kept) = open(&disk);
        prop_assert_eq!(tail.size(), committed + kept);
    }

    #[test]
    fn a_log_is_the_same_in_whatever_batches_it_grew(
        batches in proptest::collection::vec(1..200u64, 1..6),
    ) {
        let (one, other) = (Disk::default(), Disk::default());
        let total: u64 = batches.iter().sum();
        let grow = |disk: &Disk, batch: u64| {
            let (tail, _) = open(disk);
            let entries: Vec<_> = (tail.size()..tail.size() + batch).map(entry).collect();
            let commit = tail.commit(&origin(), &signers(), &entries).unwrap();
            commit.steps().into_iter().for_each(|step| disk.run(step));
        };
        grow(&one, total);
        batches.iter().for_each(|batch| grow(&other, *batch));
        // Every file of the one is in the other; partial ones of before may be there besides.
        let other = other.0.into_inner();
        for (path, bytes) in one.0.into_inner() {
            prop_assert_eq!(other.get(&path), Some(&bytes), "{}", path);
        }
    }
}

#[test]
fn a_checkpoint_that_was_removed_is_told_from_a_log_that_never_was() {
    let disk = Disk::default();
    assert!(matches!(
        last_checkpoint(&disk, &origin(), &signers()),
        Ok(None)
    ));
    let (tail, _) = open(&disk);
    let commit = tail.commit(&origin(), &signers(), &[entry(0)]).unwrap();
    commit.steps().into_iter().for_each(|step| disk.run(step));
    disk.0.borrow_mut().remove("checkpoint");
    assert!(matches!(
        last_checkpoint(&disk, &origin(), &signers()),
        Err(LogError::NoCheckpoint)
    ));
}

#[test]
fn an_edge_that_does_not_reproduce_the_checkpoint_is_refused() {
    let disk = Disk::default();
    let (tail, _) = open(&disk);
    let entries: Vec<_> = (0..300).map(entry).collect();
    let commit = tail.commit(&origin(), &signers(), &entries).unwrap();
    commit.steps().into_iter().for_each(|step| disk.run(step));
    let checkpoint = last_checkpoint(&disk, &origin(), &signers())
        .unwrap()
        .unwrap();
    for path in [
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/001.p/growing",
    ] {
        let whole = disk.0.borrow()[path].clone();
        disk.0.borrow_mut().get_mut(path).unwrap()[5] ^= 1;
        assert!(resume(&disk, &checkpoint).is_err(), "{path}");
        disk.0.borrow_mut().get_mut(path).unwrap().truncate(3);
        assert!(resume(&disk, &checkpoint).is_err(), "{path}");
        disk.0.borrow_mut().insert(path.to_owned(), whole);
    }
    assert!(resume(&disk, &checkpoint).is_ok());
}
